"""What an attempt of publish was asked for: ``spec.publish`` may change from one attempt to the next.

A finished attempt whose word was lost is taken over only if it has published what is asked for now.
"""

from pathlib import Path

from llava_api.run_config import RunConfig

ASKED = "publication/asked.json"
"""Below the attempt's folder."""


def describe_request(config: RunConfig) -> str:
    """What this attempt is asked to publish, as the text of ``ASKED``."""
    assert config.publish is not None, "the stage runs where it is set"
    return config.publish.model_dump_json(by_alias=True) + "\n"


def find_other_request(config: RunConfig, attempt_dir: Path) -> str | None:
    """What tells that an earlier attempt has published something else than is asked for; None if nothing does."""
    try:
        asked = (attempt_dir / ASKED).read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return "nothing tells what it was asked to publish"
    return None if asked == describe_request(config) else "spec.publish was another then"
