"""docs/config.md: every key of the config, from conf/*.yaml and rlhf/config/schema.py. `python -m rlhf.config.page`"""

import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from functools import cache
from operator import attrgetter
from types import NoneType
from typing import Any, get_args, get_origin

from rlhf.config.checks import resolve
from rlhf.config.composing import shipped_config
from rlhf.config.files import Setting, base_of, groups, options, purpose, sections, settings
from rlhf.config.schema import Config, RewardTerm
from rlhf.errors import UserError
from rlhf.tables import markdown_table

TOP = """# Every key of the config

<!-- Made from conf/*.yaml and rlhf/config/schema.py by `python -m rlhf.config.page > docs/config.md`. Change those. -->

A key is set on the command line (`ppo.num_steps=100`), in an experiment of your own
([tuning.md](tuning.md#experiments)), or by choosing another file of a group (`model=pythia-160m`).
`python -m stages.ppo --cfg job` prints what a run would use. A key that does not exist, a value of the wrong kind or
out of bounds, and values that do not go together are refused before anything is loaded.

*Default* is what a command without arguments uses: the toy data and the tiny model. `${run.dir}` stands for the value
of that key. *Values* is what the key takes.
"""
WORDS = {
    bool: "true, false",
    int: "whole number",
    float: "number",
    str: "text",
    NoneType: "null",
    Any: "source, list of sources, null",
}
PROBES = (-1, 0, 1, 2.0**40)  # one or the other breaks each bound of a key
OTHER_KEY = re.compile(r"[a-z]\.[a-z]")  # a rule that names one is about two keys
BESIDE = re.compile(r"( and|,) finite|, or (be )?null")  # said of every number, and by the kind of value


def page() -> str:
    """The whole of docs/config.md."""
    parts = [TOP, *_top_keys(), *_sections(), *_groups(), *_experiments()]
    return "\n".join(parts)


def _top_keys() -> Iterator[str]:
    names = [field.name for field in fields(Config) if not is_dataclass(field.type)]
    yield from ("## The whole run", "", *_table(names, "config.yaml"), "")


def _sections() -> Iterator[str]:
    for name, said in sections().items():
        keys = [key for key in settings("config.yaml") if key.startswith(f"{name}.")]
        yield from (f"## `{name}`", "", f"{_sentence(said)}", "", *_table(keys, "config.yaml"), "")
        if name == "ppo":
            yield from (*_reward_terms(), "")


def _reward_terms() -> Iterator[str]:
    given = {field.name: f"`{_yaml(field.default)}`" for field in fields(RewardTerm)} | {"source": "must be given"}
    rows = [(f"`{field.name}`", _kind(field.type), given[field.name]) for field in fields(RewardTerm)]
    yield from ("A term of `ppo.rewards`:", "", *markdown_table(("field", "values", "default"), rows))


def _groups() -> Iterator[str]:
    for name, (default, said) in groups().items():
        if name != "experiment":
            file = f"{name}/{default}.yaml"
            files = ", ".join(f"`{name}={option}`" for option in options(name))
            yield from (
                f"## `{name}`",
                "",
                f"{_sentence(said)} Files: {files}; without a choice `{name}={default}`.",
                "",
            )
            if (base := base_of(file)) and purpose(base):
                yield from (purpose(base), "")
            yield from (*_table(list(settings(file)), file, f"{name}."), "")
            for other in options(name):
                yield from _other_file(name, other, settings(file))


def _other_file(group: str, name: str, default: dict[str, Setting]) -> Iterator[str]:
    """What a file of a group is for, and the keys in which it differs from the default one."""
    file = f"{group}/{name}.yaml"
    if purpose(file):
        yield from (f"**`{group}={name}`**. {purpose(file)}", "")
    rows = {
        f"{group}.{key}": replace(found, comment="" if found.comment == default[key].comment else found.comment)
        for key, found in settings(file).items()
        if found.value != default[key].value
    }
    if rows:
        yield from (*_values(rows), "")


