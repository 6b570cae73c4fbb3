"""The models of a PPO run: which ones there are, whether they fit together, how the policy is saved.

adapter=none: four whole models. adapter=lora or qlora: one frozen base for all four, each an adapter on it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from reward.asking import Asking
from reward.scorer import RewardScorer, load_reward
from rlhf.artifacts.fit import check_parent, check_same_tokenizer
from rlhf.artifacts.manifest import manifest_sha256
from rlhf.config.schema import AdapterKind, Config
from rlhf.distributed import gather, on_main, rank
from rlhf.engines.engine import shard_for_inference
from rlhf.errors import ArtifactError
from rlhf.hashing import short
from rlhf.models.adapters import (
    Base,
    base_of,
    folder_base,
    read_adapter,
    read_head,
    require_same_base,
    require_same_kind,
)
from rlhf.models.opening import load_trunk, require_trust, starting_adapter
from rlhf.models.policies import device, enable_gradient_checkpointing, load_policy, require_context
from rlhf.models.reading import Reading
from rlhf.models.saving import save_checked, save_tokenizer, save_whole
from rlhf.models.scalars import Scalar, fresh_head, load_scalar_model, scalar_model_from_policy
from rlhf.models.sharding import placed, share_trunk, shares_weights
from rlhf.models.trunk import PolicyView, ScalarView, Trunk, adapter_weights
from rlhf.ppo.scores import Score
from rlhf.run.stage import Stage
from rlhf.text.tokenizer import load_tokenizer


@dataclass(frozen=True)
class PpoModels:
    """policy and critic train; ref_policy, the SFT policy, and score, the reward, are frozen.

    base: what the policy's weights, or its adapter, started from. reading: how it was read.
    """

    policy: nn.Module
    critic: nn.Module
    ref_policy: nn.Module
    score: Score
    base: Base
    reading: Reading


def input_artifacts(cfg: Config, rewards: list[str]) -> dict[str, str]:
    """The artifacts that PPO against these reward sources consumes, by role. A reward that is a function needs none."""
    models = [source for source in rewards if ":" not in source]
    paths = {f"reward_{i}": source for i, source in enumerate(models) if source != "reward"}
    return {"sft": cfg.inputs.sft, **({"reward": cfg.inputs.reward} if "reward" in models else {}), **paths}


def all_inputs(cfg: Config) -> dict[str, str]:
    """The artifacts that this run of PPO consumes, by role."""
    earlier = {} if cfg.ppo.start_from is None else {"start_from": cfg.ppo.start_from}
    return input_artifacts(cfg, [term.source for term in cfg.ppo.rewards]) | earlier


def check_fit(cfg: Config, stage: Stage) -> None:
    """Raises ArtifactError unless every reward model, and an earlier PPO policy, came from the SFT artifact."""
    for role, manifest in stage.manifests.items():
        require_trust(cfg, role, manifest)
    require_same_kind("sft", stage.manifests["sft"], cfg.adapter.kind)
    if "start_from" in stage.manifests:
        check_start(cfg, stage)
    if cfg.ppo.allow_other_parent:
        return
    for role, manifest in stage.manifests.items():
        if role.startswith("reward"):
            remedy = (
                "train it from this SFT artifact, or set ppo.allow_other_parent=true (texts are then tokenised anew)"
            )
            check_same_tokenizer(role, manifest, "sft", stage.manifests["sft"], remedy)
            check_parent(manifest, stage.input_paths["sft"])


def check_start(cfg: Config, stage: Stage) -> None:
    """Raises ArtifactError unless the earlier PPO policy is of this run's kind and had the same reference."""
    path, manifest, sft = stage.input_paths["start_from"], stage.manifests["start_from"], stage.input_paths["sft"]
    kind = manifest["adapter"]["kind"] if manifest["adapter"] else AdapterKind.none.value
    if kind != cfg.adapter.kind.value:
        raise ArtifactError(f"ppo.start_from={path} was trained with adapter={kind}; use adapter={kind}")
    (reference,) = [entry["sha256"] for entry in manifest["inputs"] if entry["role"] == "sft"]
    if reference != manifest_sha256(sft):
        raise ArtifactError(
            f"ppo.start_from={path} came from sft {short(reference)}, and inputs.sft={sft} is "
            f"{short(manifest_sha256(sft))}: KL is measured from one SFT policy throughout; name that one as inputs.sft"
        )


