"""What a PPO run will take: memory by phase, disk, steps. Told, and checked, before a weight is loaded."""

from pathlib import Path

from rlhf.config.schema import AdapterKind, Config
from rlhf.data.load import DataReport, load_prompts
from rlhf.preflight.forecast import Forecast, show_needs, sizes_of
from rlhf.preflight.phases import ppo_disk, ppo_phases
from rlhf.training.epochs import require_batch


def forecast(cfg: Config, stage, num_train: int = 0) -> Forecast:
    """What the run will take. num_train: prompts of the training split."""
    sizes = sizes_of(cfg, stage)
    phases = ppo_phases(sizes, shared_rewards(cfg, stage))
    return Forecast(phases, ppo_disk(sizes), steps(cfg, num_train), disk_knob="ppo.keep_checkpoints")


def preflight(cfg: Config, stage, num_train: int) -> Path:
    """Shows it; returns the folder, where nothing was written. Raises UserError where there are too few prompts."""
    show_needs(stage, forecast(cfg, stage, num_train))
    require_a_batch(cfg, num_train)
    return stage.folder


def num_prompts(cfg: Config) -> int:
    """Of the training split."""
    return len(load_prompts(cfg.data, DataReport())["train"])


def require_a_batch(cfg: Config, num_train: int) -> None:
    """Raises UserError when there are fewer training prompts than one step takes."""
    per_prompt = cfg.ppo.responses_per_prompt
    key = "ppo.batch_size / ppo.responses_per_prompt" if per_prompt > 1 else "ppo.batch_size"
    require_batch(num_train, cfg.ppo.batch_size // per_prompt, key, "training prompts")


def shared_rewards(cfg: Config, stage) -> list[bool]:
    """Of each reward that is a model, whether it is an adapter on the policy's base."""
    return [
        role == "reward" and is_adapter(cfg, stage.manifests.get(role))
        for role in stage.input_paths
        if role.startswith("reward")
    ]


def is_adapter(cfg: Config, manifest: dict | None) -> bool:
    """Whether an artifact is an adapter; without its manifest, whether this run is going to make it one."""
    return cfg.adapter.kind is not AdapterKind.none if manifest is None else bool(manifest["adapter"])


def steps(cfg: Config, num_train: int) -> list[str]:
    """How much work it is."""
    options = cfg.ppo
    each = options.num_epochs * (options.batch_size // options.minibatch_size)
    responses = options.num_steps * options.batch_size
    return [
        f"{options.num_steps} rollouts of {options.batch_size}: {responses} responses to {num_train} training "
        f"prompts ({responses / options.responses_per_prompt / max(1, num_train):.1f} passes over them)",
        f"optimizer steps: critic {options.num_steps * each}, "
        f"policy {(options.num_steps - options.critic_warmup_steps) * each}",
    ]
