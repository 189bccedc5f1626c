"""What stands beside the weights so that plain ``from_pretrained`` gives the tuned model: its configuration."""

import json
import shutil
from pathlib import Path
from typing import Any

from llava_api.spec import Merge

# transformers 5 reads dtype; servers on earlier ones read torch_dtype.
_DTYPE_KEYS = ("dtype", "torch_dtype")


def write_config(base_dir: Path, out_dir: Path, merge: Merge) -> None:
    """Write config.json and generation_config.json: the base's, word for word but for the number format."""
    config = json.loads((base_dir / "config.json").read_text(encoding="utf-8"))
    config = _with_dtype(config, merge.dtype) | dict.fromkeys(_DTYPE_KEYS, merge.dtype)
    (out_dir / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    generation = base_dir / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, out_dir / generation.name)


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """``config`` with ``dtype`` wherever it, or a part of it, names a number format."""
    changed: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            changed[key] = _with_dtype(value, dtype)
        else:
            changed[key] = dtype if key in _DTYPE_KEYS else value
    return changed
