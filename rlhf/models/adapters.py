"""Low-rank adapters: what they stand on, where they attach, and their files.

A base is a frozen model, in a folder or on the hub. An adapter's folder holds no copy of it: the manifest names it, and
a consumer compares its fingerprint before it loads a weight. Hu et al. 2021, https://arxiv.org/abs/2106.09685.
"""

import importlib.util
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf.config.schema import AdapterConfig, AdapterKind
from rlhf.errors import ArtifactError, UserError
from rlhf.hashing import short, weights_fingerprint
from rlhf.models.policies import device, fit_embeddings, load_policy
from rlhf.models.reading import Reading
from rlhf.models.scalars import Head

Tensors = dict[str, Tensor]
WEIGHTS, HEAD = "adapter_model.safetensors", "head.safetensors"
PEFT_PREFIX = "base_model.model."  # before each name in peft's files


@dataclass(frozen=True)
class Base:
    """A frozen model. path: folder or hub id; revision: the hub's commit, None for a folder.

    name, fingerprint: what manifests call it, and what its weights are known by.
    """

    path: str
    revision: str | None
    name: str
    fingerprint: str

    @property
    def record(self) -> dict[str, str]:
        """What a manifest says of it as `base_model`."""
        return {"name": self.name, "fingerprint": self.fingerprint}

    @property
    def location(self) -> str:
        """Where peft's own loader finds it from any working directory; it knows no path that moves with the adapter."""
        return self.path if self.revision else str(Path(self.path).absolute())

    def adapter_record(self, kind: str, config: LoraConfig, artifact: Path) -> dict:
        """What a manifest says of an adapter on it. A folder is named from the artifact: both can move together."""
        path = self.path if self.revision else Path(os.path.relpath(self.path, artifact)).as_posix()
        return {"kind": kind, "rank": config.r, "alpha": config.lora_alpha, "base": path, "revision": self.revision}


def folder_base(folder: str | Path, name: str) -> Base:
    """A model in a folder as a base."""
    return Base(str(folder), None, name, weights_fingerprint(folder))


def base_of(artifact: str | Path, manifest: dict) -> Base:
    """The base of an adapter artifact. Raises ArtifactError where it is not there, or is another than it was."""
    artifact, record, known = Path(artifact), manifest["adapter"], manifest["base_model"]
    if record["revision"]:
        return Base(record["base"], record["revision"], known["name"], known["fingerprint"])
    folder = Path(os.path.normpath(artifact / record["base"]))
    if not folder.is_dir():
        raise ArtifactError(
            f"{artifact} is an adapter on the model in {folder}, which is not there; put {known['name']} "
            f"({short(known['fingerprint'])}) back in that place"
        )
    found = weights_fingerprint(folder)
    if found != known["fingerprint"]:
        raise ArtifactError(
            f"{artifact} is an adapter on {known['name']} {short(known['fingerprint'])}, and {folder} holds "
            f"{short(found)}; put the old weights back, or train the adapter again on these"
        )
    return Base(str(folder), None, known["name"], found)


def require_same_base(role_a: str, base_a: Base, role_b: str, base_b: Base) -> None:
    """Raises ArtifactError unless two adapters stand on the same weights."""
    if base_a.fingerprint != base_b.fingerprint:
        raise ArtifactError(
            f"{role_a} stands on {base_a.name} {short(base_a.fingerprint)}, {role_b} on {base_b.name} "
            f"{short(base_b.fingerprint)}: they cannot share one base; train both on the same model"
        )


def require_same_kind(role: str, manifest: dict, kind: AdapterKind) -> None:
    """Raises ArtifactError where an artifact's adapter was trained on weights of another precision, or on none."""
    own = manifest["adapter"]["kind"] if manifest["adapter"] else None
    if own is None or own == kind.value:
        return
    if kind is AdapterKind.none:
        raise ArtifactError(
            f"the {role} artifact is an adapter ({own}), and adapter=none trains whole models; use adapter={own}, or "
            "merge it first (python -m stages.export) and start a run from that folder with model.path"
        )
    raise ArtifactError(f"the {role} artifact's adapter is {own}, this run's is {kind.value}; use adapter={own}")


