"""What an unfinished run of a stage has left in its folder, and whether another run may go on from there."""

from pathlib import Path

from rlhf.artifacts.dependencies import Needs
from rlhf.artifacts.differences import ChangedRule, ChangedValue, Difference, differences
from rlhf.config.keys import is_any
from rlhf.config.schema import RunConfig
from rlhf.errors import ArtifactError
from rlhf.files import is_temporary, read_json


def is_begun(folder: Path) -> bool:
    """Whether there is anything in the folder of a stage but what a kill leaves."""
    return any(path.is_file() and not is_temporary(path) for path in folder.rglob("*"))


def is_trained(checkpoints: Path) -> bool:
    """Whether a step was saved. Where none was, a mistake in data or config must not stand in its remedy's way."""
    return any(checkpoints.glob("[!.]*-[0-9]*"))


def differences_from(record: Path, needs: Needs, new: dict) -> list[Difference]:
    """How the run whose record this is differs from a new one in what it has trained.

    Where the record cannot be read, one that no option allows: it says what is wrong with the record.
    """
    try:
        found = differences(read_json(record), new)
    except ArtifactError as error:
        return [Difference(str(record), str(error))]
    return [difference for difference in found if not acts_after_training(difference, needs)]


def acts_after_training(difference: Difference, needs: Needs) -> bool:
    """Whether the difference is one of a value, or of a rule's code, that acts only when the stage has trained."""
    is_named = isinstance(difference, ChangedValue | ChangedRule)
    return is_named and is_any(difference.key, needs.after_training)


def is_of_the_split(difference: Difference, needs: Needs) -> bool:
    """Whether only the work is split otherwise."""
    return isinstance(difference, ChangedValue) and is_any(difference.key, needs.split)


def may_go_on(found: list[Difference], needs: Needs, run: RunConfig) -> bool:
    """Whether the differences are those that run.reshard=true allows."""
    return run.reshard and bool(found) and all(is_of_the_split(difference, needs) for difference in found)


def different(folder: Path, needs: Needs, found: list[Difference]) -> ArtifactError:
    """The refusal of a folder with a stopped run that differs from this one."""
    return ArtifactError(
        f"{folder} holds a stopped run that differs ({'; '.join(map(str, found))}). Give it the old values, choose "
        f"another run.dir, {_ways_on(found, needs)}or run.resume=never to start again (the old one moves aside)"
    )


def _ways_on(found: list[Difference], needs: Needs) -> str:
    """The options with which a run that differs so goes on all the same; "" where none does."""
    ways = ""
    if all(is_of_the_split(difference, needs) for difference in found):
        ways += "run.reshard=true to go on from it with other processes, "
    if all(isinstance(difference, ChangedRule) for difference in found):
        ways += "run.mended_rule=true to go on with the rule as it is now, "
    return ways


def foreign(folder: Path) -> ArtifactError:
    """The refusal of a folder in which somebody else's files are."""
    names = sorted(path.name for path in folder.iterdir())
    named = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return ArtifactError(
        f"{folder} holds files of no run of this stage ({named}): it does not say what it was. Choose another run.dir, "
        "or run.resume=never to begin in an empty folder (the old one moves aside)"
    )
