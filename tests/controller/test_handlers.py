"""How kopf is set up to watch."""

import itertools

from llava_operator.kube.client import FIRST_CHUNK
from llava_operator.loop.backoffs import LAST_BACKOFF_S
from llava_operator.loop.watches import build_kopf_settings
from llava_operator.settings import Settings


def test_watches_are_never_given_up() -> None:
    """kopf's own backoffs come to an end after 54 s, and the watch with them."""
    needed = {"namespace": "n", "pod_name": "p", "pod_ip": "1.2.3.4", "trainer_image": "i"}
    made = build_kopf_settings(Settings.model_validate(needed))
    backoffs = made.networking.error_backoffs
    assert not hasattr(backoffs, "__len__"), "kopf takes a length for the number of tries"
    for _ in range(2):
        first = list(itertools.islice(backoffs, 500))
        assert first[:3] == [1, 1, 2]
        assert first[-1] == LAST_BACKOFF_S
    assert made.watching.chunk_size == FIRST_CHUNK
