"""Measures the whole pipeline over several seeds: win rate, reward model, KL, length, time. `python -m stages.bench`

Prints a table for docs/RESULTS.md with the command, the commit and the machine it was measured on.
"""

if __name__ == "__main__":  # before the imports below, which take seconds: the config is checked first
    from stages import start

    start("stages.bench", makes_inputs=True)

import dataclasses
import json
import os
import platform
import sys
from pathlib import Path

import torch

from reward.report.figures import at
from rlhf.artifacts.manifest import is_complete, load_manifest
from rlhf.artifacts.provenance import git_state, package_versions
from rlhf.config.schema import BenchWhat, Config
from rlhf.files import write_durably, writing
from rlhf.tables import markdown_table
from stages import pipeline
from stages.benches import (
    architectures as bench_architectures,
)
from stages.benches import (
    collect as bench_collect,
)
from stages.benches import (
    collect_size as bench_collect_size,
)
from stages.benches import (
    connections as bench_connections,
)
from stages.benches import (
    memory as bench_memory,
)
from stages.benches import (
    speed as bench_speed,
)

STAGES = ("sft", "reward", "ppo", "evaluate")
COLUMNS = (
    "seed",
    "win rate",
    "95 % interval",
    "gold SFT",
    "gold PPO",
    "RM pairs",
    "ceiling",
    "KL",
    "length",
    "seconds",
)


def run(cfg: Config) -> Path:
    """Runs the pipeline once per seed, each in its own folder; returns the folder of bench.json and bench.md.

    bench.what=memory: once, in run.dir, and compares the memory that each stage took with the prediction.
    bench.what=architectures: small imitations of many architectures through every stage.
    bench.what=collect: no training; simulated annotators against a real collection server.
    bench.what=connections: no training; the same beside a crowd that holds connections and says nothing.
    bench.what=collect_size: no training; every page and command in a collection of tens of thousands.
    bench.what=speed: seconds and memory of PPO iterations on a fixed workload; the last line is JSON.
    """
    folder = Path(cfg.run.dir)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    measured_by = {
        BenchWhat.memory: bench_memory,
        BenchWhat.collect: bench_collect,
        BenchWhat.connections: bench_connections,
        BenchWhat.collect_size: bench_collect_size,
        BenchWhat.architectures: bench_architectures,
        BenchWhat.speed: bench_speed,
    }
    if cfg.bench.what in measured_by:
        bench = measured_by[cfg.bench.what]
        rows = bench.measure(cfg)
        lines = bench.markdown(rows)
    else:
        rows = [measure(cfg, seed, folder / f"seed-{seed}") for seed in cfg.bench.seeds]
        lines = markdown(rows)
    text = "\n".join([*facts(), "", *lines])
    write_durably(folder / "bench.json", json.dumps(rows, indent=1))
    write_durably(folder / "bench.md", text + "\n")
    print(text)
    return folder


def measure(cfg: Config, seed: int, run_dir: Path) -> dict:
    """One seed's figures; what is up to date is not run again. seconds: wall time by stage, without the imports."""
    inputs = dataclasses.replace(cfg.inputs, **{role: str(run_dir / role) for role in ("sft", "reward", "ppo")})
    run_cfg = dataclasses.replace(cfg, seed=seed, run=dataclasses.replace(cfg.run, dir=str(run_dir)), inputs=inputs)
    pipeline.run(run_cfg)
    report = json.loads((run_dir / "evaluate" / "report.json").read_text())
    return {
        "seed": seed,
        "win_rate": report["win_rate"],
        "policies": report["policies"],
        "reward_card": next(iter(report["reward_cards"].values()), None),
        "seconds": {
            stage: load_manifest(run_dir / stage)["seconds"] for stage in STAGES if is_complete(run_dir / stage)
        },
    }


def facts() -> list[str]:
    """Where and with what the figures were measured."""
    git = git_state() or {"commit": "no git", "dirty": False}
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores, no GPU"
    return [
        f"command: python -m stages.bench {' '.join(sys.argv[1:])}".rstrip(),
        f"commit: {git['commit'][:12]}{' with uncommitted changes' if git['dirty'] else ''}",
        f"machine: {platform.machine()}, {device}; {versions}",
    ]


def markdown(rows: list[dict]) -> list[str]:
    """The figures as a Markdown table, a row per seed."""
    return list(markdown_table(COLUMNS, map(row_cells, rows)))


def row_cells(row: dict) -> tuple[str, ...]:
    rate, card, policies = row["win_rate"], row["reward_card"], row["policies"]
    gold = [_number(policies[role]["gold_mean"], ".2f") for role in ("sft", "ppo")]
    accuracies = [at(card, f"{name}.value") for name in ("pair_accuracy", "gold_pair_accuracy")]
    return (
        str(row["seed"]),
        f"{rate['value']:.1%}",
        f"{rate['low']:.1%} to {rate['high']:.1%}",
        *gold,
        *(_number(accuracy, ".1%") for accuracy in accuracies),
        f"{policies['ppo']['kl']:.2f}",
        f"{policies['sft']['length_mean']:.1f} -> {policies['ppo']['length_mean']:.1f}",
        f"{' + '.join(f'{own:.0f}' for own in row['seconds'].values())} = {sum(row['seconds'].values()):.0f}",
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
