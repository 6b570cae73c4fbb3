"""What trains a model: forward, backward, step. Plain PyTorch in one process, DeepSpeed under the launcher.

Both sum the gradients of all micro-batches, of all ranks, that come between two steps: a loss that is weighted by its
share of the whole minibatch gives the same step however the minibatch was split.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rlhf import distributed
from rlhf.engines import adam, zero
from rlhf.engines.deepspeed_config import deepspeed_config
from rlhf.engines.training_state import put_back, take_out
from rlhf.errors import NumericsError

Tensors = dict[str, Tensor]


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name; tied weights appear once."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def make_adam(
    parameters: Mapping[str, nn.Parameter], learning_rate: float, eps: float, offload: bool = False
) -> torch.optim.Optimizer:
    """Adam without weight decay; its eps of 1e-5 is what PPO for language models is tuned for.

    offload: DeepSpeed's Adam, which works where the state lives, in CPU memory.
    Huang et al. 2024, https://arxiv.org/abs/2403.17031, detail 18.
    """
    options = {"lr": learning_rate, "eps": eps, "weight_decay": 0.0}
    if offload:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(list(parameters.values()), **options)
    return adam.MasterAdamW(parameters.values(), **options)


class Engine:
    """What both engines have alike. module: what rollouts call; parameters: those that train; optimizer: their Adam."""

    def __init__(self, name: str, module: nn.Module, learning_rate: float):
        self.name, self.module, self.peak_learning_rate = name, module, learning_rate
        self.parameters = trainable_parameters(module)
        self.num_forwards = self.num_backwards = 0  # so far, of this process

    def __call__(self, *args, **kwargs):
        """The training forward, in training mode, where alone gradient checkpointing acts. Rollouts use `module`."""
        self.num_forwards += 1
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

    @property
    def holder(self) -> torch.optim.Optimizer | nn.Module:
        """What has Adam's state (rlhf/engines/training_state.py)."""
        return self.optimizer

    def tensors(self) -> Tensors:
        """This rank's share of the trainable weights and of Adam's state, by name: all that a checkpoint needs."""
        return take_out(self.holder, self.parameters)

    def load_tensors(self, state: Mapping[str, Tensor]) -> None:
        """Restores what the `tensors` of all ranks gave. Raises KeyError when a weight is missing."""
        put_back(self.holder, self.parameters, state)


class TorchEngine(Engine):
    """A module with its Adam optimizer and its gradient clipping, in one process."""

    def __init__(self, name: str, module: nn.Module, learning_rate: float, adam_eps: float, max_grad_norm: float):
        super().__init__(name, module, learning_rate)
        self.max_grad_norm = max_grad_norm
        self.optimizer = make_adam(self.parameters, learning_rate, adam_eps)
        adam.sum_in_float32(self.parameters.values())

    def backward(self, loss: Tensor, is_last: bool = True) -> None:
        """Adds the gradient of one micro-batch. is_last: a step follows."""
        self.num_backwards += 1
        loss.backward()

    def step(self) -> float:
        """Applies the gradients and forgets them; returns their norm before clipping.

        Raises NumericsError before any weight changes when a gradient is not finite.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.max_grad_norm).item()
        require_finite(self.name, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def weights(self) -> Tensors:
        """Copies of the trainable weights, on the CPU."""
        return {name: p.detach().to("cpu", copy=True) for name, p in self.parameters.items()}

    def each_weight(self) -> Iterator[tuple[str, Tensor]]:
        """The trainable weights one after the other, not copied: the optimizer's float32 ones where it has them."""
        states = ((name, p, self.optimizer.state.get(p, {})) for name, p in self.parameters.items())
        return ((name, state.get("master", p).detach()) for name, p, state in states)

    @contextmanager
    @torch.no_grad()
    def using(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """The module has these weights inside, and its own again afterwards, to the bit."""
        own = self.weights()
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])
        try:
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.copy_(own[name])


