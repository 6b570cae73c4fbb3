"""How far a long command is, and what is wrong with what it reads: told in a few lines, however much there is."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from reward.collect.texts import MAX_TOLD
from rlhf.errors import UserError
from rlhf.tracking.display import SECONDS_BETWEEN_LINES

T = TypeVar("T")


def passing(
    things: Iterable[T], told: str, total: int | None = None, clock: Callable[[], float] = time.monotonic
) -> Iterator[T]:
    """The things as they come. Every few seconds it says on stderr how many have passed; a short work says nothing.

    told: what is said, with {} for the number, e.g. "queued {} items".
    """
    last, of = clock(), "" if total is None else f" of {total:,}"
    for number, thing in enumerate(things):
        if clock() - last >= SECONDS_BETWEEN_LINES:
            print(told.format(f"{number:,}{of}"), file=sys.stderr, flush=True)
            last = clock()
        yield thing


class Problems:
    """What is wrong with the records of a file: the first few in words, all of them counted."""

    def __init__(self):
        self._first: list[UserError] = []
        self._count = 0

    def append(self, error: UserError) -> None:
        self._count += 1
        if len(self._first) < MAX_TOLD:
            self._first.append(error)

    def __len__(self) -> int:
        return self._count

    def lines(self) -> list[str]:
        more = self._count - len(self._first)
        return [*map(str, self._first), *([f"and {more:,} more"] if more else [])]
