"""One module per stage: `python -m stages.NAME`."""

import logging
import os
import sys

from stages.shadows import shadow

# GNU OpenMP's threads wait for each other by spinning, long after another program has taken their core: on two busy
# cores a training step of the tiny model took 5 s instead of 0.07 s. With a short spin it takes 0.4 s, and 0.075 s on
# idle ones. Read once, when torch loads OpenMP, so it is set before any stage imports torch.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# DeepSpeed's launcher numbers CPU processes with this variable, and on a machine with GPUs would so show them some.
if os.environ.get("DS_ACCELERATOR") == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# It tells at import, where a CPU could use it, that an optional package of faster kernels is not installed.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def start(module: str, makes_inputs: bool = False) -> None:
    """Runs a stage from the command line and ends the process: what `python -m stages.NAME` does first.

    makes_inputs: its `run` makes the artifacts that it consumes.
    """
    if reason := shadow(sys.path[0]):
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(2)
    from rlhf.run import command  # ours, for certain

    command.start(module, makes_inputs)
