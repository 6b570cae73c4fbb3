"""How a stage meets its user: one clear line instead of a traceback, an exit code, and a stop that loses nothing.

Exit codes: 0 done, 2 user input, 3 artifact refused, 4 numerics, 5 another rank failed, 75 stopped by a signal after
saving, 1 our bug.
"""

import logging
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from rlhf.config.checks import resolve
from rlhf.config.errors import config_errors
from rlhf.config.schema import Config, Engine, RunConfig
from rlhf.console import say
from rlhf.errors import RlhfError, Stopped, first_line
from rlhf.files import writing
from rlhf.ranks import is_main, launched_world_size, rank
from rlhf.run.stopping import going_on

# Seconds after which the launcher, which looks every second, has ended this rank if another one failed before it.
OTHERS_FIRST = 5
PEER_FAILED = 5  # exit code

# What gloo and NCCL say when another process of the run is gone or hangs.
PEER_LOST = re.compile(
    "Connection (closed|reset|refused)|Broken pipe|[Tt]imed out|ncclRemoteError|NCCL.*(abort|timeout)"
)

# What torch says where there is too little of it, on a GPU or not. Python has an error of its own.
OUT_OF_MEMORY = re.compile("out of memory|not enough memory|can(no|')t allocate memory", re.I)


def run_stage(run: Callable[[Config], Path], cfg) -> None:
    """Checks the whole config, then runs the stage."""
    config = None
    with failures_told(cfg.run.debug, lambda: config and config.run):  # inside Hydra's own error printer
        with config_errors():
            config = resolve(cfg, launched_world_size())
        from rlhf import distributed  # torch, only now that the config is sound

        quieten_libraries()
        if config.deepspeed.engine is Engine.deepspeed:
            distributed.start()
        with writing(config.run.dir):
            run(config)
        distributed.leave()


@contextmanager
def failures_told(debug: bool, run: Callable[[], RunConfig | None] = lambda: None):
    """Turns every expected failure into one line and its exit code; a bug of ours keeps its traceback.

    run: gives that section of the config, once it is sound.
    """
    try:
        yield
    except KeyboardInterrupt:
        say(f"stopped at once. The last checkpoint is kept: {going_on(run())} from it")
        sys.exit(130)
    except Exception as error:  # the outermost frame: everything ends here as a message and an exit code
        line, code = explain(error, run())
        trace = traceback.format_exc() if code == 1 or debug else ""
        _tell(line, code, trace, is_shared=getattr(error, "is_on_all_ranks", False))
        sys.exit(code)


def _tell(line: str, code: int, trace: str, is_shared: bool) -> None:
    """Prints an error once: what all ranks meet, rank 0 says; what only one meets, that one says.

    is_shared: it is known that all meet it. Else the others wait for the launcher to end them before they speak.
    """
    if code == Stopped.exit_code:  # all ranks at the same step
        from rlhf import distributed

        distributed.leave()  # together: the launcher ends all at the first exit, while rank 0 may still speak to W&B
        say(f"{trace}error: {line}")
        return
    time.sleep(OTHERS_FIRST * ((not is_main()) + (code == PEER_FAILED)))
    if is_shared and not is_main():
        return
    name = "" if is_main() else f"[rank {rank()}] "
    print(f"{trace}{name}error: {line}", file=sys.stderr, flush=True)


def explain(error: Exception, run: RunConfig | None = None) -> tuple[str, int]:
    """What to tell the user about an error, in one line, and the exit code. run: that section, where it is sound."""
    if isinstance(error, RlhfError):
        return str(error), error.exit_code
    if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error)):
        size = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.I)
        line = f"out of memory (tried to allocate {size[1]})" if size else "out of memory"
        return f"{line}. preflight=true shows what takes how much and what lowers it; the last checkpoint is kept", 2
    if launched_world_size() > 1 and isinstance(error, RuntimeError) and PEER_LOST.search(str(error)):
        line = f"another rank was ended or does not answer ({first_line(error).split('. ')[0]})"
        return f"{line}: {going_on(run)} from the last checkpoint", PEER_FAILED
    return f"{type(error).__name__}: {error}. This is a bug of ours: please report it", 1


def quieten_libraries() -> None:
    """Their progress bars and advice would break our one line; their errors still come through."""
    import accelerate.utils.other
    import datasets
    import transformers

    # It imports DeepSpeed, where that is installed, to see whether a model is one of its engines: two seconds, and a
    # warning of a library that is not in use. Where nobody has imported it, none is.
    accelerate.utils.other.is_deepspeed_available = lambda: "deepspeed" in sys.modules

    for module in ("transformers", "torch.distributed"):  # of options that TRL sets, and of calls that DeepSpeed makes
        warnings.filterwarnings("ignore", category=FutureWarning, module=module)
    # It misses an optional kernel as soon as peft looks for it.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
