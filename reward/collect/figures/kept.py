"""The figures on the lead's pages: of a small collection made at once, of a large one beside the server.

Of ninety thousand rankings they take seconds of computing, in which annotators would wait. So another process makes
them, at the lowest priority, one at a time and with rests between, when somebody looks and something has changed.
Pages show the latest that there are and say of when.
"""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from reward.collect.figures.comparison import comparison_names, comparison_report
from reward.collect.figures.quality import agreement_of, annotators_of
from reward.collect.figures.ranked import read_ranked
from reward.collect.store.database import Database
from reward.collect.store.tables import Audit
from rlhf.errors import RlhfError

AT_ONCE = 500  # rows of the audit, up to which the figures take a fraction of a second
LOWEST_PRIORITY = 19
REST = 4  # times as long as the last figures took, before newer ones are begun: annotators need the machine as well


@dataclass(frozen=True)
class Figures:
    """All reports that take long, of one moment."""

    last_change: int  # the audit's last row: whatever changes a figure is audited
    made_at: float
    num_rankings: int
    agreement: dict  # quality.agreement_report
    annotators: dict  # quality.annotator_report
    comparisons: list[dict]  # comparison.comparison_report of each


def last_change(session: Session) -> int:
    """The number of the audit's last row."""
    return session.scalar(select(func.max(Audit.id))) or 0


def make_figures(database: Database, now: float) -> Figures:
    """What `KeptFigures` keeps, in one pass over the rankings."""
    with database.read() as session:
        changed, ranked = last_change(session), read_ranked(session)
        return Figures(
            last_change=changed,
            made_at=now,
            num_rankings=len(ranked.items),
            agreement=agreement_of(session, ranked),
            annotators=annotators_of(session, ranked),
            comparisons=[comparison_report(session, name) for name in comparison_names(session)],
        )


@dataclass(frozen=True)
class Known:
    """What can be shown now."""

    figures: Figures | None  # None: the first ones are being made
    is_current: bool  # nothing has changed since
    problem: str = ""  # why there are no newer ones


class KeptFigures:
    """The latest figures of a collection, for the server that runs."""

    def __init__(self, database: Database, now: Callable[[], float], at_once: int = AT_ONCE, rest: float = REST):
        self._database, self._now, self._at_once, self._rest = database, now, at_once, rest
        self._rested_at = 0.0  # by time.monotonic()
        self._known: Figures | None = None
        self._problem = ""
        self._making: threading.Thread | None = None
        self._lock = threading.Lock()

    def latest(self) -> Known:
        """Takes a moment, and sees to it that there are newer ones soon where these are not of now."""
        with self._database.read() as session:
            changed = last_change(session)
        if changed <= self._at_once:
            return Known(make_figures(self._database, self._now()), is_current=True)
        with self._lock:
            is_current = self._known is not None and self._known.last_change == changed
            known = Known(self._known, is_current, "" if is_current else self._problem)
            if not is_current and self._making is None and time.monotonic() >= self._rested_at:
                self._making = threading.Thread(target=self._make, daemon=True)
                self._making.start()
        return known

    def wait(self) -> None:
        """Until the figures that are being made are there."""
        if (making := self._making) is not None:
            making.join()

    def _make(self) -> None:
        made, problem, began = None, "the program that makes them could not be run", time.monotonic()
        try:
            made, problem = figures_made_elsewhere(self._database, self._now())
        finally:
            with self._lock:
                self._known, self._problem, self._making = made or self._known, problem, None
                self._rested_at = time.monotonic() + self._rest * (time.monotonic() - began)
        if problem:
            logging.getLogger(__name__).warning("the lead's figures were not made: %s", problem)


def figures_made_elsewhere(database: Database, now: float) -> tuple[Figures | None, str]:
    """(the figures, or None and why), from another process. A pipe tells it the database: a URL may have a password."""
    url = database.url.render_as_string(hide_password=False)
    command, environment = [sys.executable, "-m", __name__], os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, env=environment, start_new_session=True, **pipes)
    os.setpriority(os.PRIO_PROCESS, process.pid, LOWEST_PRIORITY)
    said, complaint = process.communicate(json.dumps({"url": url, "now": now}))
    if process.returncode != 0:
        return None, (complaint.strip().splitlines() or [f"it ended with code {process.returncode}"])[-1][:300]
    return Figures(**json.loads(said)), ""


def main() -> int:
    """Reads {"url", "now"}, prints the figures."""
    asked = json.load(sys.stdin)
    try:
        json.dump(asdict(make_figures(Database(asked["url"]), asked["now"])), sys.stdout)
    except RlhfError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
