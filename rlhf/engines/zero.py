"""Whole weights and Adam moments out of what ZeRO has shared out between the ranks, and back.

Written as whole tensors a checkpoint needs no pickle of DeepSpeed's, and any number of ranks can read it. Every
function is called by all ranks. What DeepSpeed has put on a weight or an optimizer is asked for by its attributes, and
only here: its own code does the same, there are no classes that would tell.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import psutil
import torch
from torch import Tensor, nn

from rlhf import distributed
from rlhf.engines.adam import MOMENTS, placed_step

HOLDER = -1  # in place of the number of a layer that uses a weight


def bare(model: nn.Module) -> nn.Module:
    """The model itself, where a DeepSpeed engine is around it."""
    deepspeed = sys.modules.get("deepspeed")  # a run that does not load it has no engine of it
    return model.module if deepspeed and isinstance(model, deepspeed.DeepSpeedEngine) else model


def is_shared_out(parameter: nn.Parameter) -> bool:
    """Whether a weight is shared out between the ranks, as ZeRO-3 does."""
    return hasattr(parameter, "ds_tensor")


def own_share(parameter: nn.Parameter) -> Tensor:
    """What this rank holds of a weight: all of it where it is not shared out."""
    return (parameter.ds_tensor if is_shared_out(parameter) else parameter).detach()


def base_optimizer(engine) -> torch.optim.Optimizer:
    """The Adam inside DeepSpeed's wrappers; its parameters are this rank's shares."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def full(engine, parameter: nn.Parameter, moment: str | None = None) -> Tensor:
    """The whole float32 master weight of a trainable parameter, or one of its moments."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if _is_sharded(parameter):
        value = safe_get_full_optimizer_state(parameter, moment) if moment else safe_get_full_fp32_param(parameter)
    else:
        value = base_optimizer(engine).state[parameter][moment] if moment else parameter.detach()
    return value.reshape(parameter.ds_shape if is_shared_out(parameter) else parameter.shape)


def set_full(engine, parameter: nn.Parameter, value: Tensor, moment: str | None = None) -> None:
    """Writes a whole weight, in the model and in the optimizer's float32 copy, or one of its moments."""
    if is_shared_out(parameter):
        _set_zero3(parameter, value, moment)
        return
    if moment is None:
        parameter.data.copy_(value)
    if _is_sharded(parameter):
        _set_zero12(parameter, value, moment)
    elif moment:
        base_optimizer(engine).state[parameter][moment].copy_(value)


@torch.no_grad()
def lay_aside(parameter: nn.Parameter) -> Tensor:
    """A copy, on the CPU, of what this rank holds of a weight."""
    return own_share(parameter).to("cpu", copy=True)


@torch.no_grad()
def show(parameter: nn.Parameter, value: Tensor | None) -> None:
    """Gives the model on all ranks rank 0's value of a weight; the optimizer's copy of it stays as it is."""
    if is_shared_out(parameter):
        from deepspeed import zero

        with zero.GatheredParameters([parameter], modifier_rank=0):
            if distributed.is_main():
                parameter.copy_(value)
        return
    if distributed.is_main():
        parameter.copy_(value)
    distributed.broadcast(parameter.data)


@torch.no_grad()
def take_back(parameter: nn.Parameter, own: Tensor) -> None:
    """Undoes `show` with what was laid aside."""
    if not is_shared_out(parameter):
        parameter.copy_(own)
        return
    from deepspeed import zero

    with zero.GatheredParameters([parameter]):  # on leaving, the whole weight is dropped where ZeRO-3 had kept it
        pass
    parameter.ds_tensor.copy_(own)


def adam_step(engine) -> Tensor | None:
    """Steps that Adam has made, or None before the first."""
    states = list(base_optimizer(engine).state.values())
    return torch.as_tensor(states[0]["step"], dtype=torch.float32).cpu() if states else None


def make_adam_state(engine, step: Tensor) -> None:
    """Gives Adam the empty moments that its first step would make, with `step` steps behind it."""
    optimizer, base = engine.optimizer, base_optimizer(engine)
    shares = getattr(optimizer, "fp32_partitioned_groups_flat", None)  # ZeRO-3 lends them to Adam group by group
    if shares is None:
        shares = [share for group in base.param_groups for share in group["params"]]
    for share in shares:
        count = int(step) if type(base).__name__ == "DeepSpeedCPUAdam" else placed_step(base, step, share)
        base.state[share] = {"step": count, **{moment: torch.zeros_like(share) for moment in MOMENTS}}
    _link_moments(optimizer)


