"""Images reach the tower as LLaVA makes them: opened, squared, resized and normalised, to the last bit.

Reference: LLaVA's ``Image.open(...).convert("RGB")``, its ``expand2square`` written down again, and CLIP's own image
processor, which is another class than the one that trains. For towers of 336 and 224 px and both aspect ratios.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from llava_api.failures import Reason
from llava_trainer.data.images import open_image, pixel_values
from llava_trainer.data.model_facts import read_model_facts
from llava_trainer.data.processor import Processor, load_processor
from llava_trainer.errors import StageError

SIZES = (
    (640, 480),
    (480, 640),
    (336, 336),
    (224, 224),
    (1000, 30),
    (30, 1000),
    (17, 16),
    (1, 1),
    (337, 336),
    (101, 67),
)
ASPECT_RATIOS = ("pad", "square")


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(width * 10_007 + height)
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def llava_reads(path: Path, aspect_ratio: str, size_px: int) -> np.ndarray:
    """Pixels that LLaVA trains on."""
    clip = CLIPImageProcessorPil(size={"shortest_edge": size_px}, crop_size={"height": size_px, "width": size_px})
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    # transformers 5 paints what was transparent white; LLaVA's version of it does not.
    image.info.clear()
    if aspect_ratio == "pad":
        image = expand_to_square(image, tuple(int(channel * 255) for channel in clip.image_mean))
    return clip(image, return_tensors="np")["pixel_values"][0]


def expand_to_square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new(image.mode, (side, side), colour)
    square.paste(image, (0, (side - height) // 2) if width > height else ((side - width) // 2, 0))
    return square


@pytest.fixture(scope="module")
def processings(toy_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Processor]:
    """By aspect ratio and the size of the tower's images."""
    made = {}
    for size_px in (336, 224):
        folder = Path(shutil.copytree(toy_model_dir, tmp_path_factory.mktemp("tower") / str(size_px)))
        set_tower(folder, image_size=size_px)
        for aspect_ratio in ASPECT_RATIOS:
            made[aspect_ratio, size_px] = load_processor(folder, aspect_ratio)  # type: ignore[arg-type]
    return made


