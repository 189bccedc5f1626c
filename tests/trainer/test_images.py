"""Images: what is refused, and what the vision tower sees."""

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from llava_trainer.data import images
from llava_trainer.data.image_folder import ImageFolder
from llava_trainer.data.images import (
    ImageError,
    check_image,
    open_image,
    pixel_values,
    resolve_image,
    visible_image,
)
from llava_trainer.data.processor import Processor, load_processor
from tests.trainer.exports import draw_image

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
LIMIT = 89_000_000
SIZES = [(200, 400), (400, 200), (57, 56), (56, 56), (10, 31), (301, 77)]


def llava_pixels(image: Image.Image, size_px: int) -> np.ndarray:
    """Reference: LLaVA's expand2square (mm_utils) and CLIP's preprocessing, written down again."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(channel * 255) for channel in MEAN))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    resized = square.resize((size_px, size_px), Image.Resampling.BICUBIC)
    scaled = np.asarray(resized).astype(np.float32) * np.float32(1 / 255)
    return ((scaled - MEAN.astype(np.float32)) / STD.astype(np.float32)).transpose(2, 0, 1)


@pytest.mark.parametrize("size", SIZES)
def test_pad_is_llava_s_expand_to_square(size: tuple[int, int], toy_processor: Processor, tmp_path: Path):
    image = open_image(draw_image(tmp_path / "a.png", size=size))
    ours = pixel_values(image, toy_processor)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, llava_pixels(image, 56), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_pad_is_what_the_hub_s_padding_processor_gives(size: tuple[int, int], toy_processor: Processor, tmp_path: Path):
    image = open_image(draw_image(tmp_path / "a.png", size=size))
    theirs = LlavaImageProcessorPil(do_pad=True, size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})(
        images=[image], return_tensors="np"
    )["pixel_values"][0]
    assert np.abs(pixel_values(image, toy_processor) - theirs).max() == 0.0


def test_square_cuts_the_centre_out(toy_model_dir: Path):
    image = Image.new("RGB", (300, 100), "red")
    image.paste("blue", (100, 0, 200, 100))
    seen = np.asarray(visible_image(image, load_processor(toy_model_dir, "square")))
    assert (seen[:, 4:-4] == (0, 0, 255)).all()


def test_visible_image_is_the_image_before_normalisation(toy_processor: Processor, tmp_path: Path):
    image = open_image(draw_image(tmp_path / "a.png", size=(90, 31)))
    seen = visible_image(image, toy_processor)
    assert seen.size == (56, 56)
    restored = pixel_values(image, toy_processor).transpose(1, 2, 0) * STD + MEAN
    np.testing.assert_array_equal(np.rint(restored * 255).astype(np.uint8), np.asarray(seen))
    assert np.asarray(seen)[0, 0].tolist() == [122, 116, 104]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA", "I;16"])
def test_every_colour_mode_becomes_rgb(mode: str, tmp_path: Path):
    path = tmp_path / ("a.tiff" if mode in ("CMYK", "I;16") else "a.png")
    Image.new(mode, (8, 6)).save(path)
    assert open_image(path).mode == "RGB"


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tiff", "gif"])
def test_every_allowed_format_opens(suffix: str, tmp_path: Path):
    facts = check_image(draw_image(tmp_path / f"a.{suffix}"), LIMIT)
    assert (facts.width_px, facts.height_px) == (60, 40)


def test_exif_orientation_is_not_applied(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg", exif=exif)
    assert open_image(tmp_path / "a.jpg").size == (60, 40)


def test_the_digest_is_that_of_the_pixels(tmp_path: Path):
    png = check_image(draw_image(tmp_path / "a.png"), LIMIT)
    assert check_image(draw_image(tmp_path / "a.bmp"), LIMIT).digest == png.digest
    assert check_image(draw_image(tmp_path / "b.png", seed=1), LIMIT).digest != png.digest
    Image.new("RGB", (2, 3)).save(tmp_path / "low.png")
    Image.new("RGB", (3, 2)).save(tmp_path / "wide.png")
    assert check_image(tmp_path / "low.png", LIMIT).digest != check_image(tmp_path / "wide.png", LIMIT).digest


def encoded(image: Image.Image, format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format)
    return buffer.getvalue()


def damaged_jpeg() -> bytes:
    return encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")[:-400]


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header claims a size; nothing of that size is ever made."""
    whole = bytearray(encoded(Image.new("L", (1, 1)), "PNG"))
    whole[16:24] = struct.pack(">II", width, height)
    whole[29:33] = struct.pack(">I", zlib.crc32(bytes(whole[12:29])))
    return bytes(whole)


