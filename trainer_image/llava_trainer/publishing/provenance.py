"""Where a published model comes from, as supply-chain tools read it: an in-toto statement with SLSA's provenance.

It says nothing of attempts, times and destinations, so that publishing again gives the same bytes. The model's
signature covers it like every other file.

Source: https://github.com/in-toto/attestation/blob/main/spec/v1, https://slsa.dev/spec/v1.0/provenance.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_api.constants import GROUP, StageName
from llava_api.run_config import RunConfig
from llava_api.text import redact
from llava_trainer.attempts.finished import read_digests, read_earlier_result
from llava_trainer.files import sha256_listing
from llava_trainer.inputs import read_inputs
from llava_trainer.merging.manifest import Manifest as MergeManifest
from llava_trainer.publishing.content import Item
from llava_trainer.sources.archive import ARCHIVE_SUFFIX
from llava_trainer.sources.fetched import list_fetched

BUILD_TYPE = f"https://{GROUP}/provenance/run/v1"
"""What externalParameters are: the parts of a LlavaFineTune's spec that decide the result, by their names there."""
BUILDER = f"https://{GROUP}/trainer"
_DECIDING = ("model", "dataset", "mixture", "alignment", "training", "merge", "evaluation")
_BESIDE = frozenset({"secretRef", "tracking", "resources", "workers", "gpus", "perDevice", "maxRestarts"})
"""What decides nothing about the result, at any depth: names of Secrets, trackers, what pods get, how often they may.

All that may change between two attempts to publish is among it.
"""
_COMMIT = re.compile(r"@([0-9a-f]{40})$")
_IMAGE_DIGEST = re.compile(r"@sha256:([0-9a-f]{64})$")

Descriptor = dict[str, Any]


def build_provenance(config: RunConfig, items: Sequence[Item], merged: MergeManifest) -> str:
    """The statement about ``items``, as one line of JSON.

    Args:
        config: of the publish stage.
        items: all that is published and made before it: the model's files and the card.
        merged: what merging has written down.

    Raises:
        OSError: the run's volume cannot be read.
    """
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": item.name, "digest": {"sha256": item.sha256}} for item in items],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": _list_parameters(config),
                "internalParameters": _list_internal(config),
                "resolvedDependencies": [*_list_sources(config, merged), *_list_data(config)],
            },
            "runDetails": {
                "builder": {
                    "id": BUILDER,
                    "version": merged.origin.versions,
                    "builderDependencies": [_describe_image(config.image)] if config.image else [],
                },
                "metadata": {"invocationId": f"{config.run.namespace}/{config.run.name}/{config.run.uid}"},
                "byproducts": _list_byproducts(config, merged),
            },
        },
    }
    return json.dumps(statement, separators=(",", ":"), sort_keys=True) + "\n"


def _list_parameters(config: RunConfig) -> dict[str, Any]:
    dumped = config.model_dump(mode="json", by_alias=True)
    return {name: _without_secrets(dumped[name]) for name in _DECIDING if dumped.get(name)}


def _list_internal(config: RunConfig) -> dict[str, Any]:
    trained = read_earlier_result(config, StageName.TRAIN) if StageName.TRAIN in config.stages_before else None
    facts = {"worldSize": trained.train.world_size} if trained is not None and trained.train is not None else {}
    return {"run": {"namespace": config.run.namespace, "name": config.run.name, "uid": config.run.uid}, **facts}


def _without_secrets(value: Any) -> Any:
    """A part of the spec without what decides nothing, and addresses in it without what may be a secret."""
    if isinstance(value, Mapping):
        return {
            key: _without_secrets(inner) for key, inner in value.items() if inner is not None and key not in _BESIDE
        }
    if isinstance(value, list | tuple):
        return [_without_secrets(inner) for inner in value]
    return redact(value) if isinstance(value, str) else value


def _list_sources(config: RunConfig, merged: MergeManifest) -> list[Descriptor]:
    """Model, adapter and datasets that the run has begun with, each with the best digest that is known of it."""
    inputs = read_inputs(config)
    if inputs is None:
        return []
    return [
        {
            "name": role,
            "uri": redact(origin),
            **_digest_source(origin, config.volume.download_dir(role)),
            **({"annotations": {"config.json": merged.origin.base_config}} if role == "model" else {}),
        }
        for role, origin in inputs.origins.items()
    ]


def _digest_source(origin: str, folder: Path) -> Descriptor:
    """The commit that a repository had, or what came in: of one file its digest, of several theirs together."""
    if origin.startswith("hf://") and (commit := _COMMIT.search(origin)) is not None:
        return {"digest": {"gitCommit": commit[1]}}
    fetched = list_fetched(folder) or list_fetched(folder.with_name(f"{folder.name}{ARCHIVE_SUFFIX}"))
    if not fetched:
        # On a claim: nobody has hashed it.
        return {}
    if len(fetched) == 1:
        return {"digest": {"sha256": next(iter(fetched.values()))}}
    return {"digest": _digest_folder(sha256_listing(fetched))}


def _list_data(config: RunConfig) -> list[Descriptor]:
    """The samples as they were trained on and judged by, made of the datasets."""
    digest = read_digests(config, StageName.PREPARE).get("data")
    return [{"name": "prepared samples", "digest": _digest_folder(digest)}] if digest is not None else []


def _list_byproducts(config: RunConfig, merged: MergeManifest) -> list[Descriptor]:
    trained = [{"name": name, "digest": _digest_folder(digest)} for name, digest in merged.origin.trained.items()]
    evaluated = read_earlier_result(config, StageName.EVALUATE)
    scores = {name: evaluated.digests[name] for name in ("metrics",) if name in evaluated.digests} if evaluated else {}
    return [
        *trained,
        *({"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}} for name, digest in scores.items()),
    ]


def _describe_image(image: str) -> Descriptor:
    digest = _IMAGE_DIGEST.search(image)
    return {"name": "trainer image", "uri": image, **({"digest": {"sha256": digest[1]}} if digest else {})}


def _digest_folder(digest: str) -> dict[str, str]:
    """``files.sha256_folder`` is what in-toto calls dirHash."""
    return {"dirHash": digest.removeprefix("sha256:")}
