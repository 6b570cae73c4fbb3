"""A log that a crowd cannot fill."""

import logging
import time


class Sparse(logging.Filter):
    """Lets through one record in `seconds` of those made in one place; it says how many others there were."""

    def __init__(self, seconds: float = 60):
        super().__init__()
        self.seconds = seconds
        self._last: dict[tuple, tuple[float, int]] = {}  # place -> (when one was let through, others since)

    def filter(self, record: logging.LogRecord) -> bool:
        template = record.msg if record.args else None  # a text without arguments may hold what differs each time
        place, now = (record.pathname, record.lineno, template), time.monotonic()
        let_through, others = self._last.get(place, (-self.seconds, 0))
        if now - let_through < self.seconds:
            self._last[place] = (let_through, others + 1)
            return False
        self._last[place] = (now, 0)
        if others:
            record.msg, record.args = f"{record.getMessage()} (and {others} more times before)", None
        return True
