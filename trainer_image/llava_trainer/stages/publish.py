"""The publish stage: the result goes to every destination of ``spec.publish``, one after the other.

Each makes it visible as a whole or not at all. Where a later one fails, what the earlier ones have stays, and the next
attempt finds it there.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Event
from typing import Literal

from llava_api.constants import SecretRole
from llava_api.failures import Reason
from llava_api.report import Published, PublishNumbers
from llava_api.run_config import RunConfig
from llava_api.spec import Destination as DestinationSpec
from llava_api.text import show
from llava_trainer.outcome import StageOutput
from llava_trainer.publishing.content import Content
from llava_trainer.publishing.destination import Place
from llava_trainer.publishing.destinations import make_destination
from llava_trainer.publishing.gathering import gather_contents
from llava_trainer.publishing.progress import Progress
from llava_trainer.publishing.refusals import told_of_destinations
from llava_trainer.reporting import Reporter
from llava_trainer.retrying import Retrier
from llava_trainer.sources.fetching import Surroundings
from llava_trainer.sources.network import build_client, read_network

logger = logging.getLogger(__name__)


def run(config: RunConfig, reporter: Reporter, surroundings: Surroundings | None = None) -> StageOutput:
    """Publish what the run has made.

    Progress counts bytes.

    Args:
        config: the run's.
        reporter: told of progress; its fence is asked before anything is made visible.
        surroundings: secrets, authorities, claims and environment, where they are not the operator's.

    Raises:
        StageError: DestinationRefused, DestinationUnavailable or ResultDamaged, naming field, address and fix.
    """
    around = surroundings or Surroundings()
    with told_of_destinations():
        contents = gather_contents(config, around.secrets)
        places = _Places(config=config, around=around, reporter=reporter)
        published = tuple(places.publish(contents))
    return StageOutput(
        numbers=PublishNumbers(published=published),
        digests={f"published-{content.what}": content.digest for content in contents},
    )


@dataclass(frozen=True, kw_only=True)
class _Places:
    """What publishing to all destinations takes."""

    config: RunConfig
    around: Surroundings
    reporter: Reporter

    def publish(self, contents: tuple[Content, ...]) -> Iterator[Published]:
        """Publish all contents to one destination after the other; what stands there then."""
        around, spec = self.around, self.config.publish
        assert spec is not None, "the stage runs where it is set"
        download = self.config.download
        network = read_network(download, around.ca_file, around.secrets / SecretRole.DOWNLOAD, around.environ)
        total_bytes = len(spec.destinations) * sum(content.size for content in contents)
        progress = Progress(self.reporter, total_bytes)
        beside: Literal["", "adapter"] = "adapter" if len(contents) > 1 else ""
        for index, destination in enumerate(spec.destinations):
            # One client a destination: what one has sent along (cookies, connections) is none of the next one's.
            with build_client(network) as client:
                for content in contents:
                    is_beside = content.what == beside
                    place = Place(
                        field=f"spec.publish.destinations[{index}].address", address=destination.address,
                        folder="adapter" if is_beside else "", beside="" if is_beside else beside,
                        owner=self.config.run.uid, secrets=around.secrets / SecretRole.of_destination(index),
                        plain_http=destination.plain_http, claims=around.destinations, network=network, client=client,
                        environ=around.environ, repeatedly=self._retrier(index, destination),
                        check_attempt=self.reporter.fence.check,
                    )  # fmt: skip
                    yield _publish(index, content, place, progress)

    def _retrier(self, index: int, destination: DestinationSpec) -> Retrier:
        return Retrier(
            what=f"spec.publish.destinations[{index}].address: {destination.address}", patience=self.around.patience,
            stop=Event(), reason=Reason.DESTINATION_UNAVAILABLE, action="be published to",
        )  # fmt: skip


def _publish(index: int, content: Content, place: Place, progress: Progress) -> Published:
    told = f"{content.what} to {show(place.address)}{f' ({place.folder})' if place.folder else ''}"
    progress.begin(told, content.size)
    sent = make_destination(place).publish(content, progress.advance)
    progress.end()
    at = f", at {show(sent.revision, max_chars=100)}" if sent.revision else ""
    if not sent.was_there:
        logger.info(
            "published %s: %s of %s bytes sent%s", told, f"{sent.sent_bytes:,}",
            f"{content.size:,}", at,
        )  # fmt: skip
    else:
        logger.info("published %s: it was there already, nothing is changed%s", told, at)
    return Published(
        destination=index, what=content.what, revision=sent.revision, digest=content.digest, size_bytes=content.size,
        sent_bytes=sent.sent_bytes,
    )  # fmt: skip
