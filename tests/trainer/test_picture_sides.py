"""What training has seen of a prompt's picture."""

from pathlib import Path

import pytest

from llava_api.spec import Prompt
from llava_api.volume import RunVolume
from llava_trainer.data.samples import Sample, Source, Turn, write_samples
from llava_trainer.evaluation.prompts import PictureSides
from tests.trainer.trainings import configure


def make_sample(*images: str) -> Sample:
    turns = (Turn(role="user", text="?"), Turn(role="assistant", text="!"))
    return Sample(
        id="s", images=images, image_turns=(0,) * len(images), turns=turns, source=Source(file="f.json", index=0)
    )


def test_a_picture_s_side_is_told_whatever_its_path_is_written_like(tmp_path: Path) -> None:
    volume = RunVolume(root=tmp_path)
    volume.data_dir.mkdir(parents=True)
    write_samples(volume.train_file, [make_sample("a.png", "b/c.png"), make_sample()])
    write_samples(volume.validation_file, [make_sample("held.png")])
    sides = PictureSides.read(volume)
    assert sides.tell(()) is None
    assert sides.tell(("./b//c.png",)) == "training has seen this picture"
    assert sides.tell(("held.png",)) == "held out: training has not seen this picture"
    assert sides.tell(("other.png",)) == "not in the dataset: training has not seen this picture"
    write_samples(volume.selection_file, [make_sample("other.png")])
    assert PictureSides.read(volume).tell(("other.png",)) == "held out: training has not seen this picture"


@pytest.mark.parametrize(
    ("method", "image", "is_told"), [("lora", "a.png", True), ("none", "a.png", False), ("lora", None, False)]
)
def test_without_training_nothing_was_seen(tmp_path: Path, method: str, image: str | None, is_told: bool) -> None:
    prompts = [{"text": "What is it?", **({"image": image} if image else {})}]
    config = configure(tmp_path, tmp_path / "base", training={"method": method})
    evaluation = config.evaluation.model_copy(update={"prompts": tuple(Prompt.model_validate(one) for one in prompts)})
    config = config.model_copy(update={"evaluation": evaluation})
    config.volume.data_dir.mkdir(parents=True, exist_ok=True)
    for file in (config.volume.train_file, config.volume.validation_file):
        write_samples(file, [make_sample("a.png")])
    assert (PictureSides.of_run(config) is not None) == is_told
