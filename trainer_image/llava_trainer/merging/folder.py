"""What stands beside the weights so that plain ``from_pretrained`` gives the tuned model: its configuration."""

import json
import shutil
from pathlib import Path
from typing import Any

from llava_api.spec import Merge
from llava_trainer.data.model_config import read_settings, without_code

# transformers 5 reads dtype; servers on earlier ones read torch_dtype.
_DTYPE_KEYS = ("dtype", "torch_dtype")


def write_config(base_dir: Path, out_dir: Path, merge: Merge) -> None:
    """Write config.json and generation_config.json: the base's, word for word but for the number format.

    Names of code (``auto_map``) stay behind, as the code itself does: a server that trusts its models would run it, or
    fetch it from the hub, where the weights were merged and proven with transformers' own classes.
    """
    config = without_code(read_settings(base_dir / "config.json"))
    config = _with_dtype(config, merge.dtype) | dict.fromkeys(_DTYPE_KEYS, merge.dtype)
    _write_json(out_dir / "config.json", config)
    generation = base_dir / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, out_dir / generation.name)
        if (kept := without_code(settings := read_settings(generation))) != settings:
            _write_json(out_dir / generation.name, kept)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """``config`` with ``dtype`` wherever it, or a part of it, names a number format."""
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            changed[key] = _with_dtype(value, dtype)
        else:
            changed[key] = dtype if key in _DTYPE_KEYS else value
    return changed
