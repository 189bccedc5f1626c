"""What can be served of a checkpoint, made from the slices in it: no process has to hand anything over for it.

The fp32 originals, rounded, are the weights that the model has, so nothing is gathered over the processes for it, and
it is written while training goes on.
"""

from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict

from llava_trainer.model.projector import projector_parameters
from llava_trainer.training.adapter import write_adapter
from llava_trainer.training.artifacts import write_projector
from llava_trainer.training.checkpoint import StoredOptimizer
from llava_trainer.training.model_under_training import ModelUnderTraining

ADAPTER_FOLDER = "adapter"
PROJECTOR_FOLDER = "projector"


def write_servable(model: ModelUnderTraining, stored: StoredOptimizer, folder: Path) -> None:
    """Write the adapter with its projector, or the projector alone, below a checkpoint's folder.

    Weights that are trained whole are not written a second time: the slices are they.

    Raises:
        OSError: it cannot be written.
    """
    names = {id(parameter): name for name, parameter in model.named_trainable().items()}

    def read(parameter: torch.nn.Parameter) -> torch.Tensor:
        return stored.read_whole("original", names[id(parameter)]).to(model.dtype)

    tuned = model.tuned
    if isinstance(tuned, PeftModel):
        learned = {name: read(parameter) for name, parameter in tuned.named_parameters() if parameter.requires_grad}
        weights = get_peft_model_state_dict(tuned, state_dict=learned, save_embedding_layers=False)
        write_adapter(tuned, weights, folder / ADAPTER_FOLDER)
    elif model.phase.method == "projector":
        weights = {name: read(parameter) for name, parameter in projector_parameters(model.llava).items()}
        write_projector(model.llava, weights, folder / PROJECTOR_FOLDER)
