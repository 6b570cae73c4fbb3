"""What a stage depends on beside artifacts: the data and config values that it reads, the code of its rules."""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import Any

from rlhf.config.keys import as_dict, is_any
from rlhf.config.schema import AdapterKind, Config
from rlhf.hashing import file_sha256, flat

SHARED_DATA = (
    "fields",
    "on_error",
    "valid_share",
    "test_share",
    "max_prompt_tokens",
    "max_response_tokens",
    "long_prompts",
)
# What only a model from model.path, or from scratch, is made with; a stage that goes on from an artifact reads none.
OF_THE_BASE = ("model.path", "model.revision", "model.chat_template", "model.chat_template_kwargs", "model.scratch")
OF_AN_ADAPTER = ("adapter.rank", "adapter.alpha", "adapter.dropout", "adapter.targets")
# How the work is split, which changes no more than rounding: run.reshard=true lets a stopped run go on otherwise.
SPLIT = ("world_size", "deepspeed", "rollout.batch_size", "model.gradient_checkpointing")


@dataclass(frozen=True)
class Needs:
    """A stage in its own words: its name, which is its folder's, and what its result depends on beside its inputs.

    A key here also stands for those below it.
    """

    name: str
    sections: tuple[str, ...]  # of the config
    sources: tuple[str, ...] = ()  # of `data`: what it reads records from
    data: tuple[str, ...] = ()  # further keys of `data`
    rules: tuple[str, ...] = ()  # keys that name rules: their code is part of what the result depends on
    batches: tuple[str, ...] = ()  # keys of sizes that the ranks share out, in forwards of <section>.micro_batch_size
    without_effect: tuple[str, ...] = ()  # keys of its sections that do not act on its result
    after_training: tuple[str, ...] = ()  # keys that act only when it has trained: a run that goes on may change them

    @property
    def split(self) -> tuple[str, ...]:
        """The keys that say how its work is split."""
        return (*SPLIT, *(f"{key.partition('.')[0]}.micro_batch_size" for key in self.batches))


def values_read(needs: Needs, config: Config, manifests: dict[str, dict]) -> dict[str, Any]:
    """The config values that the result of a stage depends on, under dotted keys.

    Without those that this run does not read: else a manifest would name a model.path that was never loaded, and
    another one would train everything again for nothing. manifests: of the input artifacts, by role.
    """
    everything = as_dict(config)
    chosen = {section: everything[section] for section in needs.sections}
    chosen["data"] = {key: everything["data"][key] for key in (*SHARED_DATA, *needs.sources, *needs.data)}
    values, unread = flat(chosen), (*needs.without_effect, *_unread_of_adapter(config, manifests))
    if "ppo.rewards" in values:
        values["ppo.rewards"] = [without_what_is_off(term) for term in values["ppo.rewards"]]
    return {key: value for key, value in values.items() if not is_any(key, unread)}


def without_what_is_off(term: dict) -> dict:
    """A term of ppo.rewards as runs know it that were made before terms had a scale and a clip."""
    return {key: value for key, value in term.items() if (key, value) not in (("scale", 1.0), ("clip", None))}


def _unread_of_adapter(config: Config, manifests: dict[str, dict]) -> tuple[str, ...]:
    if config.adapter.kind is AdapterKind.none:
        return OF_AN_ADAPTER
    goes_on = any(manifest["adapter"] for role, manifest in manifests.items() if role in ("sft", "start_from"))
    return ("adapter.targets",) if goes_on else ()


# ---- rules


def rule_records(needs: Needs, config: Config) -> list[dict]:
    """The code of the rules that a stage asks: [{key: of the config, rule: module:function, path, sha256}]."""
    rules = [(key, rule) for key in needs.rules for rule in _rules_in(attrgetter(key)(config))]
    return [{"key": key, "rule": rule, **code_of(rule)} for key, rule in rules]


def _rules_in(value: str | list | None) -> list[str]:
    """The rules that a config value names: a rule, or terms some of which are rules, or none."""
    if isinstance(value, list):
        return [term.source for term in value if ":" in term.source]
    return [] if value is None else [value]


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