def _experiments() -> Iterator[str]:
    yield from (
        "## `experiment`",
        "",
        f"{_sentence(groups()['experiment'][1])} Its values win over those of the groups.",
        "",
    )
    for name in options("experiment"):
        file = f"experiment/{name}.yaml"
        own = dict(settings(file))
        defaults = own.pop("defaults", None)
        chosen = re.findall(r"override /(\w+): ([\w.-]+)", defaults.value) if defaults else []
        yield from (f"**`experiment={name}`**. {purpose(file)}", "")
        if chosen:
            yield from (f"It chooses {', '.join(f'`{group}={option}`' for group, option in chosen)}.", "")
        yield from (*_values({key: found for key, found in own.items() if found.value}), "")


def _values(rows: dict[str, Setting]) -> Iterator[str]:
    """A row for each key that a file sets; with its comments where it has any."""
    cells = [(f"`{key}`", f"`{found.value}`", _cell(found.comment)) for key, found in rows.items()]
    width = 3 if any(found.comment for found in rows.values()) else 2
    return markdown_table(("key", "value", "why")[:width], [row[:width] for row in cells])


def _table(keys: list[str], file: str, prefix: str = "") -> Iterator[str]:
    """A row for each key of a file that has a value."""
    own = {key: settings(file)[key] for key in keys if settings(file)[key].value}
    rows = [
        (f"`{prefix}{key}`", f"`{found.value}`", _cell(allowed(prefix + key)), _cell(found.comment))
        for key, found in own.items()
    ]
    return markdown_table(("key", "default", "values", "what it does"), rows)


def allowed(key: str) -> str:
    """The values that a key takes: their kind, and the bounds that the config's checks name."""
    kind = _type_of(key)
    return "; ".join([_kind(kind), *(_bounds(key) if _is_number(kind) else [])])


def _type_of(key: str) -> Any:
    kind = Config
    for name in key.split("."):
        section = next(part for part in _parts(kind) if is_dataclass(part))
        kind = section.__dataclass_fields__[name].type
    return kind


def _parts(kind: Any) -> tuple:
    """Of an optional type, it and None."""
    return get_args(kind) or (kind,)


def _is_number(kind: Any) -> bool:
    return get_origin(kind) is not list and bool({int, float} & set(_parts(kind)))


def _kind(kind: Any) -> str:
    """A type in a reader's words."""
    return ", ".join(map(_word, [kind] if get_origin(kind) in (list, dict) else _parts(kind)))


def _word(kind: Any) -> str:
    if get_origin(kind) is list:
        return f"list of: {_kind(get_args(kind)[0])}"
    if get_origin(kind) is dict:
        return "names with their values"
    if is_dataclass(kind):
        return "terms"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(f"`{option.value}`" for option in kind)
    return WORDS[kind]


def _bounds(key: str) -> list[str]:
    """The rules that the checks name for values out of bounds; of two lower bounds the higher one."""
    rules = [rule for value in PROBES if (rule := refusal(key, value))]
    return list({rule[0]: rule for rule in rules}.values())


def refusal(key: str, value: Any) -> str:
    """The rule that the shipped config would break if this key had this value; "" where it breaks none of its own."""
    config = deepcopy(_shipped())
    section, _, name = key.rpartition(".")
    setattr(attrgetter(section)(config) if section else config, name, value)
    try:
        resolve(config)
    except UserError as error:
        rule = re.fullmatch(rf"config: {key}={re.escape(str(value))} must (?:be |lie )?([^:;]+).*", str(error))
        return "" if rule is None or OTHER_KEY.search(rule[1]) else BESIDE.sub("", rule[1])
    return ""


@cache
def _shipped() -> Config:
    return shipped_config()


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value)


def _cell(text: str) -> str:
    """Text that stays in its cell."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


if __name__ == "__main__":
    print(page(), end="")
