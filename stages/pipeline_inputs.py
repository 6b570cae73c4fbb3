"""What the stages of a pipeline will read, checked before the first of them trains."""

from reward.rankings import load_rankings
from reward.rules import load_rule
from rlhf.config import Config
from rlhf.data import DataReport, check_leakage, distinct, load_demonstrations, load_prompts, prompt_keys, require_split
from rlhf.trainer import require_batch


def needs_reward_model(cfg: Config) -> bool:
    """Whether PPO optimises the reward artifact of this run; rules and other artifacts need no rankings."""
    return any(term.source == "reward" for term in cfg.ppo.rewards)


def check_inputs(cfg: Config) -> None:
    """Raises UserError for what a later stage would refuse of its rules and records once earlier ones have trained.

    Texts are not tokenised here: what is too long is met by the stage that reads it.
    """
    for rule in (cfg.data.gold_rule, *(term.source for term in cfg.ppo.rewards)):
        if rule is not None and ":" in rule:
            load_rule(rule)
    report = DataReport()
    train = {"sft": _demonstrations(cfg, report)}
    if needs_reward_model(cfg) and not cfg.collect.wait:
        train["reward"] = _rankings(cfg, report)
    _prompts(cfg, report, train)


def _demonstrations(cfg: Config, report: DataReport) -> list:
    splits = load_demonstrations(cfg.data, report)
    require_split(splits, "valid", "data.demonstrations")
    require_batch(len(splits["train"]), cfg.sft.batch_size, "sft.batch_size", "training demonstrations")
    return splits["train"]


def _rankings(cfg: Config, report: DataReport) -> list:
    splits = load_rankings(cfg.data, report)
    for split in ("valid", "test"):
        require_split(splits, split, "data.rankings")
    require_batch(len(splits["train"]), cfg.reward.batch_size, "reward.batch_size", "training prompts with rankings")
    return splits["train"]


def _prompts(cfg: Config, report: DataReport, train: dict[str, list]) -> None:
    splits, per_prompt = load_prompts(cfg.data, report), cfg.ppo.responses_per_prompt
    require_split(splits, "valid", "data.prompts")
    require_split(splits, "test", "data.prompts" if cfg.data.heldout is None else "data.heldout")
    key = "ppo.batch_size / ppo.responses_per_prompt" if per_prompt > 1 else "ppo.batch_size"
    require_batch(len(splits["train"]), cfg.ppo.batch_size // per_prompt, key, "training prompts")
    evaluated = distinct(splits["test"], cfg.evaluate.num_prompts) if cfg.data.heldout is None else splits["test"]
    for stage, records in train.items():
        check_leakage(prompt_keys(evaluated), prompt_keys(records), stage)