def own_tensors(engine, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """This rank's share of the float32 weights and of Adam's state, each tensor whole, on the CPU, by name.

    Whole, so that any number of ranks can read them; shared out, so that all ranks write at once.
    """
    step, found = adam_step(engine), {}
    if step is not None:
        _link_moments(engine.optimizer)
    for number, (name, parameter) in enumerate(parameters.items()):
        values = {f"weight.{name}": full(engine, parameter)}
        if step is not None:
            moments = {f"{key}.{name}": full(engine, parameter, key) for key in MOMENTS}
            values |= {f"step.{name}": step, **moments}
        if number % distributed.world_size() == distributed.rank():
            found |= {key: value.detach().to("cpu", copy=True) for key, value in values.items()}
    return found


@torch.no_grad()
def load_tensors(engine, parameters: Mapping[str, nn.Parameter], saved: Mapping[str, Tensor]) -> None:
    """Restores what the `own_tensors` of all ranks gave. Raises KeyError when a weight is missing."""
    steps = [saved[f"step.{name}"] for name in parameters if f"step.{name}" in saved]
    if steps:
        make_adam_state(engine, steps[0])
    for name, parameter in parameters.items():
        set_full(engine, parameter, saved[f"weight.{name}"])
        for key in MOMENTS if steps else ():
            set_full(engine, parameter, saved[f"{key}.{name}"], key)


@contextmanager
def for_generation(model: nn.Module, weights: Iterable[nn.Parameter], gather_share: float) -> Iterator:
    """The model to sample from token by token, each rank as many tokens as it needs. weights: all that it needs.

    Under ZeRO-3 the weights are gathered once for all tokens, about ten times faster than layer by layer at each token,
    where they take at most gather_share of every rank's free memory; else all ranks gather each layer together. Without
    ZeRO-3 the model is what it was.
    """
    shared_out = [weight for weight in weights if is_shared_out(weight)]
    if not shared_out:
        yield model
    elif fits(shared_out, gather_share):
        with _held(shared_out):
            yield model
    else:
        together = InStep(model)
        yield together
        together.wait()


class InStep:
    """A model, called as it is, whose layers are gathered for each forward: then every rank must make as many."""

    def __init__(self, model: nn.Module):
        self.model, self.config, self.device = model, model.config, model.device

    def __call__(self, **inputs):
        distributed.any_rank(True)  # of those that wait, each makes a forward with this one
        return self.model(**inputs)

    @torch.no_grad()
    def wait(self) -> None:
        """Makes the forwards that other ranks still need, of one token; nobody reads what the model says of it."""
        zeros = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        token = {"input_ids": zeros, "attention_mask": torch.ones_like(zeros), "position_ids": zeros}
        while distributed.any_rank(False):
            self.model(**token, use_cache=False, logits_to_keep=1)


def fits(weights: Iterable[nn.Parameter], gather_share: float) -> bool:
    """Whether those that are shared out take, whole, at most gather_share of the free memory, on every rank alike."""
    size = sum(weight.ds_numel * weight.element_size() for weight in weights if is_shared_out(weight))
    if torch.cuda.is_available():
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()  # torch's own, free for it to use
        free = torch.cuda.mem_get_info()[0] + cached
    else:
        free = psutil.virtual_memory().available / distributed.world_size()
    return not distributed.any_rank(size > gather_share * free)


@contextmanager
def _held(weights: list[nn.Parameter]) -> Iterator[None]:
    """Gathers weights, and keeps them until the end: DeepSpeed's hooks would release each after its layer's forward."""
    from deepspeed import zero

    with zero.GatheredParameters(weights):
        for weight in weights:
            weight.ds_active_sub_modules.add(HOLDER)  # what is in use is not released; no public call says so
        try:
            yield
        finally:
            for weight in weights:
                weight.ds_active_sub_modules.discard(HOLDER)


def _link_moments(optimizer) -> None:
    """Tells ZeRO 1 and 2 which moments belong to which parameter.

    DeepSpeed does so at its first step, which a run that goes on does not wait for, and then when only the first group
    of parameters has moments (0.19).
    """
    link = getattr(optimizer, "_lazy_init_hp_params_optimizer_state", None)
    if link is not None:
        optimizer._hp_optimizer_states_linked = False
        link()


def _is_sharded(parameter: nn.Parameter) -> bool:
    return is_shared_out(parameter) or hasattr(parameter, "_hp_mapping")


def _set_zero12(parameter: nn.Parameter, value: Tensor, moment: str | None) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    value = value.to(parameter.device, torch.float32)
    if moment:
        safe_set_full_optimizer_state(parameter, value, moment)
    else:
        safe_set_full_fp32_param(parameter, value)


def _set_zero3(parameter: nn.Parameter, value: Tensor, moment: str | None) -> None:
    """DeepSpeed's setter of whole values fails where the last rank's share is padded; its setter of shares does not."""
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    size = parameter.ds_tensor.numel()
    flat = value.flatten()
    flat = torch.nn.functional.pad(flat, (0, size * distributed.world_size() - flat.numel()))
    share = flat[distributed.rank() * size :][:size]
    if moment:
        safe_set_local_optimizer_state(parameter, share, moment)
    else:
        parameter.ds_tensor.data.copy_(share)
        safe_set_local_fp32_param(parameter, share)
