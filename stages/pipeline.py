"""All stages in their order, each only when it is not up to date. `python -m stages.pipeline`"""

from pathlib import Path

import hydra

from rlhf import cli
from rlhf.config import Config
from stages import evaluate, ppo, reward, sft


def run(cfg: Config) -> Path:
    """Brings every artifact of the run up to date, says why, and returns that of the evaluation, with the report."""
    for stage in (sft, reward, ppo):
        stage.run(cfg, replace=True)
    folder = evaluate.run(cfg, replace=True)
    evaluate.print_comparison(folder)
    return folder


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def main(cfg) -> None:
    cli.run_stage(run, cfg)


if __name__ == "__main__":
    cli.entry(main)
