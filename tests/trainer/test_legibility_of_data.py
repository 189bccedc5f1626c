"""What a person is told of a dataset before a GPU is taken: what the tower sees, and whether scores decide."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava_api.report import PrepareNumbers
from llava_trainer.data.box_heights import BoxHeights
from llava_trainer.data.dataset_report import DatasetReport
from llava_trainer.data.images import open_image, pixel_values
from llava_trainer.data.processor import load_processor
from tests.trainer.exports import conversation, draw_image, prepare_config, write_json
from tests.trainer.test_prepare import notes_of, report_of, run

TOWER_PX = 56
"""What the toy's tower sees."""


def write_images(root: Path, sizes: list[tuple[int, int]]) -> None:
    """A dataset with a question about each of its pictures, which have these sizes."""
    names = [f"{index:03}.png" for index in range(len(sizes))]
    write_json(root / "dataset" / "export.json", [conversation(name, [("Q?", "A")]) for name in names])
    for index, (name, size) in enumerate(zip(names, sizes, strict=True)):
        draw_image(root / "dataset" / "images" / name, seed=index, size=size)


def pictures_of(page: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(picture))) for picture in found]


def test_each_picture_is_shown_as_the_tower_gets_it_beside_the_picture_as_it_is(tmp_path: Path, toy_model_dir: Path):
    write_images(tmp_path, [(400, 200), (30, 60), (1300, 650)])
    config = prepare_config(tmp_path, toy_model_dir)
    run(config)
    page = config.volume.dataset_report_html.read_text()
    sizes = sorted(picture.size for picture in pictures_of(page))
    assert sizes == [(30, 60), *[(TOWER_PX, TOWER_PX)] * 3, (400, 200), (640, 320)]
    assert "56 px, scaled to 14%" in page
    assert "56 px, scaled to 93%" in page
    assert "1,300 x 650 px" in page


def test_what_is_shown_is_what_the_model_is_fed(tmp_path: Path, toy_model_dir: Path):
    write_images(tmp_path, [(400, 200), (400, 200)])
    config = prepare_config(tmp_path, toy_model_dir)
    run(config)
    processor = load_processor(toy_model_dir, "pad")
    fed = pixel_values(open_image(tmp_path / "dataset" / "images" / "000.png"), processor)
    mean, std = (np.array(getattr(processor.image_processor, name)) for name in ("image_mean", "image_std"))
    expected = (fed.transpose(1, 2, 0) * std + mean) * 255
    pictures = pictures_of(config.volume.dataset_report_html.read_text())
    seen = [np.asarray(picture, dtype=float) for picture in pictures if picture.width == TOWER_PX]
    # JPEG's loss, and no more.
    assert min(np.abs(picture - expected).mean() for picture in seen) < 6


def test_of_a_sample_with_many_pictures_a_few_are_shown(tmp_path: Path, toy_model_dir: Path):
    names = [f"{index:03}.png" for index in range(9)]
    turns = [{"from": "human", "value": "<image>" * 9 + "Q?"}, {"from": "gpt", "value": "A"}]
    write_images(tmp_path, [(60, 40)] * 10)
    entries = [{"id": "many", "image": names, "conversations": turns}, conversation("009.png", [("Q?", "A")])]
    write_json(tmp_path / "dataset" / "export.json", entries)
    config = prepare_config(tmp_path, toy_model_dir, training={"maxLength": 2048})
    run(config)
    page = config.volume.dataset_report_html.read_text()
    assert len(pictures_of(page)) == 2 * (4 + 1)
    assert "5 further pictures" in page