BAD_IMAGES = {
    "empty": (b"", "is not one of JPEG, PNG"),
    "text": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not one of JPEG, PNG"),
    "a format that is not allowed": (encoded(Image.new("RGB", (4, 4)), "ICO"), "is not one of JPEG, PNG"),
    "JPEG cut off": (damaged_jpeg(), "cannot be decoded: .*truncated"),
    "PNG cut off": (encoded(Image.effect_noise((64, 64), 50), "PNG")[:-500], "cannot be decoded"),
    "PNG with a damaged body": (
        encoded(Image.effect_noise((64, 64), 50), "PNG").replace(b"IDAT", b"IDAX"), "cannot be decoded|is not one of"),
    "too many pixels": (png_of(11_000, 9_000), "11000 x 9000 px, more than dataset.limits.imagePixels 89,000,000"),
    "a decompression bomb": (png_of(60_000, 60_000), "60000 x 60000 px, more than dataset.limits.imagePixels 89,000"),
    "too long": (png_of(12_001, 200), "12001 x 200 px, more than 12,000 px on one side"),
    "too thin": (png_of(3, 301), "3 x 301 px: one side is more than 100 times the other"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_an_unusable_image_is_refused(name: str, tmp_path: Path):
    content, message = BAD_IMAGES[name]
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError, match=message):
        check_image(tmp_path / "a.png", LIMIT)


def test_limits_admit_what_is_exactly_on_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    image = draw_image(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_SIDE_PX", 60)
    check_image(image, 60 * 40)
    with pytest.raises(ImageError, match=r"imagePixels 2,399"):
        check_image(image, 60 * 40 - 1)
    monkeypatch.setattr(images, "MAX_SIDE_PX", 59)
    with pytest.raises(ImageError, match="more than 59 px on one side"):
        check_image(image, 60 * 40)
    check_image(image, 60 * 60)


def test_who_allows_more_pixels_than_pillow_gets_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pillow warns at its own limit and fails at twice that; a checked image opens in training, too."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    image = draw_image(tmp_path / "a.png")
    assert check_image(image, 60 * 40).width_px == 60
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert open_image(image).size == (60, 40)


def test_large_images_are_decoded_alone_and_in_strips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    entered = []

    class Turn:
        def __enter__(self) -> None:
            entered.append(True)

        def __exit__(self, *exception: object) -> None:
            pass

    image = draw_image(tmp_path / "a.png")
    whole = check_image(image, LIMIT, Turn())
    assert entered == []
    monkeypatch.setattr(images, "LARGE_PIXELS", 60 * 40 - 1)
    monkeypatch.setattr(images, "_STRIP_PIXELS", 7 * 60)
    assert check_image(image, LIMIT, Turn()) == whole
    assert entered == [True]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("seed", range(30))
def test_random_damage_never_gets_past_as_another_error(seed: int, tmp_path: Path):
    rng = np.random.default_rng(seed)
    refused = 0
    for format in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"):
        content = bytearray(encoded(Image.effect_noise((24, 24), 60).convert("RGB"), format))
        for position in rng.integers(0, len(content), size=8):
            content[position] = rng.integers(0, 256)
        (tmp_path / "a").write_bytes(bytes(content[: rng.integers(1, len(content) + 1)]))
        try:
            check_image(tmp_path / "a", LIMIT)
        except ImageError:
            refused += 1
    assert refused


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    draw_image(tmp_path / "data" / "images" / "a.png")
    draw_image(tmp_path / "outside.png")
    folder = tmp_path / "data" / "images"
    (folder / "inside.png").symlink_to("a.png")
    (folder / "escape.png").symlink_to(tmp_path / "outside.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "folder").symlink_to(tmp_path)
    return tmp_path / "data"


@pytest.mark.parametrize("name", ["a.png", "./a.png", "inside.png"])
def test_paths_inside_the_dataset_resolve(name: str, dataset: Path):
    assert resolve_image(dataset, dataset / "images", name) == (dataset / "images" / "a.png").resolve()


def test_the_dataset_may_itself_lie_behind_a_link(dataset: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(dataset)
    assert resolve_image(tmp_path / "link", tmp_path / "link" / "images", "a.png").name == "a.png"


def test_a_config_map_s_files_are_links_inside_the_dataset(tmp_path: Path):
    """Kubernetes mounts NAME -> ..data/NAME and ..data -> a folder with a time in its name, changed in one step."""
    draw_image(tmp_path / "..2026_11_24" / "a.png")
    (tmp_path / "..data").symlink_to("..2026_11_24")
    (tmp_path / "a.png").symlink_to("..data/a.png")
    assert resolve_image(tmp_path, tmp_path, "a.png").is_file()
    assert resolve_image(tmp_path, tmp_path, "..data/a.png").is_file()


@pytest.mark.parametrize(("name", "message"), [
    ("/etc/passwd", "without a leading /"), ("../images/a.png", "without .. parts"), ("x/../a.png", "without .. parts"),
    ("", "must be a path"), (".", "must be a path"),
    ("escape.png", "leads outside the dataset through a symbolic link"),
    ("folder/outside.png", "leads outside the dataset"), ("missing.png", "does not exist"),
    ("loop.png", "no usable path|does not exist"), ("a\0.png", "no usable path"), ("x" * 300, "no usable path"),
    ("a.png/b.png", "does not exist"),
])  # fmt: skip
def test_paths_that_lead_elsewhere_are_refused(name: str, message: str, dataset: Path):
    with pytest.raises(ImageError, match=message):
        resolve_image(dataset, dataset / "images", name)


@pytest.mark.parametrize(("name", "archive", "target"), [
    ("", "images.zip", "images"), ("scans", "scans.tar.gz", "scans"), ("a/scans/", "a/scans.tgz", "a/scans"),
    ("", "notes.txt", None), ("images", "images.zip", None),
])  # fmt: skip
def test_images_that_are_not_there_may_lie_in_an_archive(name: str, archive: str, target: str | None, dataset: Path):
    """An archive on a claim is not unpacked: the claim is only read. Beside the folder it says nothing."""
    (dataset / archive).parent.mkdir(exist_ok=True)
    (dataset / archive).write_bytes(b"PK")
    hint = f"; {archive} lies there: unpack it to a folder {target} and set dataset.images to {target}"
    with pytest.raises(ImageError) as caught:
        ImageFolder(root=dataset, name=name).resolve("missing.png")
    assert str(caught.value) == "does not exist" + (hint if target else "")


def test_a_folder_of_images_that_is_not_there_is_told(dataset: Path):
    with pytest.raises(ImageError, match=r"^does not exist; dataset\.images is scans, but the dataset holds .*images/"):
        ImageFolder(root=dataset, name="scans").resolve("missing.png")


def test_a_folder_is_no_image(dataset: Path):
    with pytest.raises(ImageError, match="is not a file"):
        resolve_image(dataset, dataset, "images")


def test_aspect_ratio_is_the_processing_s(toy_processor: Processor):
    assert toy_processor.image_processor.do_pad is True
    assert replace(toy_processor, aspect_ratio="square").aspect_ratio == "square"