def load_base_model(base: Base, tokenizer, kind: AdapterKind, how: Reading) -> PreTrainedModel:
    """The base as a causal language model where models live, frozen; its weights in 4 bits with qlora.

    Embeddings grow for the tokenizer's new tokens, the same way each time: the base on disk stays as it is.
    """
    quantization = _four_bits(how.dtype) if kind is AdapterKind.qlora else None
    model = load_policy(base.path, how, base.revision, quantization)
    fit_embeddings(model, tokenizer)
    model.requires_grad_(False)
    if quantization is None:
        return model.to(device())
    _keep_backward(model)
    return model


def _four_bits(dtype: torch.dtype) -> BitsAndBytesConfig:
    """Dettmers et al. 2023, https://arxiv.org/abs/2305.14314: NormalFloat4, its scales quantised too."""
    if importlib.util.find_spec("bitsandbytes") is None:
        remedy = 'pip install -c constraints.txt -e ".[quant]"'
        raise UserError(f"adapter=qlora needs bitsandbytes, which is not installed: {remedy}")
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _keep_backward(model: PreTrainedModel) -> None:
    """Keeps bitsandbytes 0.50 from repacking weights for a CPU's fast kernel in the first forward without gradients.

    That kernel has no backward: every gradient that should go through the layer would be lost in silence.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


# ---- where they attach


def lora_config(options: AdapterConfig, model: PreTrainedModel, dropout: float | None = None) -> LoraConfig:
    """peft's config for a fresh adapter. dropout: other than the config's rate. Raises UserError for unknown names."""
    names = linear_names(model)
    targets = names if options.targets == "all-linear" else options.targets.replace(",", " ").split()
    unknown = sorted(set(targets) - set(names))
    if unknown:
        raise UserError(
            f"adapter.targets={options.targets}: the model has no linear layer named {', '.join(unknown)}; "
            f"it has {', '.join(names)}"
        )
    return LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout if dropout is None else dropout,
        target_modules=sorted(targets),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )


def linear_names(model: PreTrainedModel) -> list[str]:
    """Last parts of the names of all linear layers but the one that makes logits, sorted."""
    head = model.get_output_embeddings()
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    return sorted({name.rsplit(".", 1)[-1] for name in linear if model.get_submodule(name) is not head})


# ---- files


def write_adapter(folder: str | Path, config: LoraConfig, weights: Tensors, base: Base) -> None:
    """An adapter as peft's own loader reads it. weights: by the names of the base's modules.

    Raises ArtifactError rather than write a weight that is empty or not finite.
    """
    folder = Path(folder)
    require_whole(weights, folder)
    folder.mkdir(parents=True, exist_ok=True)
    named = {f"{PEFT_PREFIX}{name}": value.detach().cpu().contiguous() for name, value in weights.items()}
    save_file(named, folder / WEIGHTS, metadata={"format": "pt"})
    own = replace(config, base_model_name_or_path=base.location, revision=base.revision, inference_mode=True)
    own.save_pretrained(folder)


def read_adapter(folder: str | Path) -> tuple[LoraConfig, Tensors]:
    """The config and the weights that `write_adapter` wrote. Raises ArtifactError where they are not whole."""
    config = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = False
    weights = _read(Path(folder) / WEIGHTS)
    return config, {name.removeprefix(PEFT_PREFIX): value for name, value in weights.items()}


def write_head(folder: str | Path, head: nn.Linear) -> None:
    """The layer that makes one number of a hidden state, in a file of its own."""
    weights = {"weight": head.weight.detach().cpu().contiguous()}
    require_whole(weights, folder)
    save_file(weights, Path(folder) / HEAD)


def read_head(folder: str | Path) -> Head:
    """The head that `write_head` wrote, where models live."""
    weight = _read(Path(folder) / HEAD)["weight"]
    head = Head(weight.shape[1])
    head.load_state_dict({"weight": weight})
    return head.to(device())


def require_whole(weights: Tensors, place: str | Path) -> None:
    """Raises ArtifactError unless there are weights, each has elements, and all are finite."""
    if not weights:
        raise ArtifactError(f"{place}: there are no weights to save. This is a bug of ours: please report it")
    for name, value in weights.items():
        if value.numel() == 0:
            raise ArtifactError(f"{place}: {name} is empty: it was not gathered from the ranks before saving")
        if not torch.isfinite(value).all():
            raise ArtifactError(f"{place}: {name} is not finite; nothing was saved. A lower learning rate may help")


def _read(path: Path) -> Tensors:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path}: cannot read it ({error}); copy the artifact again") from error
