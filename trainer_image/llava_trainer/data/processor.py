"""Tokenizer and image processor of a checkpoint, set up as LLaVA trains, and their export beside a tuned model.

The hub's usual processor cuts the centre out of an image and its chat template leaves the system text out, so that
what is served would differ from what was trained. The processor made here is the one that trains, evaluates and is
exported. Knows nothing about models, samples or batches.

No Auto class: those follow what a checkpoint's files name, its own code included (``data.model_config``).
"""

import json
import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import LlavaConfig, LlavaProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from llava_api.failures import Reason
from llava_trainer.data.model_config import CODE_KEY, NO_CODE, load_config, read_settings, refusing
from llava_trainer.data.template import END_OF_ANSWER, IMAGE_MARKER, chat_template
from llava_trainer.errors import StageError

AspectRatio = Literal["pad", "square"]

logger = logging.getLogger(__name__)

NUM_CLASS_TOKENS = 1
"""Tokens that CLIP's tower puts before those of the patches; LlavaProcessor's default of 0 gives one too few."""

TOKENIZER_CONFIG = "tokenizer_config.json"
_TOKENIZER_FILES = (
    "tokenizer.json", TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
)  # fmt: skip
PROCESSOR_FILES = frozenset(
    {*_TOKENIZER_FILES, "chat_template.jinja", "processor_config.json", "preprocessor_config.json"}
)
"""What ``save_processor`` writes."""
_IMAGE_PROCESSOR_KEYS = ("image_processor_type", "feature_extractor_type")
_IMAGE_PROCESSORS = frozenset({"CLIPImageProcessor", "CLIPFeatureExtractor", "LlavaImageProcessor"})
"""What they may be, but for Fast and Pil behind it: the same but for padding, which is set here."""
_AFTER_IMAGE = ("\nWhat is this?", "\n", "a caption\n")
"""What comes after an image: a question, another image, a caption."""


