"""What trains a model: forward, backward, step. Plain PyTorch in one process."""

import torch
from torch import Tensor, nn

from rlhf.errors import NumericsError


class TorchEngine:
    """A module with its Adam optimizer and its gradient clipping.

    Adam with eps 1e-5 and no weight decay is what PPO for language models is tuned for (Huang et al. 2024,
    https://arxiv.org/abs/2403.17031, detail 18).
    """

    def __init__(self, name: str, module: nn.Module, learning_rate: float, adam_eps: float, max_grad_norm: float):
        self.name, self.module = name, module
        self.peak_learning_rate, self.max_grad_norm = learning_rate, max_grad_norm
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=learning_rate, eps=adam_eps, weight_decay=0.0)

    def __call__(self, *args, **kwargs):
        """The training forward, in training mode, where alone gradient checkpointing acts. Rollouts use `module`."""
        self.module.train()
        try:
            return self.module(*args, **kwargs)
        finally:
            self.module.eval()

    def set_learning_rate(self, share: float) -> None:
        """The learning rate of the next steps, as a share of its peak."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak_learning_rate * share

    @property
    def learning_rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of one micro-batch."""
        loss.backward()

    def step(self) -> float:
        """Applies the gradients and forgets them; returns their norm before clipping.

        Raises NumericsError before any weight changes when a gradient is not finite.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm).item()
        if not torch.isfinite(torch.tensor(norm)):
            raise NumericsError(f"the gradient of the {self.name} is {norm}; its weights were left as they were")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """Weights and optimizer moments, by name. Tied weights appear once."""
        state = {f"module.{name}": p.detach() for name, p in self.module.named_parameters()}
        for i, moments in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{i}.{name}": value for name, value in moments.items()}
        return state

    def load_tensors(self, state: dict[str, Tensor]) -> None:
        """Restores what `tensors` gave. Raises KeyError when a weight is missing."""
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                parameter.copy_(state[f"module.{name}"])
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            if key.startswith("optimizer."):
                _, i, name = key.split(".")
                moments.setdefault(int(i), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
