"""Tokenizer and image processor of a checkpoint, set up as LLaVA trains, and their export beside a tuned model.

The hub's usual processor cuts the centre out of a picture and its chat template leaves the system text out, so that
what is served would differ from what was trained. The processor made here is the one that trains, evaluates and is
exported. Knows nothing about models, samples or batches.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, LlavaConfig, LlavaProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from llava_api.failures import Reason
from llava_trainer.data.template import END_OF_ANSWER, IMAGE_MARKER, chat_template
from llava_trainer.errors import StageError

AspectRatio = Literal["pad", "square"]

NUM_CLASS_TOKENS = 1
"""Tokens that CLIP's tower puts before those of the patches; LlavaProcessor's default of 0 gives one too few."""

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
)  # fmt: skip


_AFTER_PICTURE = ("\nWhat is this?", "\n", "a caption\n")
"""What comes after a picture: a question, another picture, a caption."""


@dataclass(frozen=True, kw_only=True)
class Processing:
    """What turns text into token ids and pictures into pixels, for one checkpoint.

    Attributes:
        model_dir: checkpoint that it comes from; its tokenizer files are exported as they are.
        tokenizer: the checkpoint's own, a fast one, untouched. Whoever pads names the side: right for training,
            left for generation.
        image_processor: pads (or cuts) to a square, resizes and normalises; PIL backend.
        image_token_id: id of ``<image>``, the same for tokenizer and model.
        tokens_per_image: tokens that a picture takes in a sequence.
        image_size_px: width and height that the vision tower sees.
        patch_size_px: width and height of the tower's patches.
        select_strategy: which of the tower's tokens the model takes: ``default`` drops the class token.
        gap: what stands between ``<image>`` and the text after it, so that this has the ids that LLaVA gives it.
    """

    model_dir: Path
    tokenizer: TokenizersBackend
    image_processor: LlavaImageProcessorPil
    aspect_ratio: AspectRatio
    image_token_id: int
    tokens_per_image: int
    image_size_px: int
    patch_size_px: int
    select_strategy: str
    gap: str = ""

    @property
    def bos_token_id(self) -> int | None:
        """Id of the token that begins every sequence, if the tokenizer has one."""
        bos: int | None = self.tokenizer.bos_token_id
        return bos

    @property
    def eos_token_id(self) -> int:
        """Id of ``</s>``, which ends every answer."""
        eos: int = self.tokenizer.eos_token_id
        return eos

    @property
    def pad_token_id(self) -> int:
        """Id that batches are filled up with: the checkpoint's own pad token, else its unk token as in LLaVA."""
        candidates: tuple[int | None, ...] = (self.tokenizer.pad_token_id, self.tokenizer.unk_token_id)
        return next((found for found in candidates if found is not None), self.eos_token_id)


