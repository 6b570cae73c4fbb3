"""The server's time, which does not go back when the system's clock does: leases and lockouts compare times."""

import threading
import time
from collections.abc import Callable

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from reward.collect.store.tables import Audit

WORTH_A_WORD = 60  # seconds


class SteadyClock:
    """Seconds since 1970 that never go back: while the system's clock is behind, they go on at their own pace.

    last: the newest time that is stored already. wall, monotonic: where the time comes from.
    """

    def __init__(
        self,
        last: float = 0.0,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ):
        self._wall, self._monotonic, self._lock = wall, monotonic, threading.Lock()
        self._now, self._read_at = last, monotonic()

    def __call__(self) -> float:
        with self._lock:
            read_at = self._monotonic()
            self._now = max(self._wall(), self._now + read_at - self._read_at)
            self._read_at = read_at
            return self._now


def newest_time(session: Session) -> float:
    """When the collection was last changed."""
    return session.scalar(select(func.max(Audit.at))) or 0.0


def behind(last: float, now: float) -> str | None:
    """What to say of a system's clock that shows an earlier time than what is stored already."""
    if last - now < WORTH_A_WORD:
        return None
    return (
        f"warning: this machine's clock is {(last - now) / 60:.0f} minutes behind what was stored here last; "
        "times go on from there until it has caught up. Set the clock, and restart the server"
    )
