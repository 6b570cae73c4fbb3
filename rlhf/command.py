"""The command line of a stage, `python -m stages.NAME`: the config is composed and checked before torch is imported."""

import os
import sys
from importlib import import_module

import hydra

from rlhf.cli import failures_told, run_stage
from rlhf.composing import CONF
from rlhf.config_errors import config_errors
from rlhf.help import help_text


def start(module: str) -> None:
    """Runs the module's `run` with the config that the command line asks for, and ends the process."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions reach us instead of Hydra's own printer
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(help_text(module))
        sys.exit()
    with failures_told(debug="run.debug=true" in sys.argv), config_errors(sys.argv[1:]):
        hydra.main(version_base="1.3", config_path=CONF, config_name="config")(job_of(module))()
    sys.exit()


def job_of(module: str):
    """What Hydra calls with the composed config."""

    def job(cfg) -> None:
        run_stage(lambda config: import_module(module).run(config), cfg)

    job.__module__ = module  # Hydra names the job after it
    return job
