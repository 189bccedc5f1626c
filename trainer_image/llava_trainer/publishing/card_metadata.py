"""The front matter of a model card: what the hub shows, filters and searches by.

Only what the hub has is named by its id there; what lies elsewhere stands in the card's text.
"""

import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from llava_api.run_config import RunConfig
from llava_api.text import show
from llava_trainer.evaluation.scores import Metrics, SplitScore
from llava_trainer.evaluation.summary import METRIC_TITLES
from llava_trainer.publishing.content import What

TASK = "image-text-to-text"
_HUB_ID = re.compile(r"(?:hf://)?([A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95})(?:@.*)?")
_BASES = ("model", "language-model", "vision-tower")
_TRAINED_ON = re.compile(r"dataset|alignment-dataset|mixture-\d+")
_ALIGNED_BY = re.compile("alignment-dataset")
_LICENSES = frozenset((
    "afl-3.0", "agpl-3.0", "apache-2.0", "apple-amlr", "apple-ascl", "artistic-2.0", "bigcode-openrail-m",
    "bigscience-bloom-rail-1.0", "bigscience-openrail-m", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear",
    "bsl-1.0", "c-uda", "cc", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0",
    "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0",
    "cdla-sharing-1.0", "creativeml-openrail-m", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1",
    "eupl-1.2", "gemma", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "intel-research", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0",
    "lgpl-lr", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "lppl-1.3c", "mit", "mpl-2.0",
    "ms-pl", "ncsa", "odbl", "odc-by", "ofl-1.1", "openrail", "openrail++", "osl-3.0", "other", "pddl", "postgresql",
    "unknown", "unlicense", "wtfpl", "zlib",
))  # fmt: skip
"""What the hub takes as ``license``; it refuses a commit with another, which goes under ``license_name`` instead."""


def hub_id_of(origin: str) -> str | None:
    """OWNER/NAME of a source on the hub (``hf://OWNER/NAME@COMMIT``, or the id itself); None for any other."""
    found = _HUB_ID.fullmatch(origin)
    return found[1] if found else None


def build_metadata(
    config: RunConfig, what: What, origins: Mapping[str, str], metrics: Metrics, license_name: str | None
) -> str:
    """The front matter, between its two lines of dashes.

    Args:
        config: of the publish stage.
        what: is published.
        origins: every source of the run by its role.
        metrics: evaluation's.
        license_name: that the run names, if any.
    """
    method = config.training.method
    bases = [one for role in _BASES if (one := _find_hub_id(origins, role)) is not None]
    trained_on = _TRAINED_ON if method != "none" else _ALIGNED_BY
    data = [one for role in origins if trained_on.fullmatch(role) and (one := _find_hub_id(origins, role)) is not None]
    relation: dict[str, Any] = {"base_model_relation": "finetune" if what == "merged" else "adapter"} if bases else {}
    card = ModelCardData(
        base_model=bases or None,
        datasets=sorted(set(data)) or None,
        eval_results=[_to_result(score, config, origins) for score in metrics.scores if score.split != "train"] or None,
        library_name="transformers" if what == "merged" else "peft",
        model_name=show(config.run.name),
        pipeline_tag=TASK,
        tags=["llava", "llava-finetune-operator", *([method] if method != "none" else [])],
        **relation,
        **_tell_license(license_name),
    )
    # Its words are quoted where YAML would take them for something else, and are one line each.
    return f"---\n{card.to_yaml()}\n---\n"


def _find_hub_id(origins: Mapping[str, str], role: str) -> str | None:
    origin = origins.get(role, "")
    return hub_id_of(origin) if origin.startswith("hf://") else None


def _tell_license(name: str | None) -> dict[str, Any]:
    if name is None:
        return {}
    if name.lower() in _LICENSES:
        return {"license": name.lower()}
    return {"license": "other", "license_name": name.lower()}


def _to_result(score: SplitScore, config: RunConfig, origins: Mapping[str, str]) -> EvalResult:
    retention = config.evaluation.retention
    is_retention = score.split == "retention" and retention is not None
    dataset = retention.dataset if is_retention and retention is not None else config.dataset
    hub_id = _find_hub_id(origins, "retention" if is_retention else "dataset")
    arguments = {
        "questions": score.samples,
        "groups": score.groups,
        "interval_95": [_round(score.tuned.low), _round(score.tuned.high)],
        "base": _round(score.base.value),
    }
    return EvalResult(
        task_type=TASK,
        dataset_type=hub_id or "private",
        dataset_name=show(f"{dataset.source} ({'retention' if is_retention else 'held out'})"),
        dataset_split=score.split,
        metric_type=score.metric,
        metric_name=METRIC_TITLES.get(score.metric, show(score.metric)),
        metric_value=_round(score.tuned.value),
        metric_args=arguments,
    )


def _round(value: float) -> float:
    return round(value, 4)
