"""Whether flash-attn is there. Apart from everything else, because asking must not import it, or torch."""

import importlib.util


def has_flash_attention() -> bool:
    """Whether flash-attn is installed; on which GPUs it works is another question."""
    return importlib.util.find_spec("flash_attn") is not None
