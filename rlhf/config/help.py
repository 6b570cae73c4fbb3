"""What `--help` says of a stage: made from the comments in conf/*.yaml, so that it cannot differ from them."""

import ast
from importlib.util import find_spec
from pathlib import Path

from rlhf.config.files import groups, options, sections, settings

# Those that most runs set. The comments in conf say what each is.
KEYS = (
    *("run.dir", "model.path", "data.demonstrations", "data.rankings", "data.prompts", "data.max_response_tokens"),
    *("sft.learning_rate", "ppo.num_steps", "ppo.kl_coef", "preflight"),
)
OPTIONS = {
    "--cfg job": "show every key of the config that this command would run with, and end",
    "--config-dir DIR": "find files of your own as well: DIR/experiment/mine.yaml for experiment=mine",
    "-m": "run one job for each value of KEY=A,B, one after the other, each in a folder of its own below run.dir",
    "--hydra-help": "what else Hydra, which reads the command line, can do",
}


def help_text(module: str) -> str:
    """The help of a stage, e.g. of "stages.sft"."""
    keys = {f"{key}={value}": comment for key in KEYS for value, comment in [setting(key)]}
    files = {f"{group}=": f"{comment}: {', '.join(options(group))}" for group, (_, comment) in groups().items()}
    return "\n".join(
        [
            _first_line(module),
            "",
            f"python -m {module} [KEY=VALUE ...] [OPTION ...]",
            *_block("Keys that most runs set, with their defaults (quote a value with signs other than ._-/:@)", keys),
            *_block("Files that set several keys at once, in conf or in a folder of your own", files),
            *_block("Other sections; conf/*.yaml explains every key", sections()),
            *_block("Options", OPTIONS),
        ]
    )


def setting(key: str) -> tuple[str, str]:
    """The default of a key and the comment beside it."""
    section, _, name = key.rpartition(".")
    own = settings("config.yaml") if section not in groups() else settings(f"{section}/{groups()[section][0]}.yaml")
    found = own[key if section not in groups() else name]
    return found.value, found.comment


def _first_line(module: str) -> str:
    """Of the module's docstring; read, not imported."""
    docstring = ast.get_docstring(ast.parse(Path(find_spec(module).origin).read_text(encoding="utf-8")))
    return docstring.splitlines()[0].split(" `python -m")[0]


def _block(title: str, rows: dict[str, str]) -> list[str]:
    width = max(map(len, rows)) + 2
    return ["", f"{title}:", *(f"  {name.ljust(width)}{text}" for name, text in rows.items())]
