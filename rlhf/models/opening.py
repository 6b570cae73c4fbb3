"""From artifacts to models, whole or adapters on a base: one road for every stage."""

from dataclasses import replace
from pathlib import Path

from peft import LoraConfig
from transformers import PreTrainedModel

from rlhf.config.schema import AdapterKind, Config
from rlhf.errors import UserError
from rlhf.models.adapters import (
    Base,
    Tensors,
    base_of,
    folder_base,
    load_base_model,
    lora_config,
    read_adapter,
    read_head,
    require_same_kind,
)
from rlhf.models.policies import device, load_policy
from rlhf.models.reading import Reading
from rlhf.models.scalars import Scalar, load_scalar_model
from rlhf.models.trunk import PolicyView, ScalarView, Trunk


def require_trust(cfg: Config, role: str, manifest: dict) -> None:
    """Raises UserError where an artifact's model may bring code of its own, and this run was not told to trust it."""
    if manifest["config"].get("model.trust_remote_code") and not cfg.model.trust_remote_code:
        raise UserError(
            f"the {role} artifact was trained with model.trust_remote_code=true: its model may run its own code. "
            "Read that, then set model.trust_remote_code=true for this stage too"
        )


def open_policy(artifact: Path, manifest: dict, tokenizer, how: Reading) -> PreTrainedModel | PolicyView:
    """The frozen policy of an SFT or PPO artifact, where models live."""
    if manifest["adapter"] is None:
        return load_policy(artifact / "model", how).requires_grad_(False).to(device())
    return policy_view(own_trunk(artifact, manifest, tokenizer, how), artifact)


def open_scalar(artifact: Path, manifest: dict, tokenizer, how: Reading, mean: float = 0.0, std: float = 1.0) -> Scalar:
    """The reward model of an artifact: a whole one on the CPU, an adapter on a base where models live."""
    folder = artifact / "model"
    if manifest["adapter"] is None:
        return load_scalar_model(folder, how, mean, std)
    trunk = own_trunk(artifact, manifest, tokenizer, how)
    trunk.add("reward", *read_adapter(folder))
    return ScalarView(trunk, "reward", read_head(folder), mean, std).eval()


def policy_view(trunk: Trunk, artifact: Path) -> PolicyView:
    """The policy that an artifact's adapter makes of the trunk that it stands on."""
    trunk.add("policy", *read_adapter(artifact / "model"))
    return PolicyView(trunk, "policy").eval()


def own_trunk(artifact: Path, manifest: dict, tokenizer, how: Reading) -> Trunk:
    """What an artifact's adapter stands on, as it was trained."""
    return load_trunk(artifact, manifest, AdapterKind(manifest["adapter"]["kind"]), tokenizer, how)[0]


def load_trunk(artifact: Path, manifest: dict, kind: AdapterKind, tokenizer, how: Reading) -> tuple[Trunk, Base]:
    """What an artifact's adapter stands on, or the whole model of an artifact as a base for fresh adapters."""
    require_same_kind(manifest["stage"], manifest, kind)  # before a weight is read
    base = base_of(artifact, manifest) if manifest["adapter"] else folder_base(artifact / "model", manifest["stage"])
    return Trunk(load_base_model(base, tokenizer, kind, how)), base


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
