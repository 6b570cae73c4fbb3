"""Predicted memory beside the measured peak, a fresh process per stage. `python -m stages.bench bench.what=memory`"""

import importlib
import multiprocessing
import os
from pathlib import Path

import torch

from rlhf.config.schema import Config
from rlhf.errors import RlhfError
from rlhf.preflight.forecast import gigabytes, places
from rlhf.preflight.memory import on_gpu
from rlhf.run.stage import Stage
from rlhf.tables import markdown_table

STAGES = ("sft", "reward", "ppo")
# Freed memory goes back to the system at once, so that what is resident is what is in use; else glibc keeps parts.
EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
COLUMNS = ("stage", "phase", "predicted", "measured", "error")


def measure(cfg: Config) -> list[dict]:
    """Runs the three stages in run.dir, each in a process of its own; a row per stage that was not up to date."""
    return [row for name in STAGES if (row := in_fresh_process(name, cfg)) is not None]


def in_fresh_process(name: str, cfg: Config) -> dict | None:
    """What `measure_stage` gives. Raises RlhfError where the process failed."""
    os.environ |= EXACT  # read when the new process starts
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=measure_stage, args=(name, cfg, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError as error:
        raise RlhfError(f"stages.{name} failed while its memory was measured; its own error is above") from error
    finally:
        process.join()


def measure_stage(name: str, cfg: Config, result) -> None:
    """Sends the stage's predicted and measured peak in bytes, and the phase that was predicted to need most.

    On a GPU the measure is torch's; on a CPU the most that was resident, less what was so before the stage began.
    """
    module = importlib.import_module(f"stages.{name}")
    stage = Stage(module.needs(cfg), cfg, module.all_inputs(cfg))
    if not stage.reasons():
        result.send(None)
        return
    extent = module.num_rankings(cfg) if name == "reward" else ()
    phases = module.forecast(cfg, stage, *extent).phases
    need = places()[0][2]
    worst = max(phases, key=lambda phase: need(phase, 1.0))
    before = resident("VmRSS")
    module.run(cfg)
    peak = torch.cuda.max_memory_allocated() if on_gpu() else resident("VmHWM") - before
    result.send({"stage": name, "phase": worst.name, "predicted": need(worst, 1.0), "measured": peak})


def resident(key: str) -> int:
    """Bytes of this process in RAM: now (VmRSS), or at most so far (VmHWM; ru_maxrss has the parent's too)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def markdown(rows: list[dict]) -> list[str]:
    """The figures as a Markdown table, a row per stage."""
    return list(markdown_table(COLUMNS, map(row_cells, rows)))


def row_cells(row: dict) -> tuple[str, ...]:
    error = row["predicted"] / row["measured"] - 1
    return row["stage"], row["phase"], gigabytes(row["predicted"]), gigabytes(row["measured"]), f"{error:+.0%}"
