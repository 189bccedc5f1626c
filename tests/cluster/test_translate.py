"""A real API server accepts what LLaVA's own commands are translated into, as it comes out."""

from pathlib import Path

import pytest

from llava_trainer.translate.manifest import Options, translate
from tests.kubectl import Kubectl
from tests.rendering import ROOT

pytestmark = pytest.mark.cluster

RECIPES = ROOT / "tests" / "trainer" / "translate"
LEAST = "deepspeed llava/train/train_mem.py --model_name_or_path mine/llava --data_path '/data/my file.json' "
OTHERS = {
    "cpu": (LEAST, Options(gpus=0)),
    "odd numbers": (
        LEAST + "--per_device_train_batch_size 3 --gradient_accumulation_steps 5", Options(gpus=7, nodes=3),
    ),
    "question": (
        LEAST + "\nargs = Namespace(query='Is 3 < 5:\\n\"yes\" or #no, é?', image_file='x, y.png')", Options(gpus=1),
    ),
    "new projector": (LEAST + "--tune_mm_mlp_adapter True --model_max_length 4096", Options(gpus=6)),
    "offload": (LEAST + "--deepspeed zero3_offload.json --output_dir './7B run!/'", Options(gpus=2)),
    "quantised": (LEAST + "--bits 8 --deepspeed zero3_offload.json --double_quant False", Options(gpus=16)),
}  # fmt: skip


def apply(kubectl: Kubectl, text: str) -> None:
    kubectl.run("apply", "--dry-run=server", "-f", "-", stdin=text.encode())


@pytest.mark.usefixtures("crd")
@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_accepted(api_server: Kubectl, path: Path) -> None:
    apply(api_server, path.read_text())


@pytest.mark.usefixtures("crd")
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("literal", [False, True], ids=["meant", "literal"])
def test_other_commands_are_accepted(api_server: Kubectl, name: str, literal: bool) -> None:
    text, options = OTHERS[name]
    apply(api_server, translate(text, Options(**(vars(options) | {"literal": literal})), lambda _: None).text)
