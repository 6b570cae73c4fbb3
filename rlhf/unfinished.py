"""What an unfinished run of a stage has left in its folder, and whether another run may go on from there."""

from pathlib import Path

from rlhf.artifacts import differences
from rlhf.config import RunConfig
from rlhf.dependencies import is_of_a_rule
from rlhf.errors import ArtifactError
from rlhf.files import is_temporary, read_json

# How the work is split, which changes no more than rounding: run.reshard=true lets a stopped run go on otherwise.
SPLIT = (
    *("world_size ", "deepspeed.", "sft.micro_batch_size ", "reward.micro_batch_size ", "ppo.micro_batch_size "),
    *("rollout.batch_size ", "model.gradient_checkpointing "),
)
# What acts only when a stage has trained: it may be another in a run that goes on.
AFTER_TRAINING = {"reward": ("data.gold_rule", "reward.norm_samples ", "rollout.")}


def is_begun(folder: Path) -> bool:
    """Whether there is anything in the folder of a stage but what a kill leaves."""
    return any(path.is_file() and not is_temporary(path) for path in folder.rglob("*"))


def is_trained(checkpoints: Path) -> bool:
    """Whether a step was saved. Where none was, a mistake in data or config must not stand in its remedy's way."""
    return any(checkpoints.glob("[!.]*-[0-9]*"))


def differences_from(record: Path, stage: str, new: dict) -> list[str]:
    """How the run whose record this is differs from a new one in what it has trained, a sentence each."""
    try:
        reasons = differences(read_json(record), new)
    except ArtifactError as error:
        return [str(error)]
    return [reason for reason in reasons if not reason.startswith(AFTER_TRAINING.get(stage, ()))]


def different(folder: Path, reasons: list[str]) -> ArtifactError:
    """The refusal of a folder with a stopped run that differs from this one."""
    return ArtifactError(
        f"{folder} holds a stopped run that differs ({'; '.join(reasons)}). Give it the old values, choose another "
        f"run.dir, {_ways_on(reasons)}or run.resume=never to start again (the old one moves aside)"
    )


def _ways_on(reasons: list[str]) -> str:
    """The options with which a run that differs so goes on all the same; "" where none does."""
    ways = ""
    if _all_start_with(reasons, SPLIT):
        ways += "run.reshard=true to go on from it with other processes, "
    if reasons and all(map(is_of_a_rule, reasons)):
        ways += "run.mended_rule=true to go on with the rule as it is now, "
    return ways


def may_go_on(reasons: list[str], run: RunConfig) -> bool:
    """Whether the differences are those that the options of this run allow."""
    return run.reshard and _all_start_with(reasons, SPLIT)


def _all_start_with(reasons: list[str], starts: tuple[str, ...]) -> bool:
    return bool(reasons) and all(reason.startswith(starts) for reason in reasons)


def foreign(folder: Path) -> ArtifactError:
    """The refusal of a folder in which somebody else's files are."""
    names = sorted(path.name for path in folder.iterdir())
    named = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return ArtifactError(
        f"{folder} holds files of no run of this stage ({named}): it does not say what it was. Choose another run.dir, "
        "or run.resume=never to begin in an empty folder (the old one moves aside)"
    )
