"""How a person or a scheduler stops a run without losing what it has done."""

import signal

from rlhf.config.schema import Resume, RunConfig
from rlhf.console import say
from rlhf.ranks import launched_world_size


def going_on(run: RunConfig | None) -> str:
    """Which command goes on from a checkpoint: with some options the same one would begin anew."""
    never = "run.resume=never" if run is not None and run.resume is Resume.never else ""
    force = "run.force=true" if run is not None and run.force else ""
    anew = " and ".join(filter(None, [never, force]))
    return f"the same command without {anew} goes on" if anew else "the same command goes on"


class StopRequest:
    """Turns Ctrl-C and SIGTERM into a request that training honours at its next step; a second Ctrl-C stops at once."""

    def __init__(self, run: RunConfig | None = None, promise: str = "after this step, with a checkpoint"):
        self.going_on = going_on(run)  # after the stop
        self.promise = promise  # when, and how, the work stops
        self.received: signal.Signals | None = None

    def __enter__(self) -> "StopRequest":
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def on_any_rank(self) -> bool:
        """Whether any rank was asked to stop. Every rank asks at the same step, so that all save the same one."""
        from rlhf import distributed

        return distributed.any_rank(self.received is not None)

    def _note(self, number, frame) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        if launched_world_size() == 1:  # else it may be the launcher, ending us for another rank's error
            say(f"{self.received.name}: stopping {self.promise} (Ctrl-C again stops at once)")
