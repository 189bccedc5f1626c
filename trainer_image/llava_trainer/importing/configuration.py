"""config.json in hub layout, from what the original code (or Llama and CLIP by themselves) say."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava_api.failures import Reason
from llava_trainer.data.model_config import read_settings
from llava_trainer.errors import StageError
from llava_trainer.importing.tower import Tower

ROW_MULTIPLE = 64
"""The hub's converter makes the vocabulary a multiple of this."""
_LLAMA_KEYS = (
    "attention_bias", "bos_token_id", "eos_token_id", "head_dim", "hidden_act", "hidden_size", "initializer_range",
    "intermediate_size", "max_position_embeddings", "mlp_bias", "num_attention_heads", "num_hidden_layers",
    "num_key_value_heads", "rms_norm_eps", "rope_parameters", "rope_scaling", "rope_theta",
)  # fmt: skip
_STRATEGIES = {"patch": "default", "cls_patch": "full"}
_V15_FEATURE_LAYER = -2
# What a LLaVA v1.5 has switched off; each would need something that the hub's layout does not have.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "mm_use_im_start_end": (None, False),
    "mm_patch_merge_type": (None, "flat"),
    "mm_resampler_type": (None,),
    "image_aspect_ratio": (None, "pad", "square"),
    "s2": (None, False),
}


def read_original(path: Path) -> dict[str, Any]:
    """Settings of a LLaVA of the original code (``mm_*`` keys beside Llama's).

    Raises:
        StageError: InvalidModel, naming a setting that is not LLaVA v1.5's.
    """
    settings = read_settings(path)
    for key, allowed in _UNSUPPORTED.items():
        if settings.get(key) not in allowed:
            raise _invalid(f"{path}: {key} is {settings[key]!r}: only LLaVA v1.5 checkpoints are converted")
    projector = settings.get("mm_projector_type", "linear")
    if projector != "mlp2x_gelu":
        raise _invalid(
            f"{path}: mm_projector_type is {projector!r} (what the original code takes where it was left out is "
            "'linear'), but LLaVA v1.5's projector is 'mlp2x_gelu': correct it if the weights hold mm_projector.0 and "
            "mm_projector.2"
        )
    tower = settings.get("mm_vision_tower")
    if not isinstance(tower, str | None):
        raise _invalid(f"{path}: mm_vision_tower is {tower!r:.100}, not the name of one vision tower")
    strategy = settings.get("mm_vision_select_feature", "patch")
    if not isinstance(strategy, str) or strategy not in _STRATEGIES:
        raise _invalid(f"{path}: mm_vision_select_feature is {strategy!r}, not one of {', '.join(_STRATEGIES)}")
    return settings


def build_config(
    llama: Mapping[str, Any], original: Mapping[str, Any], tower: Tower, *,
    rows: int, image_token_id: int, pad_token_id: int, dtype: str,
) -> dict[str, Any]:  # fmt: skip
    """Build config.json.

    Args:
        llama: settings of the language model.
        original: ``mm_*`` settings; LLaVA v1.5's own for what is missing.
        tower: the vision tower.
        rows: rows of embedding and head.
        image_token_id: id of ``<image>``.
        pad_token_id: id of the pad token.
        dtype: number format of the language model's weights.
    """
    text = {key: llama[key] for key in _LLAMA_KEYS if llama.get(key) is not None}
    strategy = _STRATEGIES[original.get("mm_vision_select_feature", "patch")]
    patches = (tower.image_px // int(tower.settings["patch_size"])) ** 2
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "dtype": dtype,
        "torch_dtype": dtype,
        "ignore_index": -100,
        "image_seq_length": patches + (strategy == "full"),
        "image_token_index": image_token_id,
        "multimodal_projector_bias": True,
        "pad_token_id": pad_token_id,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": False,
        "text_config": {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", **text, "pad_token_id": pad_token_id,
            "tie_word_embeddings": False, "vocab_size": rows,
        },
        "vision_config": tower.settings,
        "vision_feature_layer": original.get("mm_vision_select_layer", _V15_FEATURE_LAYER),
        "vision_feature_select_strategy": strategy,
    }  # fmt: skip


def round_up_rows(rows: int) -> int:
    """Rows of embedding and head: the next multiple of ROW_MULTIPLE."""
    return -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE


def _invalid(message: str) -> StageError:
    return StageError(Reason.INVALID_MODEL, message)
