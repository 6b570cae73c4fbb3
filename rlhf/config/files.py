"""The files of conf as a reader sees them: each key, its value as it is written, and the comment beside it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import yaml

from rlhf.config.composing import CONF


@dataclass(frozen=True)
class Setting:
    """value: as it is written, "" for a section of keys; comment: the one beside the key, else the one above it."""

    value: str
    comment: str


@cache
def settings(file: str) -> dict[str, Setting]:
    """Each key of a file of conf, e.g. of "model/tiny.yaml", in the file's order; "ppo.kl_coef" stands in `ppo`.

    A file of a group has the keys of its base as well, each with the comment there where it has none of its own.
    """
    text = "\n".join(_lines(file))
    own = dict(_settings(yaml.compose(text), text, ""))
    if (base := base_of(file)) is None:
        return own
    shared, own = settings(base), {key: found for key, found in own.items() if key != "defaults"}
    own = {key: replace(found, comment=found.comment or _comment_in(shared, key)) for key, found in own.items()}
    return shared | own


def base_of(file: str) -> str | None:
    """The file of conf that says what all files of a group have in common, and what each key is; None without one."""
    base = re.search(r"^  - /(_base/\w+)@_here_$", "\n".join(_lines(file)), re.M)
    return f"{base[1]}.yaml" if base else None


def _comment_in(shared: dict[str, Setting], key: str) -> str:
    return shared[key].comment if key in shared else ""


def _settings(node: yaml.MappingNode, text: str, prefix: str) -> Iterator[tuple[str, Setting]]:
    for key, value in node.value:
        name, written = prefix + key.value, text[value.start_mark.index : value.end_mark.index]
        is_block = isinstance(value, yaml.CollectionNode) and not value.flow_style
        if is_block and isinstance(value, yaml.MappingNode):
            yield name, Setting("", _comment(text, key))
            yield from _settings(value, text, f"{name}.")
        elif is_block:
            items = yaml.serialize(_in_one_line(value), width=1000).strip()
            yield name, Setting(items, ". ".join([_comment(text, key), *re.findall(r"\s#\s(.*)", written)]))
        else:
            yield name, Setting(written, _comment(text, key))


def _in_one_line(node: yaml.Node) -> yaml.Node:
    """The same list with brackets."""
    if isinstance(node, yaml.CollectionNode):
        node.flow_style = True
        for item in node.value:
            for part in item if isinstance(item, tuple) else (item,):
                _in_one_line(part)
    return node


def _comment(text: str, key: yaml.Node) -> str:
    """Beside a key, else in the line above."""
    lines, place = text.splitlines(), key.start_mark.line
    beside = re.search(r"\s#\s(.*)", lines[place])
    above = re.fullmatch(r"\s+#\s(.*)", lines[place - 1])
    found = beside or above
    return found[1] if found else ""


def purpose(file: str) -> str:
    """What the comment at the top of a file says of it."""
    text = "\n".join(_lines(file))
    top = re.match(r"(#.*\n)*", text)[0].splitlines()
    return " ".join(line.removeprefix("# ") for line in top if "@package" not in line)


def sections() -> dict[str, str]:
    """What each section of config.yaml is for, by its name; groups of files are sections as well."""
    own = settings("config.yaml")
    return {name: own[name].comment for name in own if "." not in name and own[name].value == "" and own[name].comment}


def groups() -> dict[str, tuple[str, str]]:
    """The default file and the purpose of each group of files in conf."""
    matches = (re.fullmatch(r'  - (\w+): "?([\w.-]+)"?\s+#\s(.*)', line) for line in _lines("config.yaml"))
    return {match[1]: (match[2], match[3]) for match in matches if match}


def options(group: str) -> list[str]:
    """The files of a group."""
    return sorted(path.stem for path in Path(CONF, group).glob("*.yaml"))


def _lines(file: str) -> list[str]:
    return Path(CONF, file).read_text(encoding="utf-8").splitlines()
