"""Demonstrations and prompts from the sources of the config, split by a hash of the prompt.

Records with the same prompt have the same key and so the same split, in every stage, whatever the order or the source.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field

from omegaconf import OmegaConf

from rlhf.config.schema import DataConfig
from rlhf.data.columns import READ, Fields, check_fields
from rlhf.data.dialogues import pair_prompt, parse_dialogue, parse_hh, parse_prompt_messages, prompt_key
from rlhf.data.messages import not_learned, read_answer
from rlhf.data.records import Row, kind_of, read_rows
from rlhf.data.report import DataReport
from rlhf.errors import UserError
from rlhf.hashing import as_share, text_sha256

# Of the files beside this one; whoever reads records finds them here.
__all__ = ["DataReport", "Row", "parse_hh", "parse_prompt_messages", "prompt_key", "read_rows"]

NEEDED = "a demonstration needs 'prompt' and 'completion', or 'messages' that end with an answer, or 'text'"
SPLITS = ("train", "valid", "test")
MAX_WEIGHT = 100


@dataclass(frozen=True)
class Source:
    path: str
    weight: float = 1.0  # passes over its training records per epoch
    fields: Fields | None = None  # what data.fields is for all sources; its entries come before those


@dataclass(frozen=True)
class Demonstration:
    messages: tuple[dict, ...]  # ends with the assistant turn to learn; empty where there is only text
    text: str | None  # plain text to learn (self-supervised)
    key: str
    where: str
    not_learned: tuple[int, ...] = ()  # places of answers of weight 0, counted from the end

    def identity(self) -> Hashable:
        return self.text or (prompt_key(self.messages[:-1]), self.messages[-1]["content"])


@dataclass(frozen=True)
class Prompt:
    messages: tuple[dict, ...]  # ends with a user turn
    key: str
    where: str
    meta: dict = field(default_factory=dict)  # the record's other fields, those inside its `meta` included

    def identity(self) -> Hashable:
        return prompt_key(self.messages)


def load_demonstrations(data: DataConfig, report: DataReport) -> dict[str, list[Demonstration]]:
    return load_records(data, report, "demonstrations", parse_demonstration)


def load_prompts(data: DataConfig, report: DataReport) -> dict[str, list[Prompt]]:
    """The prompts by split. Where data.heldout is set, it is the test split, and what the hash sends there unused."""
    splits = load_records(data, report, "prompts", parse_prompt)
    if data.heldout is not None:
        for prompt in splits["test"]:
            report.find("unused", prompt.where)
        splits["test"] = [prompt for prompt, _ in read_records(data, report, "heldout", parse_prompt)]
        report.count_splits("prompts", splits)
    check_leakage(prompt_keys(splits["test"]), prompt_keys(splits["train"] + splits["valid"]), "ppo")
    return splits


def distinct(prompts: list[Prompt], limit: int) -> list[Prompt]:
    """The first `limit` prompts, each once: a ranking file used as prompts repeats them."""
    return list({prompt_key(prompt.messages): prompt for prompt in prompts}.values())[:limit]


def load_records(data: DataConfig, report: DataReport, kind: str, parse: Callable[[Row], object]) -> dict[str, list]:
    """The records of data.<kind> by split; those in train as often as their source's weight says.

    parse(row) makes a record with `key` and `identity()` (equal for exact duplicates), or raises row.error(...).
    """
    splits = {split: [] for split in SPLITS}
    for record, weight in read_records(data, report, kind, parse):
        split = split_of(record.key, data.valid_share, data.test_share)
        splits[split] += [record] * (num_passes(record.key, weight) if split == "train" else 1)
    report.count_splits(kind, splits)
    require_split(splits, "train", f"data.{kind}")
    return splits


def read_records(data: DataConfig, report: DataReport, kind: str, parse) -> Iterator[tuple[object, float]]:
    """(record, weight of its source) from all sources of data.<kind>, in their order. Counts duplicates, keeps them."""
    seen = set()
    for source in parse_sources(getattr(data, kind), f"data.{kind}"):
        fields = {**data.fields, **(source.fields or {})}
        for record in read_rows(source.path, data.on_error, report, kind, fields, source.weight, parse):
            if (identity := record.identity()) in seen:
                report.duplicate(kind, source.path)
            seen.add(identity)
            yield record, source.weight


def parse_sources(value, key: str) -> list[Source]:
    """The sources of a config value: a path, or a list of paths and {path, weight, fields}."""
    value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    items = value if isinstance(value, list | tuple) else [value]
    if not items or value is None:
        raise UserError(f"{key} is not set; give a path, a hub id, or a list of these")
    sources = [_parse_source(item, key) for item in items]
    for i, source in enumerate(sources):
        if source.path in [earlier.path for earlier in sources[:i]]:
            raise UserError(f"{key} names {source.path} twice; give it once, as {{path: {source.path}, weight: 2}}")
    return sources


def _parse_source(item, key):
    entry = item if isinstance(item, dict) else {"path": item}
    path, weight = entry.get("path"), entry.get("weight", 1.0)
    if not isinstance(path, str) or not path.strip() or not set(entry) <= {"path", "weight", "fields"}:
        raise UserError(f"{key}: {item!r} is not a source; give a path or {{path: ..., weight: ..., fields: ...}}")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= MAX_WEIGHT:
        raise UserError(
            f"{key}: the weight of {path} is {weight!r}, must be over 0 and up to {MAX_WEIGHT} (passes per epoch)"
        )
    return Source(path, float(weight), _parse_fields(entry.get("fields"), path, key))


def _parse_fields(fields, path, key):
    if fields is None:
        return None
    if not isinstance(fields, dict) or not all(name is None or isinstance(name, str) for name in fields.values()):
        raise UserError(f"{key}: the fields of {path} are {fields!r}, must be our names and theirs, or null to ignore")
    check_fields(fields, f"{key}: the fields of {path}")
    return fields


# Keys, splits, weights


def record_key(row: Row, messages: Iterable[dict]) -> str:
    """The key a record is split by: its `group` where it has one, otherwise its prompt."""
    if (group := row.name("group")) is None:
        return prompt_key(messages)
    return text_sha256(f"group {group}")


def split_of(key: str, valid_share: float, test_share: float) -> str:
    """The split of a key: "train", "valid" or "test"."""
    place = _hash_place("split", key)
    if place < test_share:
        return "test"
    return "valid" if place < test_share + valid_share else "train"


def num_passes(key: str, weight: float) -> int:
    """How often a record comes in one epoch: twice for weight 2; for 0.5 once, for always the same half of the keys."""
    return math.floor(weight) + (_hash_place("weight", key) < weight % 1)


def _hash_place(purpose, key):
    """A number in [0, 1) that looks random and is fixed by its arguments."""
    return as_share(text_sha256(f"{purpose} {key}"))


def require_split(splits: dict[str, list], name: str, key: str) -> None:
    """Raises UserError when a split that a stage needs is empty. key: the source in the config, e.g. data.rankings."""
    if splits[name]:
        return
    counts = ", ".join(f"{split} {len(records)}" for split, records in splits.items())
    share = "lower data.valid_share and data.test_share" if name == "train" else f"raise data.{name}_share"
    raise UserError(f"{key}: the {name} split is empty ({counts}); {share}, or give records of more prompts")


def prompt_keys(records: Iterable) -> dict[str, str]:
    """key -> where, for check_leakage: by `group` and by prompt, since a prompt may have a group in one file only."""
    keys = {}
    for record in records:
        ends_with_answer = record.messages and record.messages[-1]["role"] == "assistant"
        prompt = record.messages[:-1] if ends_with_answer else record.messages
        for key in (record.key, prompt_key(prompt)) if prompt else (record.key,):
            keys.setdefault(key, record.where)
    return keys


def check_leakage(test: dict[str, str], train_keys: Iterable[str], stage: str) -> None:
    """Raises UserError when a test prompt is in the training data of a stage. test: key -> where (see prompt_keys)."""
    leaked = sorted({test[key] for key in set(test).intersection(train_keys)})
    if leaked:
        raise UserError(
            f"{len(leaked)} held-out prompts are in the training data of {stage} (e.g. {leaked[0]}). "
            "Remove them from the training files or from data.heldout"
        )


# One record


def parse_demonstration(row: Row) -> Demonstration:
    """The demonstration of a row with `prompt` and `completion`, with `messages`, or with `text`."""
    _refuse_bad_answer(row)
    if row.has("text") and not row.has("messages") and not row.has("prompt"):
        text = row.text("text")
        return Demonstration((), text, record_key(row, [{"role": "text", "content": text}]), row.where)
    if not row.has("messages") and "prompt" not in row.values:
        raise row.missing("prompt", NEEDED)
    messages = parse_dialogue(row)
    if row.has("text"):
        row.note("field 'text' beside a dialogue not used")
    if messages[-1]["role"] == "user":
        messages += (_answer(row),)
    elif row.has("completion"):
        _check_completion(row, messages)
    aside = not_learned(row.values["messages"], row) if row.has("messages") else ()
    if -1 in aside:
        raise row.error("the last answer has weight 0: it is not to be learned", "the last answer has weight 0")
    return Demonstration(messages, None, record_key(row, messages[:-1]), row.where, aside)


def _refuse_bad_answer(row):
    if row.values.get("label") in (False, "false", "False") and isinstance(row.values["label"], bool | str):
        rule = "label is false: a bad answer (of a KTO set) is no demonstration"
        remedy = f"Skip these with data.on_error=skip, or leave the column out with {row.mapping('label', None)}"
        raise row.error(f"{rule}. {remedy}", rule)


def _answer(row):
    """The assistant turn of `completion`."""
    value = row.values.get("completion")
    if value is None and row.has("messages"):
        raise row.error("field 'messages' must end with the assistant turn to learn, not with a user turn")
    if value is None:
        raise row.missing("completion", NEEDED)
    return {"role": "assistant", "content": read_answer(value, row, "completion")}


def _check_completion(row, messages):
    """Refuses an answer to an answered prompt; says where one beside an answered dialogue is not used."""
    if not row.has("messages"):
        raise row.error("field 'prompt' must end with a user turn, since field 'completion' is the answer")
    if row.values["completion"] != messages[-1]["content"]:
        row.note("field 'completion' beside 'messages' not used")


def parse_prompt(row: Row) -> Prompt:
    messages = _prompt_messages(row)
    if row.has("meta") and not isinstance(row.values["meta"], dict):
        raise row.error(f"field 'meta' must be an object, not {kind_of(row.values['meta'])}")
    return Prompt(messages, record_key(row, messages), row.where, other_fields(row, "prompts"))


def other_fields(row: Row, kind: str) -> dict:
    """What a record holds beside the fields that are read, those inside its `meta` included: what rules see of it."""
    others = {name: value for name, value in row.values.items() if name not in READ[kind] or name in ("group", "meta")}
    nested = others.get("meta") or {}
    if isinstance(nested, dict):
        others.pop("meta", None)
        others |= nested
    return others


def _prompt_messages(row):
    """The dialogue to be answered. Of one that was answered, or of a pair, what comes before the answer."""
    if not row.has("messages"):
        is_pair = "prompt" not in row.values and row.has("chosen") and row.has("rejected")
        if not is_pair:
            return parse_prompt_messages(row)
        row.note("the prompt read from what 'chosen' and 'rejected' have in common")
        return pair_prompt(row)
    messages = parse_dialogue(row)
    if messages[-1]["role"] == "user":
        return messages
    if row.has("prompt"):
        row.note("'prompt' read, and not the whole dialogue in 'messages'")
        return parse_prompt_messages(row.without("messages"))
    row.note("the answer at the end of 'messages' left out")
    return messages[:-1]
