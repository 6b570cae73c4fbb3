"""Progress in the terminal: a live bar for a person, plain lines for a file, a pipe or CI."""

import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from rlhf.ranks import is_main
from rlhf.tables import short_number

SECONDS_BETWEEN_LINES = 5.0  # where the output is not a terminal


def open_display(stage: str, total_steps: int, first_step: int, headline: Sequence[str]) -> "LiveBar | PlainLines":
    console = Console()
    if sys.stdout.isatty() and not console.is_dumb_terminal:
        return LiveBar(console, stage, total_steps, first_step, headline)
    return PlainLines(stage, total_steps, first_step, headline)


@contextmanager
def counting(what: str, total: int):
    """add(num), which counts things towards a total and shows how far it is: `with counting("answers", 8) as add`."""
    done, display = 0, open_display(what, total, 0, ()) if is_main() else None

    def add(num: int) -> None:
        nonlocal done
        done += num
        if display is not None:
            display.update(done, {})

    try:
        yield add
    finally:
        if display is not None:
            display.close()


class Headline:
    """The latest value of each metric that the terminal shows, as one line."""

    def __init__(self, names: Sequence[str]):
        self._values: dict[str, float | None] = dict.fromkeys(names)

    def update(self, values: dict) -> None:
        self._values |= {name: value for name, value in values.items() if name in self._values}

    def __str__(self) -> str:
        return "  ".join(f"{name} {short_number(value)}" for name, value in self._values.items() if value is not None)


class LiveBar:
    """A progress bar with time left and, below it, the headline metrics."""

    def __init__(self, console: Console, stage: str, total_steps: int, first_step: int, headline: Sequence[str]):
        self._headline, self._text = Headline(headline), Text()
        self._progress = Progress(
            TextColumn(stage),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            speed_estimate_period=3600,  # seconds; a PPO step may take minutes
        )
        self._task = self._progress.add_task(stage, total=total_steps, completed=first_step)
        self._live = Live(Group(self._progress, self._text), console=console, refresh_per_second=4)
        self._live.start()

    def update(self, step: int, values: dict) -> None:
        self._headline.update(values)
        self._text.plain = str(self._headline)
        self._progress.update(self._task, completed=step)

    def expect(self, total_steps: int) -> None:
        self._progress.update(self._task, total=total_steps)

    def close(self) -> None:
        self._live.stop()


class PlainLines:
    """The same as plain lines, one every few seconds and the last one always, for files, pipes and CI."""

    def __init__(
        self,
        stage: str,
        total_steps: int,
        first_step: int,
        headline: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ):
        self._stage, self._total_steps, self._first_step, self._clock = stage, total_steps, first_step, clock
        self._headline, self._step = Headline(headline), first_step
        self._started, self._printed_at, self._pending = clock(), -math.inf, False

    def update(self, step: int, values: dict) -> None:
        self._headline.update(values)
        self._step, self._pending = step, True
        if self._clock() - self._printed_at >= SECONDS_BETWEEN_LINES:
            self._print()

    def expect(self, total_steps: int) -> None:
        self._total_steps = total_steps

    def close(self) -> None:
        if self._pending:
            self._print()

    def _print(self) -> None:
        elapsed = self._clock() - self._started
        done = self._step - self._first_step
        left = _duration(elapsed / done * (self._total_steps - self._step)) if done > 0 else "?"
        times = f"{_duration(elapsed)} elapsed, {left} left"
        print(f"{self._stage} {self._step}/{self._total_steps}  {times}  {self._headline}".rstrip(), flush=True)
        self._printed_at, self._pending = self._clock(), False


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
