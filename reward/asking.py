"""How a rule is asked when it may call the world: again after a failure, in limited time, and each text only once.

A service fails now and then, hangs, and answers the same question otherwise the next day. With a cache a run that goes
on from a checkpoint sees the scores that it saw before, so it stays bit for bit the same run.
"""

import json
import math
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from rlhf.artifacts.dependencies import code_of
from rlhf.errors import UserError

LONGEST_PAUSE = 60.0  # seconds between two attempts; they grow 1, 2, 4, ...


@dataclass(frozen=True)
class Asking:
    """retries: further attempts after a failure. timeout: seconds of one call. cache: the file that keeps scores."""

    retries: int = 0
    timeout: float | None = None
    cache: Path | None = None


def ask(
    rule: Callable, name: str, how: Asking, prompts: list, responses: list[str], records: list[dict]
) -> list[float]:
    """What the rule says of B responses; only of those that it has not seen where there is a cache."""
    if how.cache is None:
        return attempt(rule, name, how, prompts, responses, records)
    cache, code = ScoreCache(how.cache), code_of(name)["sha256"]
    keys = [key_of(name, code, *row) for row in zip(prompts, responses, records, strict=True)]
    known = cache.read(keys)
    new = {key: place for place, key in enumerate(keys) if key not in known}  # each text once
    if new:
        rows = ([values[place] for place in new.values()] for values in (prompts, responses, records))
        found = dict(zip(new, attempt(rule, name, how, *rows), strict=True))
        cache.add({key: score for key, score in found.items() if math.isfinite(score)})
        known |= found
    return [known[key] for key in keys]


def attempt(rule: Callable, name: str, how: Asking, *rows: list) -> list[float]:
    """What the rule says, by the first call of it that does not fail. Raises the last failure, a UserError."""
    for retry in range(how.retries + 1):
        try:
            with time_limit(how.timeout):
                return rule(*rows)
        except UserError as error:
            failure = error
        except TookTooLong:
            failure = UserError(
                f"rule '{name}' took more than ppo.reward_timeout={how.timeout:g} s for {len(rows[1])} responses"
            )
        if retry < how.retries:
            pause = min(2.0**retry, LONGEST_PAUSE)
            print(f"{failure}; again in {pause:g} s (retry {retry + 1} of {how.retries})", file=sys.stderr, flush=True)
            time.sleep(pause)
    raise failure


class TookTooLong(BaseException):
    """The time of a call is over. No Exception: a rule that catches those must not catch this."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raises TookTooLong inside once the seconds are over, in the middle of whatever Python does or waits for."""
    if seconds is None:
        yield
        return

    def stop(number, frame):
        raise TookTooLong

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def key_of(name: str, code: str | None, prompt, response: str, record: dict) -> bytes:
    """What a score depends on, as 16 bytes. code: the hash of the rule's file: a mended rule is asked anew."""
    text = json.dumps([name, code, prompt, response, record], sort_keys=True, default=repr)
    return sha256(text.encode()).digest()[:16]


class ScoreCache:
    """Scores on the disk by their keys. A file per rank: locks over a network are not to be trusted."""

    def __init__(self, path: Path):
        self.path = path

    def read(self, keys: list[bytes]) -> dict[bytes, float]:
        """The scores of those keys that are there."""
        with self._open() as database:
            found = (
                (key, database.execute("SELECT score FROM scores WHERE key = ?", (key,)).fetchone()) for key in keys
            )
            return {key: row[0] for key, row in found if row is not None}

    def add(self, scores: dict[bytes, float]) -> None:
        """Keeps scores; when it returns they are on the disk."""
        with self._open() as database:
            database.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", scores.items())

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A transaction. Opened for each call: nothing is held while the rule thinks, nor when the run ends."""
        try:
            with closing(sqlite3.connect(self.path)) as database, database:
                database.execute("CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, score REAL) WITHOUT ROWID")
                yield database
        except sqlite3.Error as error:
            raise UserError(
                f"{self.path}: cannot keep the rewards' scores ({error}); free space there, delete it if it is "
                "damaged, or set ppo.reward_cache=false"
            ) from error
