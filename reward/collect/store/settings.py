"""How a collection hands out and judges work. Chosen at `init`, kept in the database."""

import dataclasses
from dataclasses import dataclass

from reward.collect.refusals import Refusal

MIN_ANSWERS, MAX_ANSWERS = 2, 9  # per item: a person cannot hold more in mind, and the page has keys 1 to 9


@dataclass(frozen=True)
class Settings:
    overlap: int = 1  # people who rank each item
    agreement_share: float = 0.1  # share of items that more people rank, so that agreement can be measured
    agreement_overlap: int = 2  # people who rank each of these
    gold_share: float = 0.1  # share of a person's items whose right ranking is known
    repeat_share: float = 0.0  # share of a person's items that they have ranked before, to measure self-consistency
    allow_ties: bool = True  # answers may share a place
    allow_partial: bool = False  # answers may stay unranked
    criteria: tuple[str, ...] = ()  # each answer is also rated 1 to 5 on these
    require_comment: bool = False  # each ranking comes with its reason
    require_read: bool = False  # long answers must have been opened before submitting
    min_seconds: float = 0.0  # a faster submission is kept, and filtered from exports with this reason
    lease_seconds: int = 1800  # an item that somebody opened and left goes to somebody else after this
    skips_to_review: int = 3  # an item that so many people skipped, or all there are, goes to the lead's list

    def __post_init__(self):
        names = [name for name in self.criteria if name.strip()]
        rules = {
            "overlap": (1 <= self.overlap <= 50, "1 to 50 people"),
            "agreement_overlap": (
                self.overlap <= self.agreement_overlap <= 50,
                f"overlap ({self.overlap}) to 50 people",
            ),
            "lease_seconds": (30 <= self.lease_seconds <= 7 * 24 * 3600, "30 seconds to 7 days"),
            "skips_to_review": (self.skips_to_review >= 1, "1 or more"),
            "min_seconds": (0 <= self.min_seconds <= 3600, "0 to 3600 seconds"),
            "agreement_share": (0 <= self.agreement_share <= 1, "a share, 0 to 1"),
            "gold_share": (0 <= self.gold_share <= 0.5, "a share, 0 to 0.5"),
            "repeat_share": (0 <= self.repeat_share <= 0.5, "a share, 0 to 0.5"),
            "criteria": (len(set(names)) == len(self.criteria), "names, each once"),
        }
        for name, (holds, limit) in rules.items():
            if not holds:
                raise Refusal(f"{name} is {getattr(self, name)!r}; it must be {limit}", {name: limit})

    def as_dict(self) -> dict:
        return dataclasses.asdict(self) | {"criteria": list(self.criteria)}

    def for_annotators(self) -> dict:
        """Those that the page goes by. The others would tell when gold items and repeats come."""
        names = ("allow_ties", "allow_partial", "criteria", "require_comment", "require_read")
        return {name: self.as_dict()[name] for name in names}

    @classmethod
    def from_dict(cls, values: dict) -> "Settings":
        return cls(**values | {"criteria": tuple(values["criteria"])})