class DeepspeedEngine(Engine):
    """The same on any number of ranks, with what ZeRO shares out between them. Every call is made by all ranks."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        learning_rate: float,
        adam_eps: float,
        max_grad_norm: float,
        options,
        micro_batch_size: int,
    ):
        import deepspeed

        super().__init__(name, module, learning_rate)
        self.zero_stage = options.zero_stage
        self.dtype = lowest_dtype(self.parameters.values())  # a scalar head is float32 on any trunk
        self.module, *_ = deepspeed.initialize(
            model=module,
            optimizer=make_adam(self.parameters, learning_rate, adam_eps, options.offload),
            config=deepspeed_config(options, micro_batch_size, 1, max_grad_norm, self.dtype),
        )
        self.module.eval()
        self.optimizer = self.module.optimizer

    @property
    def holder(self) -> nn.Module:
        return self.module

    def backward(self, loss: Tensor, is_last: bool = True) -> None:
        """Adds the gradient of one micro-batch. is_last: a step follows."""
        self.num_backwards += 1
        # Without this, ZeRO 1 and 2 keep the gradient of the last micro-batch alone, in silence.
        self.module.set_gradient_accumulation_boundary(is_last)
        self.module.backward(loss * distributed.world_size())  # DeepSpeed takes the mean over ranks

    def step(self) -> float:
        """Applies the gradients and forgets them; returns their norm before clipping.

        Raises NumericsError when a gradient is not finite: DeepSpeed would skip the step and go on.
        """
        unsharded = None
        if self.zero_stage == 0:  # where DeepSpeed neither tells the norm nor looks whether it is finite
            gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
            unsharded = torch.nn.utils.get_total_norm(gradients).item()
            require_finite(self.name, unsharded)
        self.module.step()
        norm = unsharded if unsharded is not None else float(self.module.get_global_grad_norm())
        require_finite(self.name, norm if self.module.was_step_applied() else float("nan"))
        return norm

    def weights(self) -> Tensors:
        """Copies of the trainable weights, on the CPU: all of them on rank 0, none on the others."""
        found = {}
        for name, parameter in self.parameters.items():
            value = zero.full(self.module, parameter)
            if distributed.is_main():
                found[name] = value.detach().to("cpu", self.dtype, copy=True)
        return found

    def each_weight(self) -> Iterator[tuple[str, Tensor]]:
        """The trainable float32 weights one after the other, each whole on every rank."""
        return ((name, zero.full(self.module, p).detach()) for name, p in self.parameters.items())

    @contextmanager
    def using(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """The module of every rank has these weights of rank 0 inside, and its own again afterwards, to the bit.

        The optimizer's float32 copies stay as they are.
        """
        own = {name: zero.lay_aside(parameter) for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            zero.show(parameter, weights.get(name))
        try:
            yield
        finally:
            for name, parameter in self.parameters.items():
                zero.take_back(parameter, own[name])


def lowest_dtype(parameters: Iterable[nn.Parameter]) -> torch.dtype:
    """bfloat16 where any of them is."""
    return torch.bfloat16 if any(p.dtype is torch.bfloat16 for p in parameters) else torch.float32


def require_finite(name: str, norm: float) -> None:
    """Raises NumericsError where the norm of a gradient is not finite."""
    if not math.isfinite(norm):
        raise NumericsError(f"the gradient of the {name} is not finite; its weights were left as they were")


def shard_for_inference(module: nn.Module, options, micro_batch_size: int) -> None:
    """Shares out a frozen module between the ranks, as ZeRO-3 does. options: the `deepspeed` section of the config.

    The module is called as before; DeepSpeed's hooks gather each layer for its forward, and for its backward where
    gradients go through it to adapters. All ranks make as many forwards.
    """
    import deepspeed

    config = deepspeed_config(options, micro_batch_size, 1, 1.0, lowest_dtype(module.parameters()))
    deepspeed.initialize(model=module.requires_grad_(False), config=config)
    module.eval()
