"""From artifacts to models, whole or adapters on a base; and back, with a check that files hold what was trained."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from rlhf.adapters import (
    Base,
    Tensors,
    base_of,
    folder_base,
    load_base_model,
    lora_config,
    read_adapter,
    require_same_kind,
    require_whole,
    write_adapter,
)
from rlhf.config import AdapterKind, Attention, Config
from rlhf.errors import ArtifactError, UserError
from rlhf.models import device, load_policy
from rlhf.scalars import Scalar
from rlhf.trunk import PolicyView, Trunk

# Rounding of one forward of the same weights, as a share of the largest output.
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
PROBE = torch.arange(8).unsqueeze(0)  # one sequence of token ids that every vocabulary has


@dataclass(frozen=True)
class Reading:
    """How models are read in a run."""

    dtype: torch.dtype
    attention: str
    trust_remote_code: bool = False


def reading(cfg: Config) -> Reading:
    """What the config's `model` section says of it."""
    return Reading(getattr(torch, cfg.model.dtype.value), cfg.model.attention.value, cfg.model.trust_remote_code)


def reading_of(manifest: dict, trust_remote_code: bool = False) -> Reading:
    """How the model of an artifact was read when it trained; where flash attention is not to be had, sdpa does the
    same."""
    config = manifest["config"]
    attention = config["model.attention"]
    if attention == Attention.flash_attention_2.value and not is_flash_attn_2_available():
        attention = Attention.sdpa.value
    return Reading(getattr(torch, config["model.dtype"]), attention, trust_remote_code)


def require_trust(cfg: Config, role: str, manifest: dict) -> None:
    """Raises UserError where an artifact's model may bring code of its own, and this run was not told to trust it."""
    if manifest["config"].get("model.trust_remote_code") and not cfg.model.trust_remote_code:
        raise UserError(
            f"the {role} artifact was trained with model.trust_remote_code=true: its model may run its own code. "
            "Read that, then set model.trust_remote_code=true for this stage too"
        )


def load_artifact_policy(artifact: Path, manifest: dict, tokenizer, how: Reading) -> PreTrainedModel | PolicyView:
    """The frozen policy of an SFT or PPO artifact, where models live."""
    if manifest["adapter"] is None:
        folder = artifact / "model"
        policy = load_policy(folder, how.dtype, how.attention, None, how.trust_remote_code)
        return policy.requires_grad_(False).to(device())
    trunk, _ = load_trunk(artifact, manifest, AdapterKind(manifest["adapter"]["kind"]), tokenizer, how)
    trunk.add("policy", *read_adapter(artifact / "model"))
    return PolicyView(trunk, "policy").eval()


def load_trunk(artifact: Path, manifest: dict, kind: AdapterKind, tokenizer, how: Reading) -> tuple[Trunk, Base]:
    """What an artifact's adapter stands on, or the whole model of an artifact as a base for fresh adapters."""
    require_same_kind(manifest["stage"], manifest, kind)  # before a weight is read
    base = base_of(artifact, manifest) if manifest["adapter"] else folder_base(artifact / "model", manifest["stage"])
    return Trunk(load_base_model(base, tokenizer, kind, how.dtype, how.attention, how.trust_remote_code)), base


def starting_adapter(
    cfg: Config, artifact: Path, manifest: dict, trunk: Trunk, dropout: float
) -> tuple[LoraConfig, Tensors | None]:
    """The adapter that a stage goes on from: the artifact's, or a fresh one where that is a whole model."""
    if manifest["adapter"] is None:
        return lora_config(cfg.adapter, trunk.model, dropout), None
    config, weights = read_adapter(artifact / "model")
    for key, own in (("rank", config.r), ("alpha", config.lora_alpha)):
        if getattr(cfg.adapter, key) != own:
            raise UserError(
                f"adapter.{key}={getattr(cfg.adapter, key)}, and the adapter of {artifact}, from which this stage goes "
                f"on, has {own}; set adapter.{key}={own}"
            )
    return replace(config, lora_dropout=dropout), weights


# ---- saving


def save_whole_model(model: PreTrainedModel, folder: Path) -> None:
    """A model in Hugging Face's layout. Raises ArtifactError rather than write a weight that is empty or not finite."""
    require_whole(dict(model.named_parameters()), folder)
    model.save_pretrained(folder)


def save_trunk_adapter(trunk: Trunk, name: str, folder: Path, base: Base, weights: Tensors | None = None) -> None:
    """An adapter of the trunk. weights: by the base's names, where others than the trunk's are to be saved."""
    write_adapter(folder, trunk.configs[name], weights or trunk.parameters(name), base)


def reread_adapter(trunk: Trunk, folder: Path) -> str:
    """Attaches the adapter that was saved in a folder; returns its name on the trunk."""
    trunk.add("reread", *read_adapter(folder))
    return "reread"


@torch.no_grad()
def probe(model: nn.Module, ids: Tensor = PROBE) -> Tensor:
    """What a model says of fixed sequences: logits [B, T, V] or values [B, T], float32, on the CPU. ids: [B, T]."""
    was_training, ids = model.training, ids.to(model.device)
    model.eval()
    mask = torch.ones_like(ids)
    output = model(ids, mask.bool()) if isinstance(model, Scalar) else model(input_ids=ids, attention_mask=mask).logits
    model.train(was_training)
    return output.float().cpu()


def require_same_forward(trained: Tensor, reread: Tensor, folder: Path, dtype: torch.dtype) -> None:
    """Raises ArtifactError where the saved model speaks otherwise than the trained one. Both: what `probe` gave."""
    difference = (trained - reread).abs().max().item()
    if not difference <= ROUNDING[dtype] * max(1.0, trained.abs().max().item()):
        raise ArtifactError(
            f"{folder}: the model that was saved differs from the one that was trained by {difference:.2e} in one "
            "forward; the stage is not done. This is a bug of ours: please report it"
        )
