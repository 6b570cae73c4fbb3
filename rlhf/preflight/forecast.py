"""Tells what a stage needs before it loads a weight, and refuses what cannot fit. `python -m stages.ppo preflight=true`

What is told is for sequences as long as the config allows. A run is refused only when it cannot fit all the same with
sequences of a quarter of that (CERTAIN_SHARE) and a tenth of the rest less (MARGIN): what would fit is never refused.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, PretrainedConfig

from rlhf.artifacts.manifest import CHECKPOINTS
from rlhf.config.schema import Config
from rlhf.console import say
from rlhf.distributed import is_main, on_main, world_size
from rlhf.errors import UserError
from rlhf.models.policies import scratch_config
from rlhf.preflight.memory import Phase, Sizes, on_gpu
from rlhf.training.epochs import steps_per_epoch
from rlhf.training.trainer import num_steps

CERTAIN_SHARE = 0.25  # of what grows with the length of sequences: data are often shorter than their limits
MARGIN = 0.9
GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


@dataclass(frozen=True)
class Planned:
    """A stage before its inputs are there, as far as its needs go. manifests: of those inputs that are."""

    name: str
    folder: Path
    input_paths: dict[str, Path]
    manifests: dict[str, dict]

    @property
    def checkpoint_folder(self) -> Path:
        return self.folder / CHECKPOINTS


@dataclass(frozen=True)
class Forecast:
    """What a stage will take, in its own words. disk: bytes by what is written; work: how much of it, in sentences.

    disk_knob: the key that lowers it.
    """

    phases: list[Phase]
    disk: dict[str, float]
    work: list[str]
    disk_knob: str = ""


def show_needs(stage, forecast: Forecast) -> None:
    """Prints what a stage, or a planned one, needs."""
    if is_main():
        tables = [phase_table(stage.name, forecast.phases), item_table(largest(forecast.phases))]
        for part in (*tables, *forecast.work, *space(stage, forecast)):
            Console(width=None if os.isatty(1) else 140).print(part, highlight=False)


def require_fit(stage, forecast: Callable[[], Forecast]) -> None:
    """Raises UserError, on all ranks, when the stage cannot fit in memory or on the disk."""
    on_main(lambda: _require_fit(stage, forecast))


def _require_fit(stage, forecast: Callable[[], Forecast]) -> None:
    try:
        foreseen = forecast()
    except Exception as error:  # what cannot run without data, such as a model with code of its own, may yet train
        say(f"  no preflight for this model ({type(error).__name__}: {str(error)[:80]})")
        return
    check_memory(foreseen.phases)
    check_disk(stage, foreseen)


def check_memory(phases: list[Phase]) -> None:
    """Raises UserError where a phase cannot fit; says where one may not."""
    for where, have, need in places():
        worst = max(phases, key=lambda phase: need(phase, CERTAIN_SHARE))
        least = need(worst, CERTAIN_SHARE) * MARGIN
        if least > have:
            raise UserError(
                f"{where} has {gigabytes(have)}, and the phase '{worst.name}' needs at least {gigabytes(least)}; its "
                f"largest part, {worst.largest.name}, is lowered by {worst.largest.knob or 'a smaller model'} "
                "(preflight=true shows all parts)"
            )
        worst = max(phases, key=lambda phase: need(phase, 1.0))
        if need(worst, 1.0) > have:
            say(
                f"  may run out of memory: '{worst.name}' takes {gigabytes(need(worst, 1.0))} with the longest "
                f"sequences that the config allows, {where} has {gigabytes(have)} (preflight=true shows the parts)"
            )


def check_disk(stage, forecast: Forecast) -> None:
    """Raises UserError where the checkpoints and the artifact do not fit on the disk of run.dir."""
    have, need = free_disk(stage), sum(forecast.disk.values())
    if need * MARGIN > have:
        raise UserError(
            f"the disk of {stage.folder} has {gigabytes(have)} left, and checkpoints and artifact need "
            f"{gigabytes(need)}; free some, or choose another run.dir"
            + (f" or a lower {forecast.disk_knob}" if forecast.disk_knob else "")
        )


def sizes_of(cfg: Config, stage) -> Sizes:
    """The sizes of the model that a stage starts from."""
    return Sizes(cfg, model_config(cfg, stage))


def model_config(cfg: Config, stage) -> PretrainedConfig:
    """The config of the model that a stage starts from; of an adapter, that of its base."""
    role = next((role for role in ("start_from", "sft") if role in stage.manifests), None)
    trusted = cfg.model.trust_remote_code
    if role is not None:
        artifact, adapter = stage.input_paths[role], stage.manifests[role]["adapter"]
        if adapter is None:
            return AutoConfig.from_pretrained(artifact / "model", trust_remote_code=trusted)
        path = adapter["base"] if adapter["revision"] else os.path.normpath(artifact / adapter["base"])
        return AutoConfig.from_pretrained(path, revision=adapter["revision"], trust_remote_code=trusted)
    if cfg.model.path is None:
        return scratch_config(cfg.model.scratch, cfg.model.scratch.vocab_size)
    return AutoConfig.from_pretrained(cfg.model.path, revision=cfg.model.revision, trust_remote_code=trusted)


# ---- what there is


def places() -> list[tuple[str, float, Callable[[Phase, float], float]]]:
    """(where, bytes that it has, what of a phase must fit there) for each kind of memory of this machine."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world_size())
    if on_gpu():
        host = ("this machine's free memory", host_memory(), lambda phase, share: phase.host(share, ranks))
        return [("the GPU", gpu_memory(), lambda phase, share: phase.device(share)), host]
    both = lambda phase, share: phase.device(share) * ranks + phase.host(share, ranks)  # noqa: E731
    return [("this machine's free memory", host_memory(), both)]


