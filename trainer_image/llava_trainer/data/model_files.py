"""Whether a checkpoint's weights are all there: found out before a GPU is taken, without reading them.

Only headers are read. A file that a download left short is the most common damage, and safetensors' header tells it.
"""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from llava_api.failures import Reason
from llava_trainer.data.model_config import read_settings
from llava_trainer.errors import StageError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_NAMES_SHOWN = 3


def check_weights(model_dir: Path) -> int:
    """Check that every weights file is there and whole; returns their size in bytes.

    Raises:
        StageError: InvalidModel, naming the file and the fix.
    """
    wanted = _files_of(model_dir)
    for name, tensors in wanted.items():
        path = model_dir / name
        found = _tensor_names(path)
        missing = sorted(tensors - found)
        if missing:
            shown = ", ".join(missing[:_NAMES_SHOWN])
            raise _invalid(f"{path} lacks {len(missing)} tensors that {INDEX_FILE} looks for there: {shown}")
    return sum((model_dir / name).stat().st_size for name in wanted)


def _files_of(model_dir: Path) -> dict[str, set[str]]:
    """Weights files with the tensors that each must hold (none are named where there is no index)."""
    index = model_dir / INDEX_FILE
    if not index.is_file():
        if (model_dir / SINGLE_FILE).is_file():
            return {SINGLE_FILE: set()}
        others = sorted(path.name for pattern in ("*.bin", "*.pth", "*.pt") for path in model_dir.glob(pattern))
        fix = "fetch the whole checkpoint"
        if others:
            # Under that name, or named by that index, prepare would have found and rewritten it.
            fix = f"{others[0]} is read if it is called pytorch_model.bin or stands in pytorch_model.bin.index.json"
        raise _invalid(f"{model_dir} holds neither {INDEX_FILE} nor {SINGLE_FILE}: {fix}")
    places = read_settings(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise _invalid(f"{index}: weight_map must be an object from tensors to files")
    files: dict[str, set[str]] = {}
    for tensor, name in places.items():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise _invalid(
                f"{index}: {tensor} is in {name!r:.80}, which must be a .safetensors file of the same folder"
            )
        files.setdefault(name, set()).add(tensor)
    return files


def _tensor_names(path: Path) -> set[str]:
    if not path.is_file():
        raise _invalid(f"{path} does not exist: fetch the whole checkpoint")
    try:
        with safe_open(path, framework="np") as opened:
            return set(opened.keys())
    except (SafetensorError, OSError) as error:
        raise _invalid(f"{path} ({path.stat().st_size:,} bytes) is damaged or was fetched in part: {error}") from error


def _invalid(message: str) -> StageError:
    return StageError(Reason.INVALID_MODEL, message)
