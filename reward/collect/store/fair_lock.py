"""A lock that goes to whoever has waited longest."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class FairLock:
    """Among threads. SQLite's own waiting gives the lock to whoever asks at the right moment, and starves others."""

    def __init__(self):
        self._guard = threading.Lock()
        self._waiting: deque[threading.Event] = deque()
        self._is_taken = False

    @contextmanager
    def held(self, seconds: float) -> Iterator[None]:
        """Raises TimeoutError where it does not come within so many seconds."""
        if not self._acquire(seconds):
            raise TimeoutError
        try:
            yield
        finally:
            self._release()

    def _acquire(self, seconds: float) -> bool:
        with self._guard:
            if not self._is_taken:
                self._is_taken = True
                return True
            my_turn = threading.Event()
            self._waiting.append(my_turn)
        my_turn.wait(seconds)
        with self._guard:
            if not my_turn.is_set():
                self._waiting.remove(my_turn)
            return my_turn.is_set()

    def _release(self) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().set()  # it stays taken, now by them
            else:
                self._is_taken = False
