"""The command line of a stage, `python -m stages.NAME`: the config is composed and checked before torch is imported."""

import os
import sys
from importlib import import_module

import hydra
from hydra._internal.utils import get_args_parser

from rlhf.config.composing import CONF
from rlhf.config.errors import config_errors, told_option
from rlhf.config.help import help_text
from rlhf.errors import UserError
from rlhf.run.cli import failures_told, run_stage
from rlhf.run.sweep import plan_jobs, run_sweep


def start(module: str, makes_inputs: bool = False) -> None:
    """Runs the module's `run` with the config that the command line asks for, and ends the process.

    makes_inputs: `run` makes the artifacts that it consumes.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions reach us instead of Hydra's own printer
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with failures_told(debug="run.debug=true" in sys.argv), config_errors(sys.argv[1:]):
        options = read_options()
        if options.help:
            print(help_text(module))
        elif options.multirun and not (options.cfg or options.info):
            sys.exit(run_sweep(run_of(module), plan_jobs(options.overrides, options.config_dir, makes_inputs)))
        else:
            hydra.main(version_base="1.3", config_path=CONF, config_name="config")(job_of(module))()
    sys.exit()


def read_options():
    """Hydra's own options and the settings. UserError at an option that it does not have."""
    options, unknown = get_args_parser().parse_known_intermixed_args()
    if unknown:
        raise UserError(f"config: {told_option(unknown[0])}")
    if "hydra.mode=MULTIRUN" in options.overrides:
        raise UserError("config: hydra.mode=MULTIRUN: write -m in its place")
    words = [word for word in sys.argv[1:] if word not in options.overrides]
    sys.argv[1:] = [*words, *options.overrides]  # Hydra reads no setting that stands behind an option
    return options


def run_of(module: str):
    """The module's `run`; the module is imported only when it is called."""
    return lambda config: import_module(module).run(config)


def job_of(module: str):
    """What Hydra calls with the composed config."""

    def job(cfg) -> None:
        run_stage(run_of(module), cfg)

    job.__module__ = module  # Hydra names the job after it
    return job