def start_of(stage: Stage) -> tuple[Path, dict]:
    """The artifact, with its manifest, whose policy this run trains: an earlier PPO artifact's, or the SFT policy.

    Of an earlier run the weights of its policy are all that goes on. Its artifact holds no critic and no Adam state:
    they belong to the end of a schedule. The critic starts from the reward model as ever; its warm-up gives it time.
    """
    role = "start_from" if "start_from" in stage.manifests else "sft"
    return stage.input_paths[role], stage.manifests[role]


def load_models(cfg: Config, stage: Stage) -> PpoModels:
    """The models that the config asks for, where models live."""
    models = load_whole_models(cfg, stage) if cfg.adapter.kind is AdapterKind.none else load_views(cfg, stage)
    require_context(models.policy, cfg.data)
    return models


def load_whole_models(cfg: Config, stage: Stage) -> PpoModels:
    """Four models, frozen ones shared out between the ranks where ZeRO-3 shares out the policy."""
    folder, how = stage.input_paths["sft"] / "model", Reading.of_config(cfg)
    prepare = frozen(cfg)
    ref_policy = prepare(load_policy(folder, how))
    score = make_score(cfg, stage, prepare)
    start, manifest = start_of(stage)
    policy = placed(cfg, load_policy(start / "model", how))
    critic = placed(cfg, load_critic(cfg, stage, how))
    if cfg.model.gradient_checkpointing:
        enable_gradient_checkpointing(policy)
        enable_gradient_checkpointing(critic.model)
    return PpoModels(policy, critic, ref_policy, score, folder_base(start / "model", manifest["stage"]), how)


def load_views(cfg: Config, stage: Stage) -> PpoModels:
    """Policy, reference, critic and reward on one trunk; a reward that stands on other weights beside it.

    The reference is the SFT adapter, or the base itself where the SFT artifact is a whole model.
    """
    sft, manifest, how = stage.input_paths["sft"], stage.manifests["sft"], Reading.of_config(cfg)
    tokenizer = load_tokenizer(str(sft / "model"), trust_remote_code=how.trust_remote_code)
    trunk, base = load_trunk(sft, manifest, cfg.adapter.kind, tokenizer, how)
    share_trunk(cfg, trunk, cfg.ppo.micro_batch_size)
    with torch.random.fork_rng():
        torch.manual_seed(cfg.seed)  # of fresh adapters; every rank draws the same
        start, its_manifest = start_of(stage)
        config, weights = starting_adapter(cfg, start, its_manifest, trunk, dropout=0.0)
        trunk.add("policy", config, weights, trains=True)
        if manifest["adapter"]:
            config, weights = starting_adapter(cfg, sft, manifest, trunk, dropout=0.0)
            trunk.add("reference", config, weights)
        critic, scorer = load_scalar_views(cfg, stage, trunk, base)
    if cfg.model.gradient_checkpointing:
        trunk.enable_gradient_checkpointing()
    score = make_score(cfg, stage, frozen(cfg), scorer)
    reference = PolicyView(trunk, "reference" if manifest["adapter"] else None)
    return PpoModels(PolicyView(trunk, "policy").eval(), critic, reference.eval(), score, base, how)


def load_scalar_views(cfg: Config, stage: Stage, trunk: Trunk, base: Base) -> tuple[ScalarView, RewardScorer | None]:
    """The critic, and the reward where it is an adapter on this trunk: then the critic starts as its copy.

    Elsewhere (a whole reward model, a rule) the critic is a fresh adapter with a zero head: no second copy of the base.
    """
    if not shares_trunk(cfg, stage, base):
        trunk.add("critic", trunk.configs["policy"], trains=True)
        return ScalarView(trunk, "critic", fresh_head(trunk.model, is_zero=True)).eval(), None
    folder, manifest = stage.input_paths["reward"] / "model", stage.manifests["reward"]
    config, weights = read_adapter(folder)
    norm = manifest["reward_norm"]
    views = []
    for name in ("critic", "reward"):
        trunk.add(name, replace(config, lora_dropout=0.0), weights, trains=name == "critic")
        views.append(ScalarView(trunk, name, read_head(folder), norm["mean"], norm["std"]).eval())
    views[1].requires_grad_(False)
    limit, trust = manifest["config"]["data.max_prompt_tokens"], cfg.model.trust_remote_code
    reward_tokenizer = load_tokenizer(str(folder), trust_remote_code=trust)
    return views[0], RewardScorer(views[1], reward_tokenizer, limit, cfg.rollout.batch_size)


