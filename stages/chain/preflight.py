"""What all stages of a pipeline need, told before their inputs are made."""

from pathlib import Path

from rlhf.artifacts.manifest import load_manifest
from rlhf.config.schema import Config
from rlhf.data.load import DataReport
from rlhf.preflight.forecast import Planned
from stages import ppo, reward
from stages.chain.inputs import STAGES, stages_of, stages_to_run
from stages.models.ppo import input_artifacts
from stages.reports.inputs import heldout_prompts


def show_all_needs(cfg: Config) -> Path:
    """Prints the needs of each stage: of the artifacts that are up to date, else of what the config will make of it."""
    to_run = stages_to_run(cfg)
    for name in stages_of(cfg):
        if name in to_run[1:] or (name == "reward" and cfg.collect.wait):
            STAGES[name].preflight(cfg, planned(cfg, name, to_run), *extent(cfg, name))
        else:
            STAGES[name].run(cfg)
    return Path(cfg.run.dir)


def planned(cfg: Config, name: str, to_run: list[str]) -> Planned:
    """A stage that follows one that will run. Its model is that of the artifacts that stay, else that of the config."""
    inputs = STAGES[name].all_inputs(cfg)
    if name == "evaluate":
        inputs |= input_artifacts(cfg, [term.source for term in cfg.ppo.rewards])
    if "sft" in to_run:
        inputs |= STAGES["sft"].all_inputs(cfg)
    paths = {role: Path(path) for role, path in inputs.items()}
    there = {role: load_manifest(path) for role, path in paths.items() if role not in to_run}
    return Planned(name, Path(cfg.run.dir) / name, paths, there)


def extent(cfg: Config, name: str) -> tuple[int, ...]:
    """Records that the stage reads, and in the reward stage the most answers of one."""
    if name == "reward":
        people = (cfg.collect.min_rankings, cfg.collect.num_responses)
        return people if cfg.collect.wait else reward.num_rankings(cfg)
    return (ppo.num_prompts(cfg) if name == "ppo" else len(heldout_prompts(cfg, DataReport())),)
