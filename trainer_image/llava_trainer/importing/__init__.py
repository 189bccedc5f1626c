"""Models that are not in hub layout made into it: the original code's checkpoints, and parts put together.

Nothing here trains, downloads or runs anything that came with a model.
"""

from llava_trainer.importing.conversion import import_model
from llava_trainer.importing.parts import ImportedModel, ModelParts, is_hub_layout

__all__ = ["ImportedModel", "ModelParts", "import_model", "is_hub_layout"]