@pytest.mark.parametrize(
    ("aspect_ratio", "sizes", "scale"),
    [
        ("pad", [(225, 20), (225, 20), (56, 56)], 56 / 225),
        ("pad", [(224, 20), (224, 20), (2000, 56)], 0.25),
        # The centre is cut out: the shorter side is what is fitted.
        ("square", [(20, 225), (225, 1000), (225, 225)], 56 / 225),
        ("square", [(224, 1000), (20, 56), (224, 2000)], 0.25),
    ],
)
def test_a_dataset_of_large_pictures_is_warned_of(
    aspect_ratio: str, sizes: list[tuple[int, int]], scale: float, tmp_path: Path, toy_model_dir: Path
):
    write_images(tmp_path, sizes)
    config = prepare_config(tmp_path, toy_model_dir, dataset={"imageAspectRatio": aspect_ratio})
    numbers = run(config).numbers
    assert numbers.image_scale == report_of(config).pictures.median_scale == pytest.approx(scale)
    told = notes_of(config).get("illegible", [])
    assert [where for where, _ in told] == (["export.json"] if scale < 0.25 else [])
    if told:
        assert told[0][1].startswith("the median picture is scaled to 25% of its size for the vision tower, which sees")
        assert "cannot be read, whatever is trained" in config.volume.dataset_report_html.read_text()


def write_archive(root: Path, heights: list[float], *, size: str = "1000 2000", box: str = "10 {0} 90 {1}") -> None:
    """An OCR archive of two documents, whose words have boxes of these heights."""
    lines: dict[str, list[str]] = {"": [], "_box": [], "_image": []}
    folder = root / "dataset"
    for index, image in enumerate(("000.png", "001.png")):
        draw_image(folder / "images" / image, seed=index, size=(100, 200))
        for height in heights:
            corners = box.format(100, 100 + height)
            lines[""].append("Shop\tB-SHOP")
            lines["_box"].append("Shop\t1 1 2 2")
            lines["_image"].append(f"Shop\t{corners}\t{size}\t{image}")
    for suffix, content in lines.items():
        (folder / f"words{suffix}.txt").write_text("\n".join(content) + "\n")


def prepare_archive(root: Path, model_dir: Path, **dataset: Any) -> tuple[PrepareNumbers, DatasetReport, list[str]]:
    """What prepare finds in it; with what it says of its words."""
    reading = {"file": "words.txt", "ubiai": {"questions": {"SHOP": "Which shop?"}}}
    config = prepare_config(root, model_dir, format="ubiai", dataset=dataset | reading)
    config = config.model_copy(update={"dataset": config.dataset.model_copy(update={"format": "ubiai"})})
    numbers = run(config).numbers
    told = [message for _, message in notes_of(config).get("illegible", [])]
    return numbers, report_of(config), [message for message in told if message.startswith("the median word is")]


@pytest.mark.parametrize(
    ("heights", "aspect_ratio", "median", "is_warned"),
    [
        ([250.0, 280.0, 300.0], "pad", 7.75, True),
        ([250.0, 290.0, 300.0], "pad", 8.0, False),
        # Of 1,000 px in width nothing is cut off, and twice as much is seen of each line.
        ([250.0, 280.0, 300.0], "square", 15.5, False),
        ([2.0], "pad", 0.0, True),
    ],
)
def test_words_that_the_tower_cannot_read_are_warned_of_by_their_boxes(
    heights: list[float], aspect_ratio: str, median: float, is_warned: bool, tmp_path: Path, toy_model_dir: Path
):
    write_archive(tmp_path, heights)
    numbers, report, told = prepare_archive(tmp_path, toy_model_dir, imageAspectRatio=aspect_ratio)
    assert numbers.text_height_px == report.pictures.median_text_px == median
    assert len(told) == is_warned


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ("1e-300 1e-300", "0 0 1e300 1e300"),
        ("1000 2000", "0 5 10 5"),
        ("1000 2000", "0 -9e99 10 9e99"),
        ("1e308 1e308", "0 -1e308 10 1.7e308"),
    ],
)
def test_boxes_that_no_text_has_count_for_nothing(size: str, box: str, tmp_path: Path, toy_model_dir: Path):
    write_archive(tmp_path, [1.0], size=size, box=box)
    numbers, _, told = prepare_archive(tmp_path, toy_model_dir)
    assert numbers.text_height_px is None
    assert told == []


@pytest.mark.parametrize("aspect_ratio", ["pad", "square"])
@pytest.mark.parametrize(
    ("height", "size"),
    [(1e-311, (1e-310, 1e-310)), (1e308, (1e-308, 1e308)), (5e-324, (5e-324, 5e-324)), (1e308, (1e308, 1.7e308))],
)
def test_sizes_at_the_edge_of_numbers_are_counted_or_not_and_break_nothing(
    height: float, size: tuple[float, float], aspect_ratio: Any
):
    heights = BoxHeights(336, aspect_ratio)
    heights.add((0, 0, 1, height), *size)
    assert heights.median_px is not None
    assert 0 <= heights.median_px <= 336


