"""One frozen model that serves many: policy, reference, critic and reward as adapters on the same weights.

A view is a module that switches its adapter on for its own forward. The parameters it shows are its adapter's (and its
head's) alone, so an optimizer, a checkpoint or a count of what trains sees nothing of the trunk and of the other views.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf.errors import ArtifactError
from rlhf.models.adapters import Base, Tensors, read_adapter, read_head, write_adapter, write_head
from rlhf.models.scalars import Head, Scalar, hidden_states


class Trunk:
    """A frozen causal language model with adapters by name. No module itself, so that no view owns it."""

    def __init__(self, model: PreTrainedModel):
        self.model = model.requires_grad_(False)
        self.peft: PeftModel | None = None  # what TRL trains; it has the first adapter
        self.configs: dict[str, LoraConfig] = {}
        self._trains: dict[str, bool] = {}
        self._layers: list[BaseTunerLayer] = []
        self._active: str | None = None

    def add(self, name: str, config: LoraConfig, weights: Tensors | None = None, trains: bool = False) -> None:
        """Attaches an adapter, fresh (it changes no output) or with weights. ArtifactError where these do not fit."""
        transposed = any(isinstance(module, Conv1D) for module in self.model.modules())  # in 4 bits they are no longer
        config = replace(config, base_model_name_or_path=None, fan_in_fan_out=transposed)  # a copy: peft writes into it
        if self.peft is None:
            self.peft = get_peft_model(self.model, config, adapter_name=name)
        else:
            self.peft.add_adapter(name, config)
        self.configs[name], self._trains[name] = config, trains
        self._layers = [module for module in self.model.modules() if isinstance(module, BaseTunerLayer)]
        for own, own_trains in self._trains.items():  # peft lets the newest adapter train, and no other
            for parameter in self.parameters(own).values():
                parameter.requires_grad_(own_trains)
        if weights is not None:
            self._copy(name, weights)
        self._activate(name)

    def parameters(self, name: str | None) -> dict[str, nn.Parameter]:
        """The weights of an adapter, by the names of the base's modules: ...q_proj.lora_A.weight. None: no adapter."""
        if name is None:
            return {}
        marked = self.model.named_parameters()
        return {path.replace(f".{name}.", "."): p for path, p in marked if "lora_" in path and f".{name}." in path}

    @contextmanager
    def using(self, name: str | None) -> Iterator[PreTrainedModel]:
        """The model with this adapter switched on and no other; None: the base alone."""
        before = self._active
        self._activate(name)
        try:
            yield self.model
        finally:
            self._activate(before)

    def enable_gradient_checkpointing(self) -> None:
        """As policies.enable_gradient_checkpointing; the backward pass recomputes with the forward's adapter."""

        def contexts():
            return nullcontext(), self.using(self._active)

        options = {"use_reentrant": False, "context_fn": contexts}
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)

    def _activate(self, name: str | None) -> None:
        if name == self._active:
            return
        for layer in self._layers:
            # peft's set_adapter and enable_adapters also decide what trains; these two fields only what acts
            layer._disable_adapters = name is None
            layer._active_adapter = [name] if name is not None else layer._active_adapter
        self._active = name

    @torch.no_grad()
    def _copy(self, name: str, weights: Tensors) -> None:
        own = self.parameters(name)
        wrong = sorted(own.keys() ^ weights.keys()) or sorted(k for k in own if own[k].shape != weights[k].shape)
        if wrong:
            raise ArtifactError(f"the adapter does not fit its base at {wrong[0]}; train it again")
        for key, parameter in own.items():
            parameter.copy_(weights[key])


class OnTrunk:
    """What all views have alike: an adapter, by its name, of a trunk."""

    trunk: Trunk
    name: str | None

    @property
    def device(self) -> torch.device:
        return self.trunk.model.device

    def train(self, mode: bool = True):
        """The trunk follows: gradient checkpointing and an adapter's dropout act in training mode."""
        self.trunk.model.train(mode)
        return super().train(mode)

    def write(self, folder: Path, base: Base) -> None:
        """The files of the adapter. base: what the trunk is."""
        write_adapter(folder, self.trunk.configs[self.name], self.trunk.parameters(self.name), base)

    def _attach(self, folder: Path) -> str:
        self.trunk.add("reread", *read_adapter(folder))
        return "reread"


class PolicyView(OnTrunk, nn.Module):
    """A policy: called like the causal language model that the trunk is. adapter: its name; None: the base itself."""

    def __init__(self, trunk: Trunk, adapter: str | None):
        super().__init__()
        self.trunk, self.name = trunk, adapter
        self.adapter = tree(trunk.parameters(adapter))

    @property
    def config(self):
        return self.trunk.model.config

    @property
    def generation_config(self):
        return self.trunk.model.generation_config

    def forward(self, **inputs):
        with self.trunk.using(self.name) as model:
            return model(**inputs)

    def reread(self, folder: Path) -> "PolicyView":
        """What `write` wrote there, on the same trunk."""
        return PolicyView(self.trunk, self._attach(folder))


class ScalarView(OnTrunk, Scalar):
    """A reward model or critic: an adapter on the trunk, and a head of its own."""

    def __init__(self, trunk: Trunk, adapter: str, head: Head, mean: float = 0.0, std: float = 1.0):
        super().__init__(mean, std)
        self.trunk, self.name, self.head = trunk, adapter, head
        self.adapter = tree(trunk.parameters(adapter))

    def raw(self, ids: Tensor, mask: Tensor) -> Tensor:
        with self.trunk.using(self.name) as model:
            hidden = hidden_states(model, ids, mask)
            return self.head(hidden).squeeze(-1)

    def write(self, folder: Path, base: Base) -> None:
        super().write(folder, base)
        write_head(folder, self.head)

    def reread(self, folder: Path) -> "ScalarView":
        """What `write` wrote there, on the same trunk: raw scores."""
        return ScalarView(self.trunk, self._attach(folder), read_head(folder))


def all_weights(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of a model; of a view, those of its trunk too."""
    trunk = list(model.trunk.model.parameters()) if isinstance(model, OnTrunk) else []
    return [*model.parameters(), *trunk]


def tree(parameters: dict[str, nn.Parameter]) -> nn.Module:
    """A module that does nothing but hold parameters under their dotted names."""
    root = nn.Module()
    for name, parameter in parameters.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, parameter)
    return root


def adapter_weights(weights: Tensors) -> Tensors:
    """A view's weights by the base's names, as adapter files have them; a head's are left out."""
    return {name.removeprefix("adapter."): value for name, value in weights.items() if name.startswith("adapter.")}
