"""What the stages of a pipeline will read, checked before the first of them trains."""

from datetime import datetime
from pathlib import Path

from reward.rankings import load_rankings
from reward.rules import load_rule
from rlhf.config.schema import Config
from rlhf.data.load import (
    DataReport,
    check_leakage,
    distinct,
    load_demonstrations,
    load_prompts,
    prompt_keys,
    require_split,
)
from rlhf.run.stage import Stage
from rlhf.text.tokenizer import load_tokenizer
from stages import evaluate, ppo, reward, sft
from stages.models import sft as sft_models
from stages.reports.inputs import load_gold_rule

STAGES = {"sft": sft, "reward": reward, "ppo": ppo, "evaluate": evaluate}  # in the order in which they run


def needs_reward_model(cfg: Config) -> bool:
    """Whether PPO optimises the reward artifact of this run; rules and other artifacts need no rankings."""
    return any(term.source == "reward" for term in cfg.ppo.rewards)


def stages_of(cfg: Config) -> list[str]:
    """The stages of this pipeline, in their order."""
    return [name for name in STAGES if name != "reward" or needs_reward_model(cfg)]


def stage_of(name: str, cfg: Config) -> Stage:
    """A stage with the artifacts that the config gives it."""
    module = STAGES[name]
    return Stage(module.needs(cfg), cfg, module.all_inputs(cfg))


def stages_to_run(cfg: Config) -> list[str]:
    """Those that it will run: the first that is not up to date, and all that follow it."""
    names = stages_of(cfg)
    for place, name in enumerate(names):
        if cfg.run.force or stage_of(name, cfg).reasons():
            return names[place:]
    return []


def check_inputs(cfg: Config) -> None:
    """Raises UserError for what a later stage would refuse of its rules and records once earlier ones have trained."""
    for rule in (cfg.data.gold_rule, *(term.source for term in cfg.ppo.rewards)):
        if rule is not None and ":" in rule:
            load_rule(rule)
    report = DataReport()
    train, rankings = {"sft": load_demonstrations(cfg.data, report)["train"]}, None  # SFT begins with its own checks
    if needs_reward_model(cfg) and not cfg.collect.wait:
        rankings = load_rankings(cfg.data, report)
        train["reward"] = rankings["train"]
    prompts = _prompts(cfg, report, train)
    to_run = stages_to_run(cfg)
    if {"sft", "reward"} & set(to_run):  # else PPO is the first to train, and checks this itself
        _check_tokens(cfg, _tokenizer(cfg, to_run, train["sft"]), train["sft"], rankings, prompts)
        _try_gold_rule(cfg, rankings, prompts)


def _prompts(cfg: Config, report: DataReport, train: dict[str, list]) -> dict[str, list]:
    splits = load_prompts(cfg.data, report)
    require_split(splits, "test", "data.prompts" if cfg.data.heldout is None else "data.heldout")
    evaluated = distinct(splits["test"], cfg.evaluate.num_prompts) if cfg.data.heldout is None else splits["test"]
    for stage, records in train.items():
        check_leakage(prompt_keys(evaluated), prompt_keys(records), stage)
    return splits


def _tokenizer(cfg: Config, to_run: list[str], demonstrations: list):
    """The tokenizer of the SFT policy: as its artifact has it, or as SFT is going to make it."""
    if "sft" in to_run:
        return sft_models.pinned_tokenizer(cfg, demonstrations, datetime.now())
    return load_tokenizer(str(Path(cfg.inputs.sft) / "model"), trust_remote_code=cfg.model.trust_remote_code)


def _check_tokens(cfg: Config, tokenizer, demonstrations: list, rankings: dict | None, prompts: dict) -> None:
    """Encodes what the reward model and PPO will read."""
    if rankings is not None:
        reward.require_enough(cfg, reward.encode(cfg, tokenizer, rankings, DataReport()))
    ppo.encode(cfg, tokenizer, prompts, DataReport())
    if cfg.ppo.ptx_coef > 0:
        ppo.make_ptx(cfg, tokenizer, demonstrations, DataReport())


def _try_gold_rule(cfg: Config, rankings: dict | None, prompts: dict) -> None:
    """Asks it about one ranking, as the reward stage does, and about one held-out prompt, as the report does."""
    if cfg.data.gold_rule is None or cfg.collect.wait:  # none judges what people rank
        return
    for first in (*(rankings["test"][:1] if rankings else ()), *prompts["test"][:1]):
        load_gold_rule(cfg, first)
