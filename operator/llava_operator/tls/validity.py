"""From when and until when certificates count, for whoever watches that they are renewed in time."""

from collections.abc import Callable
from datetime import datetime
from enum import StrEnum

from cryptography import x509

from llava_operator.tls.certificates import Issuer, KeyPair


class Watched(StrEnum):
    """Which certificate it is; the label of a metric."""

    AUTHORITY = "authority"
    """The one in the Secret, which signs the others."""
    REPORT = "report"
    """What the endpoint of progress reports presents."""
    METRICS = "metrics"
    """What the endpoint of the metrics presents."""


NoteValidity = Callable[[datetime, datetime], None]
"""Takes from when a certificate counts and until when."""
NoteWatched = Callable[[Watched, datetime, datetime], None]
"""The same, of one of several."""


def note_nothing(not_before: datetime, not_after: datetime) -> None:
    """For whoever does not watch."""


def read_validity_of_issuer(issuer: Issuer) -> tuple[datetime, datetime]:
    """From when and until when what an authority signs is trusted, as far as it is up to its own certificate and root.

    Of several roots, as a bundle has them while one replaces the other, the one that lasts longest counts.
    """
    root = max(x509.load_pem_x509_certificates(issuer.roots), key=_end_of)
    first = min(issuer.certificate, root, key=_end_of)
    return first.not_valid_before_utc, _end_of(first)


def read_validity_of_pair(pair: KeyPair) -> tuple[datetime, datetime]:
    """From when and until when a server's own certificate counts, whatever is presented with it."""
    own = x509.load_pem_x509_certificates(pair.certificate)[0]
    return own.not_valid_before_utc, _end_of(own)


def _end_of(certificate: x509.Certificate) -> datetime:
    return certificate.not_valid_after_utc
