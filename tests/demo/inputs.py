"""The demo's inputs: a tiny base model, and a dataset, in a claim of the cluster."""

import hashlib
import shutil
import tempfile
from pathlib import Path

from tests.demo.courier import Courier, claim
from tests.demo.plan import BASE_PATH, DATA_PATH, INPUTS_CLAIM, INPUTS_SIZE, DemoPlan
from tests.kubectl import Kubectl
from tests.localcluster.paths import cache_root

_TINY = Path(__file__).parents[1] / "tiny"
COMPLETE = "complete"
"""File with the digest of the others, written last."""


def cached_base() -> Path:
    """A tiny pre-trained base model, made once for each version of the code that makes it."""
    import torch
    import transformers

    key = hashlib.sha256(f"{torch.__version__} {transformers.__version__}".encode())
    for source in sorted(_TINY.glob("*.py")):
        key.update(source.read_bytes())
    folder = cache_root() / "tiny-base" / key.hexdigest()[:16]
    if is_whole(folder):
        return folder
    from tests.tiny.base import make_base

    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder.parent))
    make_base(aside)
    (aside / COMPLETE).write_text(digest(aside))
    aside.chmod(0o755)
    aside.rename(folder)
    return folder


def is_whole(folder: Path) -> bool:
    """Whether a cached folder holds what was once put into it."""
    mark = folder / COMPLETE
    return mark.is_file() and mark.read_text() == digest(folder)


def digest(folder: Path) -> str:
    """sha256 over names and contents of a folder's files."""
    sha256 = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.name != COMPLETE:
            sha256.update(path.name.encode() + path.read_bytes())
    return sha256.hexdigest()


def put_inputs(plan: DemoPlan, kubectl: Kubectl, courier: Courier) -> str:
    """Make the claim and fill it; returns a sentence about what lies in it."""
    kubectl.apply(claim(INPUTS_CLAIM, INPUTS_SIZE, plan.storage_class))
    base = cached_base()
    with tempfile.TemporaryDirectory() as scratch:
        if plan.data:
            data, told = plan.data.folder, f"{plan.data.format} dataset {plan.data.folder}/{plan.data.file}"
        else:
            from tests.tiny.export import make_export

            data = Path(scratch)
            told = f"UBIAI export with {make_export(data)} pictures"
        courier.put({BASE_PATH: base, DATA_PATH: data}, INPUTS_CLAIM)
    return f"tiny LLaVA base and {told}"
