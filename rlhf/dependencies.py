"""What a stage depends on beside artifacts and data: the config values that it reads, the code of its rules."""

import os
from importlib.util import find_spec
from pathlib import Path

from rlhf.config import AdapterKind, Config
from rlhf.hashing import file_sha256

# What only a model from model.path, or from scratch, is made with; every other stage goes on from an artifact's own.
OF_THE_BASE = ("model.path", "model.revision", "model.chat_template", "model.chat_template_kwargs", "model.scratch")
OF_AN_ADAPTER = ("adapter.rank", "adapter.alpha", "adapter.dropout", "adapter.targets")
RULE_CHANGED = ": the code of "


def values_read(name: str, config: Config, values: dict, manifests: dict[str, dict]) -> dict:
    """values without those that this run of a stage does not read. values: config values under dotted keys.

    Else a manifest names a model.path that was never loaded, and another one would train everything again for nothing.
    manifests: of the input artifacts, by role.
    """
    unread = unread_keys(name, config, manifests)
    return {key: value for key, value in values.items() if not _is_any(key, unread)}


def unread_keys(name: str, config: Config, manifests: dict[str, dict]) -> tuple[str, ...]:
    """The keys of `model` and `adapter` that do not act in a stage."""
    is_first = name == "sft" and "start_from" not in manifests
    return (*_unread_of_model(config, is_first), *_unread_of_adapter(name, config, manifests))


def _unread_of_model(config: Config, is_first: bool) -> tuple[str, ...]:
    if not is_first:
        return OF_THE_BASE
    return ("model.revision",) if config.model.path is None else ("model.scratch",)


def _unread_of_adapter(name: str, config: Config, manifests: dict[str, dict]) -> tuple[str, ...]:
    if config.adapter.kind is AdapterKind.none:
        return OF_AN_ADAPTER
    goes_on = any(manifest["adapter"] for role, manifest in manifests.items() if role in ("sft", "start_from"))
    return (*(["adapter.targets"] if goes_on else []), *(["adapter.dropout"] if name == "ppo" else []))


def _is_any(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


# ---- rules


def rule_records(name: str, config: Config) -> list[dict]:
    """The code of the rules that a stage asks: [{key: of the config, rule: module:function, path, sha256}]."""
    rules = [("ppo.rewards", term.source) for term in config.ppo.rewards if ":" in term.source] if name == "ppo" else []
    if name in ("reward", "evaluate") and config.data.gold_rule is not None:
        rules.append(("data.gold_rule", config.data.gold_rule))
    return [{"key": key, "rule": rule, **code_of(rule)} for key, rule in rules]


def code_of(rule: str) -> dict[str, str | None]:
    """{path, sha256} of the file that a rule's module is; None each where there is none, as in a notebook."""
    path = _module_file(rule.partition(":")[0])
    if path is None:
        return {"path": None, "sha256": None}
    is_near = path.is_relative_to(Path.cwd())
    return {"path": os.path.relpath(path) if is_near else str(path), "sha256": file_sha256(path)}


def _module_file(module: str) -> Path | None:
    try:
        spec = find_spec(module)
    except Exception:  # of the user's package, which is imported here: load_rule tells what is wrong with it
        return None
    return Path(spec.origin) if spec is not None and spec.has_location else None


def is_of_a_rule(reason: str) -> bool:
    """Whether a sentence that `changed_rules` gave."""
    return RULE_CHANGED in reason


def changed_rules(old: list[dict], new: list[dict]) -> list[str]:
    """Which rules' code changed between two records of them, a sentence each."""
    known = {(record["key"], record["rule"]): record["sha256"] for record in old}
    pairs = [(record, known.get((record["key"], record["rule"]))) for record in new]
    return [
        f"{record['key']}{RULE_CHANGED}{record['rule']} changed ({record['path']})"
        for record, before in pairs
        if before is not None and before != record["sha256"]
    ]