def load_processing(model_dir: Path, image_aspect_ratio: AspectRatio) -> Processing:
    """Load tokenizer and image processor of the checkpoint in ``model_dir``.

    Raises:
        StageError: InvalidModel, naming the file and what is wrong with it.
    """
    config = load_config(model_dir)
    tokenizer = _load_tokenizer(model_dir, config)
    vision = config.vision_config
    strategy = config.vision_feature_select_strategy
    num_patches = (vision.image_size // vision.patch_size) ** 2
    return Processing(
        model_dir=model_dir,
        tokenizer=tokenizer,
        image_processor=_load_image_processor(model_dir, config, image_aspect_ratio),
        aspect_ratio=image_aspect_ratio,
        image_token_id=config.image_token_id,
        tokens_per_image=num_patches + (0 if strategy == "default" else NUM_CLASS_TOKENS),
        image_size_px=vision.image_size,
        patch_size_px=vision.patch_size,
        select_strategy=strategy,
        gap=_find_gap(tokenizer, model_dir / "tokenizer.json"),
    )


def save_processing(processing: Processing, folder: Path) -> None:
    """Write the processor into a model's folder, so that plain AutoProcessor and AutoTokenizer load it.

    The tokenizer's files are the checkpoint's own, byte for byte, but for a chat template inside them, which would
    compete with ours. ``preprocessor_config.json`` says the same as ``processor_config.json``, for servers that
    read the older file. The chat template begins without ``<s>``, like the hub's: the tokenizer puts it there.
    """
    LlavaProcessor(
        image_processor=processing.image_processor,
        tokenizer=processing.tokenizer,
        patch_size=processing.patch_size_px,
        vision_feature_select_strategy=processing.select_strategy,
        num_additional_image_tokens=NUM_CLASS_TOKENS,
        chat_template=chat_template(processing.gap),
    ).save_pretrained(folder)
    processing.image_processor.save_pretrained(folder)
    for name in _TOKENIZER_FILES:
        if (processing.model_dir / name).is_file():
            shutil.copyfile(processing.model_dir / name, folder / name)
    settings_file = folder / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text(encoding="utf-8"))
    if settings.pop("chat_template", None) is not None:
        settings_file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def load_config(model_dir: Path) -> LlavaConfig:
    """Read ``config.json`` and check that it is a LLaVA of CLIP and Llama.

    Raises:
        StageError: InvalidModel, naming the key and its value.
    """
    path = model_dir / "config.json"
    settings = read_settings(path)
    wanted = (("model_type", "llava"), ("vision_config.model_type", "clip_vision_model"),
              ("text_config.model_type", "llama"))  # fmt: skip
    for key, value in wanted:
        found = _look_up(settings, key)
        if found != value:
            fix = "spec.model.source must be a LLaVA v1.5 checkpoint in the hub's layout"
            if str(found).startswith("llava_"):
                fix += "; the layout of the original code is another one, and prepare converts it"
            raise _invalid(f"{path}: {key} is {found!r}, not {value!r}: {fix}")
    try:
        config = AutoConfig.from_pretrained(model_dir, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise _invalid(f"{path} cannot be used: {error}") from error
    for key in ("image_size", "patch_size"):
        value = getattr(config.vision_config, key)
        if not isinstance(value, int) or value < 1:
            raise _invalid(f"{path}: vision_config.{key} is {value!r}, not a number of pixels")
    if config.vision_feature_select_strategy not in ("default", "full"):
        raise _invalid(f"{path}: vision_feature_select_strategy is {config.vision_feature_select_strategy!r}, "
                       "not 'default' or 'full'")  # fmt: skip
    _check_layers(config, path)
    return config


def _check_layers(config: LlavaConfig, path: Path) -> None:
    layers = config.vision_feature_layer
    depth = config.vision_config.num_hidden_layers
    chosen = layers if isinstance(layers, list | tuple) else [layers]
    if not chosen or any(type(one) is not int or not -depth - 1 <= one <= depth for one in chosen):
        raise _invalid(
            f"{path}: vision_feature_layer is {layers!r}, but the vision tower has hidden states 0 to {depth} (-1 is "
            "the last)"
        )


def read_settings(path: Path) -> dict[str, Any]:
    """Read a JSON object that belongs to a model.

    Raises:
        StageError: InvalidModel; the file is missing or no JSON object.
    """
    try:
        settings = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise _invalid(f"{path} does not exist: spec.model.source must be the checkpoint's own folder") from error
    except (OSError, ValueError, RecursionError) as error:
        raise _invalid(f"{path} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise _invalid(f"{path} holds no JSON object")
    return settings


def _load_tokenizer(model_dir: Path, config: LlavaConfig) -> TokenizersBackend:
    # From tokenizer.model transformers 5 would make another one than LLaVA's: importing.vocabulary converts that.
    path = model_dir / "tokenizer.json"
    read_settings(path)
    read_settings(model_dir / "tokenizer_config.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _invalid(f"{path} cannot be used: {error}") from error
    vocabulary = tokenizer.get_vocab()
    if vocabulary.get(IMAGE_MARKER) != config.image_token_id:
        raise _invalid(
            f"{path}: {IMAGE_MARKER} has id {vocabulary.get(IMAGE_MARKER)}, but config.json's image_token_index is "
            f"{config.image_token_id}: take tokenizer and configuration from the same checkpoint"
        )
    if tokenizer.eos_token != END_OF_ANSWER:
        raise _invalid(
            f"{path}: the end-of-sequence token is {tokenizer.eos_token!r}, but LLaVA v1.5 ends answers with "
            f"{END_OF_ANSWER}: take the tokenizer of a LLaVA v1.5 checkpoint"
        )
    num_embeddings = config.text_config.vocab_size
    if (largest := max(vocabulary.values())) >= num_embeddings:
        raise _invalid(
            f"{path}: token {tokenizer.convert_ids_to_tokens(largest)!r} has id {largest}, but the model has "
            f"{num_embeddings} embeddings: take tokenizer and configuration from the same checkpoint"
        )
    return tokenizer


def _find_gap(tokenizer: TokenizersBackend, path: Path) -> str:
    """Find what must stand behind ``<image>`` for the text there to have the ids that it has by itself."""
    marker = tokenizer.convert_tokens_to_ids(IMAGE_MARKER)
    for gap in ("", " "):
        if all(
            tokenizer(f"{IMAGE_MARKER}{gap}{text}", add_special_tokens=False).input_ids
            == [marker, *tokenizer(text, add_special_tokens=False).input_ids]
            for text in _AFTER_PICTURE
        ):
            return gap
    raise _invalid(
        f"{path}: a text after {IMAGE_MARKER} has other ids than by itself, and LLaVA tokenises it by itself: take the "
        "tokenizer of a LLaVA v1.5 checkpoint"
    )


def _load_image_processor(model_dir: Path, config: LlavaConfig, aspect_ratio: AspectRatio) -> LlavaImageProcessorPil:
    path = model_dir / "preprocessor_config.json"
    if not path.is_file():
        path = model_dir / "processor_config.json"
    read_settings(path)
    try:
        found = AutoImageProcessor.from_pretrained(model_dir, local_files_only=True, backend="pil")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _invalid(f"{path} cannot be used: {error}") from error
    size_px = config.vision_config.image_size
    crop = (found.crop_size.height, found.crop_size.width)
    if crop != (size_px, size_px):
        raise _invalid(
            f"{path}: crop_size is {crop[0]} x {crop[1]}, but config.json's vision tower sees {size_px} px: take "
            "the processor files of the same checkpoint"
        )
    return LlavaImageProcessorPil(
        size={"shortest_edge": size_px},
        crop_size={"height": size_px, "width": size_px},
        resample=found.resample,
        image_mean=found.image_mean,
        image_std=found.image_std,
        rescale_factor=found.rescale_factor,
        do_pad=aspect_ratio == "pad",
    )


def _look_up(settings: dict[str, Any], key: str) -> Any:
    found: Any = settings
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _invalid(message: str) -> StageError:
    return StageError(Reason.INVALID_MODEL, message)
