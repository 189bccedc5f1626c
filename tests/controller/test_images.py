"""Which image a run goes on with."""

import pytest

from llava_operator.deciding.images import pin_image
from tests.controller.makers import make_pod

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("reference", "image_id", "pinned"),
    [
        (
            "r.example/team/trainer:1",
            f"r.example/team/trainer@{DIGEST}",
            f"r.example/team/trainer@{DIGEST}",
        ),
        (
            "r.example:5000/trainer",
            f"r.example:5000/trainer@{DIGEST}",
            f"r.example:5000/trainer@{DIGEST}",
        ),
        ("trainer:1", f"docker.io/library/trainer@{DIGEST}", f"trainer@{DIGEST}"),
        ("team/trainer:1", f"docker-pullable://docker.io/team/trainer@{DIGEST}", f"team/trainer@{DIGEST}"),
        ("localhost/trainer:1", f"localhost/trainer@{DIGEST}", f"localhost/trainer@{DIGEST}"),
    ],
)
def test_an_image_that_was_pulled_is_gone_on_with_by_its_digest(reference: str, image_id: str, pinned: str) -> None:
    assert pin_image(reference, [make_pod(image_id=""), make_pod(image_id=image_id)]) == pinned


@pytest.mark.parametrize(
    "image_id",
    [
        "",
        DIGEST,
        f"other.example/trainer@{DIGEST}",
        "r.example/trainer@sha256:abc",
        "r.example/trainer:1",
        "@",
    ],
    ids=["not told", "loaded by hand", "of a mirror", "no digest", "by tag", "nothing"],
)
def test_what_no_other_node_could_pull_stays_as_it_was_asked_for(image_id: str) -> None:
    assert pin_image("r.example/trainer:1", [make_pod(image_id=image_id)]) == "r.example/trainer:1"


@pytest.mark.parametrize("reference", [None, f"r.example/trainer@{DIGEST}"])
def test_what_is_pinned_already_or_unknown_stays(reference: str | None) -> None:
    assert pin_image(reference, [make_pod(image_id=f"r.example/trainer@sha256:{'b' * 64}")]) == reference