def set_tower(folder: Path, *, image_size: int, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    config["vision_config"]["image_size"] = image_size
    (folder / "config.json").write_text(json.dumps(config))
    path = folder / "processor_config.json"
    processor = json.loads(path.read_text())
    processor["image_processor"]["crop_size"] = {"height": image_size, "width": image_size}
    path.write_text(json.dumps(processor))


def assert_same(path: Path, processings: dict[tuple[str, int], Processor]) -> None:
    for (aspect_ratio, size_px), processor in processings.items():
        ours = pixel_values(open_image(path), processor)
        assert ours.shape == (3, size_px, size_px)
        np.testing.assert_array_equal(ours, llava_reads(path, aspect_ratio, size_px), strict=True)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_every_shape(size: tuple[int, int], processings: dict[tuple[str, int], Processor], tmp_path: Path):
    Image.fromarray(noise(*size)).save(tmp_path / "a.png")
    assert_same(tmp_path / "a.png", processings)


def jpeg(path: Path) -> Path:
    Image.fromarray(noise(90, 40)).save(path / "a.jpg", quality=80)
    return path / "a.jpg"


def jpeg_on_its_side(path: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(90, 40)).save(path / "a.jpg", exif=exif)
    return path / "a.jpg"


def jpeg_of_four_inks(path: Path) -> Path:
    Image.fromarray(noise(70, 50, 4), mode="CMYK").save(path / "a.jpg")
    return path / "a.jpg"


def grey(path: Path) -> Path:
    Image.fromarray(noise(70, 50)[:, :, 0]).save(path / "a.png")
    return path / "a.png"


def grey_of_16_bits(path: Path) -> Path:
    Image.fromarray(noise(70, 50)[:, :, 0].astype(np.uint16) * 200).save(path / "a.png")
    return path / "a.png"


def transparent(path: Path) -> Path:
    Image.fromarray(noise(70, 50, 4), mode="RGBA").save(path / "a.png")
    return path / "a.png"


def grey_and_transparent(path: Path) -> Path:
    Image.fromarray(noise(70, 50, 2), mode="LA").save(path / "a.png")
    return path / "a.png"


def palette(path: Path) -> Path:
    Image.fromarray(noise(70, 50)).quantize(64).save(path / "a.png")
    return path / "a.png"


def palette_with_transparency(path: Path) -> Path:
    Image.fromarray(noise(70, 50)).quantize(64).save(path / "a.png", transparency=3)
    return path / "a.png"


def animation(path: Path) -> Path:
    frames = [Image.fromarray(noise(70, 50 + index)[:50]).quantize(32) for index in range(3)]
    frames[0].save(path / "a.gif", save_all=True, append_images=frames[1:])
    return path / "a.gif"


def lossy_webp(path: Path) -> Path:
    Image.fromarray(noise(70, 50)).save(path / "a.webp", quality=60)
    return path / "a.webp"


def bilevel(path: Path) -> Path:
    Image.fromarray(noise(70, 50)[:, :, 0] > 100).save(path / "a.tiff")
    return path / "a.tiff"


FILES = (
    jpeg, jpeg_on_its_side, jpeg_of_four_inks, grey, grey_of_16_bits, transparent, grey_and_transparent, palette,
    palette_with_transparency, animation, lossy_webp, bilevel,
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*mode.*parameter is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
@pytest.mark.parametrize("make", FILES, ids=lambda make: make.__name__)
def test_every_kind_of_file(
    make: Callable[[Path], Path], processings: dict[tuple[str, int], Processor], tmp_path: Path
):
    assert_same(make(tmp_path), processings)


FEATURES = (
    (336, -2, "default", 576), (224, -2, "default", 256), (336, -1, "full", 577), (224, [-3, -2], "default", 256),
    (224, [0, -1], "full", 257), (56, 1, "default", 16),
)  # fmt: skip


@pytest.mark.parametrize(("size_px", "layer", "strategy", "tokens"), FEATURES)
def test_tokens_of_an_image_follow_from_tower_layer_and_strategy(
    size_px: int, layer: int | list[int], strategy: str, tokens: int, toy_model_dir: Path, tmp_path: Path
):
    """As many as the model makes, and as the status states."""
    from transformers import AutoConfig, LlavaForConditionalGeneration

    folder = Path(shutil.copytree(toy_model_dir, tmp_path / "model"))
    chosen = {"vision_feature_layer": layer, "vision_feature_select_strategy": strategy}
    set_tower(folder, image_size=size_px, **chosen)
    processor, facts = load_processor(folder, "pad"), read_model_facts(folder)
    model = LlavaForConditionalGeneration(AutoConfig.from_pretrained(folder)).eval()
    with torch.no_grad():
        features = model.get_image_features(pixel_values=torch.zeros(1, 3, size_px, size_px)).pooler_output
    assert features[0].shape[0] == processor.tokens_per_image == facts.tokens_per_image == tokens
    assert facts.feature_layer == (tuple(layer) if isinstance(layer, list) else (layer,))
    assert (facts.feature_strategy, facts.image_size_px) == (strategy, size_px)


@pytest.mark.parametrize("layer", [4, -5, [], [-2, 9], "-2", True])
def test_a_layer_that_the_tower_does_not_have_is_refused(layer: object, toy_model_dir: Path, tmp_path: Path):
    folder = Path(shutil.copytree(toy_model_dir, tmp_path / "model"))
    set_tower(folder, image_size=56, vision_feature_layer=layer)
    with pytest.raises(StageError, match=r"config\.json.*vision_feature_layer") as caught:
        load_processor(folder, "pad")
    assert caught.value.reason is Reason.INVALID_MODEL
