"""Which kind of destination an address is."""

from llava_trainer.publishing.bucket import BucketDestination
from llava_trainer.publishing.claim import ClaimDestination
from llava_trainer.publishing.destination import Destination, Place
from llava_trainer.publishing.hub import HubDestination
from llava_trainer.publishing.refusals import refused
from llava_trainer.publishing.registry import RegistryDestination


def make_destination(place: Place) -> Destination:
    """The destination at a place; nothing is asked for yet.

    Raises:
        StageError: DestinationRefused, if address or credentials are none of its kind.
    """
    scheme = place.address.partition("://")[0]
    if scheme == "s3":
        return BucketDestination(place)
    if scheme == "hf":
        return HubDestination(place)
    if scheme == "oci":
        return RegistryDestination(place)
    if scheme == "pvc":
        return ClaimDestination(place)
    raise refused(f"{place.field} is {place.address!r} but must begin with s3://, hf://, oci:// or pvc://")