def shares_trunk(cfg: Config, stage: Stage, base: Base) -> bool:
    """Whether the reward artifact is an adapter that belongs on this base.

    Raises ArtifactError for one on another base, or trained on other precision, unless ppo.allow_other_parent lets it
    stand on a base of its own.
    """
    manifest = stage.manifests.get("reward")
    if manifest is None or manifest["adapter"] is None:
        return False
    try:
        require_same_kind("reward", manifest, cfg.adapter.kind)
        require_same_base("the reward adapter", base_of(stage.input_paths["reward"], manifest), "the policy", base)
    except ArtifactError:
        if cfg.ppo.allow_other_parent:
            return False
        raise
    return True


def make_score(cfg: Config, stage: Stage, prepare: Callable, scorer: RewardScorer | None = None) -> Score:
    """The reward that PPO optimises. scorer: that of the reward artifact, where it stands on the trunk already."""
    return load_reward(
        cfg.ppo.rewards,
        cfg.inputs.reward,
        cfg.rollout.batch_size,
        prepare=prepare,
        trust_remote_code=cfg.model.trust_remote_code,
        scorer=scorer,
        how=asking(cfg, stage),
    )


def asking(cfg: Config, stage: Stage) -> Asking:
    """How rules are asked while PPO runs."""
    cache = stage.checkpoint_folder / f"rewards.{rank()}.sqlite" if cfg.ppo.reward_cache else None
    return Asking(cfg.ppo.reward_retries, cfg.ppo.reward_timeout, cache)


def frozen(cfg: Config):
    """What a model for inference goes through once it is loaded: no gradients, and to where models live.

    Under ZeRO-3 a whole model is shared out at once, before the next one is read.
    """

    def prepare(model: nn.Module) -> nn.Module:
        model.requires_grad_(False)
        if not shares_weights(cfg) or isinstance(model, ScalarView):
            return model.to(device())
        shard_for_inference(model, cfg.deepspeed, cfg.ppo.micro_batch_size)
        return model

    return prepare


def load_critic(cfg: Config, stage: Stage, how: Reading) -> Scalar:
    """The reward model's trunk and head where they are whole and read the policy's tokens, else the SFT trunk with a
    zero head."""
    manifest, sft = stage.manifests.get("reward"), stage.manifests["sft"]
    same = manifest is not None and manifest["tokenizer_sha256"] == sft["tokenizer_sha256"]
    if same and manifest["adapter"] is None:
        folder, norm = stage.input_paths["reward"] / "model", manifest["reward_norm"]
        return load_scalar_model(folder, how, norm["mean"], norm["std"])
    return scalar_model_from_policy(stage.input_paths["sft"] / "model", how, zero_head=True)


@torch.no_grad()
def save_policy(models: PpoModels, weights: Mapping[str, Tensor], stage: Stage, tokenizer) -> dict | None:
    """Writes the model folder of the policy with these weights, and reads it again; returns its adapter's record.

    weights: by the names of the policy's trainable parameters, on rank 0. Raises ArtifactError where the files hold
    other weights.
    """
    save_tokenizer(tokenizer, stage.folder)
    if isinstance(models.policy, PolicyView):
        best = best_view(models.policy.trunk, adapter_weights(dict(weights)))
        return save_checked(best, models.base, stage.config.adapter.kind, stage.folder, models.reading)
    on_main(lambda: save_whole(best_policy(models, weights), stage.model_folder, models.reading))
    return None


@torch.no_grad()
def best_policy(models: PpoModels, weights: Mapping[str, Tensor]) -> nn.Module:
    """The policy that training began with, loaded afresh, with these weights: on the CPU, beside the run."""
    policy = load_policy(models.base.path, models.reading)
    for name, parameter in policy.named_parameters():
        parameter.copy_(weights[name])
    return policy


def best_view(trunk: Trunk, weights: dict[str, Tensor]) -> PolicyView:
    """The same for an adapter, on the trunk that it was trained on, on all ranks. weights: those of rank 0 count."""
    trunk.add("best", trunk.configs["policy"], gather(weights)[0])
    return PolicyView(trunk, "best")
