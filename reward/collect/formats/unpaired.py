"""Single answers: good or bad ones for KTO, and people's own for supervised training. Written only, not read back.

KTO: {prompt, completion, label} in the shape of TRL's KTOTrainer, https://huggingface.co/docs/trl/dataset_formats.
"""

from collections.abc import Iterable, Iterator

from reward.collect.formats.canonical import item_id
from reward.collect.formats.pairs import ALL_TIED

NEGATIVES = ("unacceptable", "last")
SFT_STYLES = ("completion", "messages")


def to_kto(rows: Iterable[dict], negatives="unacceptable") -> Iterator[dict]:
    """label is true for the answers of the top rank, false for unacceptable ones; what lies between is left out.

    negatives=last: those of the last rank are false as well. A ranking that ties all its answers has no top or last.
    """
    for row in rows:
        for response, label in zip(row["responses"], kto_labels(row, negatives), strict=True):
            if label is not None:
                yield {
                    "prompt": row["prompt"],
                    "completion": [{"role": "assistant", "content": response}],
                    "label": label,
                    "prompt_id": row.get("prompt_id"),
                    "item_id": item_id(row),
                    "annotator": row.get("annotator"),
                }


def why_not_kto(row: dict, negatives="unacceptable") -> str | None:
    return ALL_TIED if all(label is None for label in kto_labels(row, negatives)) else None


def kto_labels(row: dict, negatives: str) -> list[bool | None]:
    ranks = row["ranks"]
    unacceptable = row.get("meta", {}).get("unacceptable", [])
    last = max(rank for rank in ranks if rank is not None)

    def label(i: int) -> bool | None:
        if i in unacceptable:
            return False
        if ranks[i] is None or last == 1:
            return None
        is_last = negatives == "last" and ranks[i] == last
        return True if ranks[i] == 1 else False if is_last else None

    return [label(i) for i in range(len(ranks))]


def to_sft(rows: Iterable[dict], style="completion") -> Iterator[dict]:
    """Of rows {prompt, completion}, people's own answers: as the SFT stage reads them, or as whole dialogues."""
    for row in rows:
        if style == "messages":
            yield {"messages": [*row["prompt"], {"role": "assistant", "content": row["completion"]}]}
        else:
            yield {"prompt": row["prompt"], "completion": row["completion"]}