def test_the_median_of_heights_is_that_of_sorted_numbers_to_a_quarter_of_a_pixel():
    rng = np.random.default_rng(0)
    for count in (1, 2, 7, 1000):
        heights = BoxHeights(336, "pad")
        drawn = rng.uniform(1, 400, count)
        for height in drawn:
            # Swapped corners are as good as others.
            heights.add((0, height, 5, 0), 600, 800)
        seen = np.sort(drawn) * 336 / 800
        assert heights.median_px == pytest.approx(seen[(count - 1) // 2], abs=0.25)
    assert BoxHeights(336, "pad").median_px is None


@pytest.mark.parametrize(
    ("fraction", "groups", "gate", "sufficient"),
    [(0.1, 3, None, 0.2), (0.2, 6, None, None), (0.2, 6, {"minimumGain": 0.1}, 0.3), (0.3, 9, {}, None)],
)
def test_prepare_says_whether_scores_can_decide_and_which_fraction_would_do(
    fraction: float, groups: int, gate: dict[str, Any] | None, sufficient: float | None, tmp_path: Path,
    toy_model_dir: Path,
):  # fmt: skip
    write_images(tmp_path, [(60, 40)] * 30)
    config = prepare_config(
        tmp_path, toy_model_dir, dataset={"validation": {"fraction": fraction}}, evaluation={"gate": gate}
    )
    numbers, report = run(config).numbers, report_of(config)
    is_enough = sufficient is None
    assert numbers.groups_validation == groups
    assert report.can_decide is is_enough
    assert numbers.sufficient_fraction == report.sufficient_fraction == sufficient
    told = notes_of(config).get("too_few_groups", [])
    page = config.volume.dataset_report_html.read_text()
    if is_enough:
        assert told == []
        assert f"yes: {6 if gate is None else 8} groups at least" in page
        return
    ((where, message),) = told
    assert where == "export.json"
    assert message.endswith(f"set spec.dataset.validation.fraction to {sufficient}")
    assert f"dataset.validation.fraction {sufficient} would do" in page


def test_where_others_select_a_step_both_sides_have_enough_with_what_is_said(tmp_path: Path, toy_model_dir: Path):
    training = {"maxLength": 512, "validation": {"everySteps": 5}, "keepBest": {"by": "exact"}}
    write_images(tmp_path, [(60, 40)] * 40)
    config = prepare_config(tmp_path, toy_model_dir, dataset={"validation": {"fraction": 0.2}}, training=training)
    numbers = run(config).numbers
    assert (numbers.groups_validation, numbers.groups_selection, numbers.sufficient_fraction) == (4, 4, 0.3)
    ((_, message),) = notes_of(config)["too_few_groups"]
    assert message.startswith("8 groups are held out and 4 of them select a step: scores of 4 cannot tell")
    again = prepare_config(tmp_path, toy_model_dir, dataset={"validation": {"fraction": 0.3}}, training=training)
    assert run(again).numbers.groups_validation == 6
    assert report_of(again).can_decide


def test_a_file_of_held_out_samples_is_to_have_more_groups(tmp_path: Path, toy_model_dir: Path):
    write_images(tmp_path, [(60, 40)] * 4)
    write_json(tmp_path / "dataset" / "export.json", [conversation(f"{n:03}.png", [("Q?", "A")]) for n in range(3)])
    write_json(tmp_path / "dataset" / "held_out.json", [conversation("003.png", [("R?", "B")])])
    held_out = {"fraction": None, "file": "held_out.json"}
    config = prepare_config(tmp_path, toy_model_dir, dataset={"validation": held_out})
    assert run(config).numbers.sufficient_fraction is None
    ((where, message),) = notes_of(config)["too_few_groups"]
    assert where == "held_out.json"
    assert message.endswith("hold out samples of 6 groups at least")
