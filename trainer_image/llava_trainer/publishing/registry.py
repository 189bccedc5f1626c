"""Placeholder until helper H3's module replaces it."""

from collections.abc import Callable

from llava_trainer.publishing.content import Content
from llava_trainer.publishing.destination import Place, Sent
from llava_trainer.publishing.refusals import refused


class RegistryDestination:
    """Refuses."""

    def __init__(self, place: Place) -> None:
        raise refused(f"{place.what}: oci:// cannot be published to yet")

    def publish(self, content: Content, on_bytes: Callable[[int], None]) -> Sent:
        """Never called."""
        raise NotImplementedError
