"""The names in the config, which of them somebody may have meant who wrote another one, and the values under them."""

import difflib
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any


def all_keys(kind: type, prefix: str = "") -> list[str]:
    """Every key below a config class, sections included: "sft", "sft.objective", ..."""
    keys = []
    for field in fields(kind):
        keys.append(prefix + field.name)
        for part in (field.type, *getattr(field.type, "__args__", ())):
            if is_dataclass(part):
                keys += all_keys(part, f"{prefix}{field.name}.")
    return keys


def is_any(key: str, names: tuple[str, ...]) -> bool:
    """Whether a key is one of those named, or below one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def as_dict(value: Any) -> Any:
    """A config as plain dicts, enums by value."""
    if is_dataclass(value):
        return {field.name: as_dict(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {key: as_dict(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_dict(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def did_you_mean(key: str, keys: list[str]) -> str:
    """The end of a message about a key that is not there: " Did you mean 'sft.learning_rate'?", or nothing."""
    near = near_keys(key, keys)
    return f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""


def near_keys(key: str, keys: list[str]) -> list[str]:
    """What may have been meant: of the same section, or the same name in others; a section only for a section."""
    section, _, name = key.rpartition(".")
    siblings = {other.rpartition(".")[2]: other for other in keys if other.rpartition(".")[0] == section}
    close = difflib.get_close_matches(name, siblings, n=1, cutoff=0.75)
    short = [other for other in siblings if _is_short_for(name, other)]
    elsewhere = [other for other in keys if other.rpartition(".")[2] == name]
    if close or short:
        return [siblings[other] for other in close or short[:3]]
    return elsewhere[:3] or difflib.get_close_matches(key, [k for k in keys if bool(section) == ("." in k)], n=1)


def _is_short_for(name: str, other: str) -> bool:
    """Whether a name is another's initials, as lr of learning_rate, or one or more of its words, as epochs."""
    words = other.split("_")
    return name in ("".join(word[0] for word in words if word), *words) or f"_{name}_" in f"_{other}_"