@dataclass(frozen=True, kw_only=True)
class Processor:
    """What turns text into token ids and images into pixels, for one checkpoint.

    Attributes:
        model_dir: checkpoint that it comes from; its tokenizer files are exported as they are.
        tokenizer: the checkpoint's own, a fast one, untouched. Whoever pads names the side: right for training,
            left for generation.
        image_processor: pads (or cuts) to a square, resizes and normalises; PIL backend.
        image_token_id: id of ``<image>``, the same for tokenizer and model.
        tokens_per_image: tokens that an image takes in a sequence.
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


def load_processor(model_dir: Path, image_aspect_ratio: AspectRatio) -> Processor:
    """Load tokenizer and image processor of the checkpoint in ``model_dir``.

    Raises:
        StageError: InvalidModel, naming the file and what is wrong with it.
    """
    config = load_config(model_dir)
    tokenizer = _load_tokenizer(model_dir, config)
    vision = config.vision_config
    strategy = config.vision_feature_select_strategy
    num_patches = (vision.image_size // vision.patch_size) ** 2
    return Processor(
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


def save_processor(processor: Processor, folder: Path) -> None:
    """Write the processor into a model's folder, so that plain AutoProcessor and AutoTokenizer load it.

    The tokenizer's files are the checkpoint's own, byte for byte, but for chat templates, which would compete with
    ours, and for names of code. ``preprocessor_config.json`` says the same as
    ``processor_config.json``, for servers that read the older file.
    """
    LlavaProcessor(
        image_processor=processor.image_processor,
        tokenizer=processor.tokenizer,
        patch_size=processor.patch_size_px,
        vision_feature_select_strategy=processor.select_strategy,
        num_additional_image_tokens=NUM_CLASS_TOKENS,
        chat_template=chat_template(processor.gap),
    ).save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    for name in _TOKENIZER_FILES:
        if (processor.model_dir / name).is_file():
            shutil.copyfile(processor.model_dir / name, folder / name)
    settings_file = folder / "tokenizer_config.json"
    settings = read_settings(settings_file)
    if dropped := [key for key in ("chat_template", CODE_KEY) if settings.pop(key, None) is not None]:
        logger.info("left out of the tokenizer's settings: %s", ", ".join(dropped))
        settings_file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _load_tokenizer(model_dir: Path, config: LlavaConfig) -> TokenizersBackend:
    # From tokenizer.model transformers 5 would make another one than LLaVA's: importing.vocabulary converts that.
    path = model_dir / "tokenizer.json"
    read_settings(path)
    read_settings(model_dir / "tokenizer_config.json")
    with refusing(path):
        # What AutoTokenizer takes for a LLaVA, whatever its tokenizer_class; with an auto_map it would take another.
        tokenizer = TokenizersBackend.from_pretrained(model_dir, **NO_CODE)
        # Some of what the file says is only looked at when a text is cut.
        tokenizer(IMAGE_MARKER)
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
    # Templates of the checkpoint are programs for whoever serves it: they are neither run here nor handed on.
    tokenizer.chat_template = None
    return tokenizer


def _find_gap(tokenizer: TokenizersBackend, path: Path) -> str:
    """Find what must stand behind ``<image>`` for the text there to have the ids that it has by itself."""
    marker = tokenizer.convert_tokens_to_ids(IMAGE_MARKER)
    for gap in ("", " "):
        if all(
            tokenizer(f"{IMAGE_MARKER}{gap}{text}", add_special_tokens=False).input_ids
            == [marker, *tokenizer(text, add_special_tokens=False).input_ids]
            for text in _AFTER_IMAGE
        ):
            return gap
    raise _invalid(
        f"{path}: a text after {IMAGE_MARKER} has other ids than by itself, and LLaVA tokenises it by itself: take the "
        "tokenizer of a LLaVA v1.5 checkpoint"
    )


def _load_image_processor(model_dir: Path, config: LlavaConfig, aspect_ratio: AspectRatio) -> LlavaImageProcessorPil:
    path = _check_image_processor(model_dir)
    size_px = config.vision_config.image_size
    try:
        found = LlavaImageProcessorPil.from_pretrained(model_dir, **NO_CODE)
        crop = (found.crop_size.height, found.crop_size.width)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _invalid(f"{path} cannot be used: {error}") from error
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


def _check_image_processor(model_dir: Path) -> Path:
    """Check which class the image processor's settings are written for; returns the file that transformers reads."""
    path, inside = model_dir / "processor_config.json", "image_processor"
    settings = read_settings(path).get(inside) if path.is_file() else None
    if settings is None:
        if (older := model_dir / "preprocessor_config.json").is_file():
            path = older
        settings, inside = read_settings(path), ""
    elif not isinstance(settings, dict):
        raise _invalid(f"{path}: {inside} is {settings!r:.100}, not an object")
    where = f"{path}: {inside}{'.' if inside else ''}"
    names = {key: settings[key] for key in _IMAGE_PROCESSOR_KEYS if settings.get(key) is not None}
    for key, name in names.items():
        if not isinstance(name, str) or re.sub("(Fast|Pil)$", "", name) not in _IMAGE_PROCESSORS:
            raise _invalid(
                f"{where}{key} is {name!r:.100}, not one of {', '.join(sorted(_IMAGE_PROCESSORS))}: LLaVA v1.5's image "
                "processor is CLIP's, and code of a checkpoint is never run"
            )
    if not names and (code := settings.get(CODE_KEY)) is not None:
        raise _invalid(
            f"{where}{CODE_KEY} is {code!r:.100}, and no {_IMAGE_PROCESSOR_KEYS[0]} says which class of transformers "
            "to take: code of a checkpoint is never run; set it to CLIPImageProcessor if it is CLIP's"
        )
    return path


def _invalid(message: str) -> StageError:
    return StageError(Reason.INVALID_MODEL, message)
