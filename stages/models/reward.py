"""What the reward stage begins with and ends with: a scalar model, whole or an adapter with a head, and its files."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from rlhf.config.schema import AdapterKind, Config
from rlhf.models.adapters import Base, folder_base
from rlhf.models.opening import load_trunk, open_policy, starting_adapter
from rlhf.models.policies import enable_gradient_checkpointing, require_context
from rlhf.models.reading import Reading
from rlhf.models.saving import save_checked, save_tokenizer
from rlhf.models.scalars import Scalar, fresh_head, scalar_model_from_policy
from rlhf.models.sharding import share_trunk
from rlhf.models.trunk import PolicyView, ScalarView
from rlhf.run.stage import Stage


@dataclass(frozen=True)
class Start:
    """The scalar model that trains; sft_policy() is what it scores samples of; base: what it stands on, or began as."""

    scalar: Scalar
    sft_policy: Callable[[], nn.Module]
    base: Base


def load_start(cfg: Config, stage: Stage, tokenizer) -> Start:
    """A scalar model on the SFT policy with a fresh head, whole or with an adapter."""
    if cfg.adapter.kind is AdapterKind.none:
        return load_whole_model(cfg, stage, tokenizer)
    return load_with_adapter(cfg, stage, tokenizer)


def load_whole_model(cfg: Config, stage: Stage, tokenizer) -> Start:
    """All weights train. The SFT policy is loaded when it is asked for: it is not needed before the end."""
    sft, how = stage.input_paths["sft"], Reading.of_config(cfg)
    scalar = scalar_model_from_policy(sft / "model", how, zero_head=False)
    require_context(scalar.model, cfg.data)
    if cfg.model.gradient_checkpointing:
        enable_gradient_checkpointing(scalar.model)

    def sft_policy() -> nn.Module:
        return open_policy(sft, stage.manifests["sft"], tokenizer, how)

    return Start(scalar, sft_policy, folder_base(sft / "model", "sft"))


def load_with_adapter(cfg: Config, stage: Stage, tokenizer) -> Start:
    """An adapter on the SFT policy's base, a copy of its adapter where it has one; both on one trunk."""
    sft, manifest, how = stage.input_paths["sft"], stage.manifests["sft"], Reading.of_config(cfg)
    trunk, base = load_trunk(sft, manifest, cfg.adapter.kind, tokenizer, how)
    require_context(trunk.model, cfg.data)
    share_trunk(cfg, trunk, cfg.reward.micro_batch_size)
    config, weights = starting_adapter(cfg, sft, manifest, trunk, cfg.adapter.dropout)
    trunk.add("reward", config, weights, trains=True)
    if weights is not None:
        trunk.add("sft", config, weights)
    if cfg.model.gradient_checkpointing:
        trunk.enable_gradient_checkpointing()
    scalar = ScalarView(trunk, "reward", fresh_head(trunk.model, is_zero=False))
    return Start(scalar, lambda: PolicyView(trunk, None if weights is None else "sft").eval(), base)


def save(cfg: Config, stage: Stage, start: Start, tokenizer) -> dict | None:
    """Writes the model folder and reads it again; returns the adapter's record for the manifest. Called by all ranks.

    Raises ArtifactError where the files hold something else than what was trained.
    """
    save_tokenizer(tokenizer, stage.folder)
    return save_checked(start.scalar, start.base, cfg.adapter.kind, stage.folder, Reading.of_config(cfg))
