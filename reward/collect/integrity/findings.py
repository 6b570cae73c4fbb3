"""What does not fit in a collection, told row by row: the first ones in words, and how many there are."""

from dataclasses import dataclass, field

from reward.collect.refusals import Damaged

MAX_SHOWN = 20


class Altered(Damaged):
    """The database was changed from outside. Trying again does not help, a backup does."""


@dataclass
class Findings:
    shown: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, row: str, what: str) -> None:
        """row: its table and key, which in a damaged database may be anything: shown without control characters."""
        self.count += 1
        if len(self.shown) < MAX_SHOWN:
            self.shown.append(f"{ascii(row)[1:-1]}: {what}")

    def lines(self) -> list[str]:
        more = self.count - len(self.shown)
        return self.shown + ([f"and {more} more"] if more else [])

    def require_none(self) -> None:
        if self.count:
            rows = "1 row does not fit" if self.count == 1 else f"{self.count} rows do not fit"
            told = "\n  ".join([f"{rows} what the audit tells. Nothing was stored", *self.lines()])
            raise Altered(told)
