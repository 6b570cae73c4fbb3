"""What training changes in a model, taken out of whatever trains it and put back: weights and Adam's state.

`holder` has Adam's state: torch's optimizer itself, or DeepSpeed's engine, which shares it out between the ranks. Both
give and take the same whole tensors by name, so that a checkpoint of one fits the other, on any number of ranks.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rlhf.engines import adam, zero


def take_out(holder, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """This rank's share of the weights and of Adam's state, each tensor whole, by name: all that a checkpoint needs.

    Shared out, so that all ranks write at once.
    """
    if isinstance(holder, torch.optim.Optimizer):
        return adam.tensors(holder, parameters)
    return zero.own_tensors(holder, parameters)


def put_back(holder, parameters: Mapping[str, nn.Parameter], saved: Mapping[str, Tensor]) -> None:
    """Restores what `take_out` gave on all ranks; weights alone where there is no more. KeyError: one is missing."""
    if isinstance(holder, torch.optim.Optimizer):
        adam.load_tensors(holder, parameters, saved)
    else:
        zero.load_tensors(holder, parameters, saved)
