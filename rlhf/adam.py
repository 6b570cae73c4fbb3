"""Adam whose steps are not lost when weights have 8 bits of precision."""

import torch


class MasterAdamW(torch.optim.AdamW):
    """AdamW on float32 copies of weights that are bfloat16; what it makes of them is rounded into the weights.

    In bfloat16 a step below 1/256 of a weight changes nothing: at a learning rate of 1e-6 nearly all steps are lost.
    Micikevicius et al. 2017, https://arxiv.org/abs/1710.03740, section 3.1. The copy is part of the state ("master").
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

    def load_state_dict(self, state_dict: dict) -> None:
        """As torch's, which would round the float32 state to the type of the weights."""
        super().load_state_dict(state_dict)
        for number, parameter in enumerate(self._parameters()):
            for key, value in state_dict["state"].get(number, {}).items():
                if torch.is_tensor(value) and key != "step":
                    self.state[parameter][key] = value.to(parameter.device, torch.float32, copy=True)

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]
