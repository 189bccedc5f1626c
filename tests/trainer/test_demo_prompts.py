"""The demo's prompts, on the sides that prepare really gives their pictures."""

from pathlib import Path

import yaml

from llava_trainer.evaluation.prompts import PictureSides
from llava_trainer.reporting import Reporter
from llava_trainer.stages import prepare
from tests.demo.plan import SAMPLE
from tests.tiny.export import make_export
from tests.tiny.tasks import CODE_QUESTION
from tests.trainer.exports import prepare_config


def test_the_demo_s_prompts_show_what_training_did(tmp_path: Path, toy_model_dir: Path) -> None:
    """They ask for what is trained, about a picture held out and one that was seen: not for what is forgotten."""
    make_export(tmp_path / "dataset")
    spec = yaml.safe_load(SAMPLE.read_text())["spec"]
    config = prepare_config(tmp_path, toy_model_dir, format="ubiai", dataset=spec["dataset"])
    prepare.run(config, Reporter(config))
    sides = PictureSides.read(config.volume)
    prompts = spec["evaluation"]["prompts"]
    assert {prompt["text"] for prompt in prompts} == {CODE_QUESTION}
    assert [sides.tell((prompt["image"],)) for prompt in prompts] == [
        "held out: training has not seen this picture",
        "training has seen this picture",
    ], f"held out are {sorted(sides.held_out)[:5]}"
