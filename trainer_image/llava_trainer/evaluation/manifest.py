"""What an evaluation was about, to the byte: where its inputs came from, and digests of what the stages before made."""

from dataclasses import dataclass

from llava_api.constants import StageName
from llava_api.run_config import RunConfig
from llava_api.text import show
from llava_trainer.attempts.finished import read_digests
from llava_trainer.inputs import read_inputs

_MAX_CHARS = 300
"""Of one origin: an address may be long."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Names and values, in order."""

    origins: dict[str, str]
    """Every source by its role, with the commit of hub repositories; empty where everything lay on claims."""
    digests: dict[str, str]
    """sha256 of what earlier stages hand on, by its path on the volume."""


def read_manifest(config: RunConfig) -> Manifest:
    """As prepare and the records of finished stages have it; what is not recorded is left out."""
    inputs = read_inputs(config)
    digests: dict[str, str] = {}
    for stage, attempt in sorted(
        (config.volume.results or {}).items(), key=lambda entry: list(StageName).index(entry[0])
    ):
        folder = config.volume.attempt_dir(stage, attempt)
        digests |= {f"{folder.name}/{name}": digest for name, digest in read_digests(config, stage).items()}
    origins = inputs.origins if inputs is not None else {}
    return Manifest(
        origins={role: show(origin, max_chars=_MAX_CHARS) for role, origin in origins.items()}, digests=digests
    )