def gpu_memory() -> float:
    """Bytes of this rank's GPU in all."""
    return float(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)


def host_memory() -> float:
    """Bytes of CPU memory that this process could still get, of the machine with its swap, and of its control group."""
    free = psutil.virtual_memory().available + psutil.swap_memory().free
    for limit, used in GROUPS:
        if Path(limit).exists() and Path(limit).read_text().strip().isdigit():
            cached = _cached(Path(limit).with_name("memory.stat"))
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()) + cached)
    return float(free)


def _cached(stat: Path) -> int:
    """Bytes of files in memory, which the kernel gives up when it is short."""
    lines = stat.read_text().splitlines() if stat.exists() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))


def free_disk(stage) -> float:
    """Bytes for this stage on the disk of its folder: what is free, and what its own checkpoints have already."""
    place = next(path for path in (stage.folder, *stage.folder.absolute().parents) if path.exists())
    own = sum(file.stat().st_size for file in stage.checkpoint_folder.rglob("*") if file.is_file())
    return float(shutil.disk_usage(place).free + own)


# ---- what is told


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def largest(phases: list[Phase]) -> Phase:
    return max(phases, key=lambda phase: phase.device())


def phase_table(stage: str, phases: list[Phase]) -> Table:
    """A row per phase: its total on one rank, what is largest in it, and what lowers that."""
    title = f"{stage}: memory of one rank at its peak, {'on the GPU' if on_gpu() else 'in RAM'}"
    table = Table("phase", title=title, title_justify="left")
    for name in ("models and passes", "CPU copies"):
        table.add_column(name, justify="right")
    table.add_column("largest part")
    table.add_column("lowered by")
    for phase in phases:
        name = f"{phase.name} (largest)" if phase is largest(phases) else phase.name
        part = f"{phase.largest.name}, {gigabytes(phase.largest.size)}"
        table.add_row(name, gigabytes(phase.device()), gigabytes(phase.host()), part, phase.largest.knob or "-")
    return table


def item_table(phase: Phase) -> Table:
    """All parts of one phase, the largest first."""
    table = Table(f"in '{phase.name}'", "size", "lowered by")
    table.columns[1].justify = "right"
    for item in sorted(phase.items, key=lambda item: -item.size):
        table.add_row(f"{item.name} (CPU)" if item.on_host else item.name, gigabytes(item.size), item.knob or "-")
    return table


def epochs(num_records: int, section) -> str:
    """How much work it is to train on so many records. section: `sft` or `reward` of the config."""
    per_epoch = steps_per_epoch(num_records, section.batch_size)
    return (
        f"{num_records} training records an epoch in {per_epoch} optimizer steps of {section.batch_size}; "
        f"{section.num_epochs:g} epochs at most: {num_steps(num_records, section)} steps"
    )


def space(stage, forecast: Forecast) -> list[str]:
    """What there is, beside what is needed."""
    needed = ", ".join(f"{name} {gigabytes(size)}" for name, size in forecast.disk.items())
    memory = [
        f"{where}: {gigabytes(have)}; needed {gigabytes(max(need(phase, 1.0) for phase in forecast.phases))}"
        for where, have, need in places()
    ]
    return [*memory, f"disk: {gigabytes(free_disk(stage))} free; needed {needed or 'next to nothing'}"]
