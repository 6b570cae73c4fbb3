"""Files of the user's own that stand before a package of the same name, where a command is started."""

from importlib.machinery import PathFinder
from pathlib import Path

HERE = Path(__file__).parents[1]  # where our packages are
OURS = ("reward", "rlhf")
LIBRARIES = (
    "accelerate",
    "datasets",
    "hydra",
    "numpy",
    "omegaconf",
    "peft",
    "rich",
    "tokenizers",
    "torch",
    "transformers",
    "trl",
    "wandb",
    "yaml",
)


def shadow(folder: str) -> str | None:
    """Why nothing could run from a folder, in one line: a file or package in it hides ours, or one that we use."""
    if Path(folder or ".").resolve() == HERE / "stages":
        return "a stage is started as a module, from another folder: python -m stages.NAME"
    for name in (*OURS, *LIBRARIES):
        spec = PathFinder.find_spec(name, [folder or "."])
        if spec and spec.origin and HERE not in Path(spec.origin).resolve().parents:
            kind = "our package" if name in OURS else "the library"
            return f"{spec.origin} hides {kind} {name!r} from Python; give it another name, e.g. my_{name}"
    return None
