"""Adam whose steps are not lost when weights have 8 bits of precision, and what a checkpoint holds of it."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")  # torch's names for Adam's running means of the gradient and of its square


def sum_in_float32(parameters: Iterable[nn.Parameter]) -> None:
    """From here on their gradients are float32, whatever they are themselves: in bfloat16 what a micro-batch adds to
    the sum of 256 before it would be rounded away."""
    for parameter in parameters:
        parameter.grad_dtype = torch.float32


class MasterAdamW(torch.optim.AdamW):
    """AdamW on float32 copies of weights that are bfloat16; what it makes of them is rounded into the weights.

    In bfloat16 a step below 1/256 of a weight changes nothing: at a learning rate of 1e-6 nearly all steps are lost.
    Micikevicius et al. 2017, https://arxiv.org/abs/1710.03740, section 3.1. The copy is part of the state ("master");
    torch's load_state_dict would round it to the type of the weights: `load_tensors` does not.
    """

    @torch.no_grad()
    def step(self, closure=None):
        """One step of AdamW. Weights that are float32 already have no copy."""
        loss = closure() if closure is not None else None
        low = {p: p.dtype for p in self._parameters() if p.grad is not None and p.dtype is not torch.float32}
        masters = {p: self.state[p].pop("master", None) if p in self.state else None for p in low}
        for parameter, master in masters.items():
            gradient, parameter.grad = parameter.grad, None
            parameter.data = parameter.data.float() if master is None else master
            parameter.grad = gradient.float()
        super().step()
        for parameter, dtype in low.items():
            self.state[parameter]["master"] = parameter.data
            parameter.grad = None
            parameter.data = parameter.data.to(dtype)
        return loss

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]


def tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Weights and Adam's state of these parameters by name: all that a checkpoint needs.

    A weight is float32 where Adam has a float32 copy of it, as it is out of DeepSpeed (rlhf/engines/zero.py).
    """
    found = {}
    for name, parameter in parameters.items():
        state = dict(optimizer.state.get(parameter, {}))
        found[f"weight.{name}"] = state.pop("master", parameter.detach())
        found |= {f"{key}.{name}": value for key, value in state.items()}
    return found


@torch.no_grad()
def load_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], saved: Mapping[str, Tensor]
) -> None:
    """Restores what `tensors` gave, here or in rlhf/engines/zero.py. Raises KeyError when a weight is missing."""
    for name, parameter in parameters.items():
        weight = saved[f"weight.{name}"]
        parameter.copy_(weight)
        if f"step.{name}" not in saved:  # before the first step
            continue
        found = {key: saved[f"{key}.{name}"] for key in MOMENTS}
        if parameter.dtype is not torch.float32:
            found["master"] = weight
        state = {key: value.to(parameter.device, torch.float32, copy=True) for key, value in found.items()}
        optimizer.state[parameter] = {"step": placed_step(optimizer, saved[f"step.{name}"], parameter), **state}


def placed_step(optimizer: torch.optim.Optimizer, step: Tensor, parameter: Tensor) -> Tensor:
    """A copy of Adam's count of steps where it keeps it: on the CPU, or beside the weights for its fused kernel."""
    return step.to(parameter.device if optimizer.defaults.get("fused") else "cpu", copy=True)
