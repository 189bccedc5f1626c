"""What training has seen of a prompt's picture."""

from pathlib import Path

from llava_api.volume import RunVolume
from llava_trainer.data.samples import Sample, Source, Turn, write_samples
from llava_trainer.evaluation.prompts import PictureSides


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
