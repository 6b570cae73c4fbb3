"""How two runs of a stage differ: in values of the config, in data, in inputs, in the code of rules."""

import json
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """One of them. key: of the config, path of a source, or role of an input; sentence: for the person who runs it."""

    key: str
    sentence: str

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True)
class ChangedValue(Difference):
    """Another value of the config."""


@dataclass(frozen=True)
class ChangedData(Difference):
    """Another source, or another content of one."""


@dataclass(frozen=True)
class ChangedInput(Difference):
    """Another input artifact."""


@dataclass(frozen=True)
class ChangedRule(Difference):
    """Another code of a rule that the config names under this key."""


def differences(old: dict, new: dict) -> list[Difference]:
    """old, new: {config: flat values, data, inputs, rules: records}."""
    return [
        *_changed_values(old["config"], new["config"]),
        *_changed(ChangedData, _by(old["data"], "path"), _by(new["data"], "path"), "{}"),
        *_changed(ChangedInput, _by(old["inputs"], "role"), _by(new["inputs"], "role"), "input {}"),
        *_changed_rules(old.get("rules", []), new["rules"]),  # a run of an earlier version names none
    ]


def _changed_values(old: dict, new: dict) -> list[ChangedValue]:
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return [ChangedValue(key, f"{key} {_shown(old, key)} -> {_shown(new, key)}") for key in keys]


def _shown(values: dict, key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "(not set)"


def _by(records: list[dict], key: str) -> dict[str, list[str]]:
    """Digests under a record's path or role; one role may name several artifacts."""
    result: dict[str, list[str]] = {}
    for record in records:
        result.setdefault(str(record[key]), []).append(record["sha256"])
    return result


def _changed(kind: Callable[[str, str], Difference], old: dict, new: dict, name: str) -> list[Difference]:
    changed = [key for key in old if key in new and sorted(old[key]) != sorted(new[key])]
    return (
        [kind(key, f"{name.format(key)} changed") for key in changed]
        + [kind(key, f"{name.format(key)} is new") for key in new if key not in old]
        + [kind(key, f"{name.format(key)} is no longer used") for key in old if key not in new]
    )


def _changed_rules(old: list[dict], new: list[dict]) -> list[ChangedRule]:
    known = {(record["key"], record["rule"]): record["sha256"] for record in old}
    pairs = [(record, known.get((record["key"], record["rule"]))) for record in new]
    return [
        ChangedRule(record["key"], f"{record['key']}: the code of {record['rule']} changed ({record['path']})")
        for record, before in pairs
        if before is not None and before != record["sha256"]
    ]
