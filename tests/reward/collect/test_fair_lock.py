"""The lock among writers: who has waited longest is next."""

import threading
import time

import pytest

from reward.collect.store.fair_lock import FairLock


def wait_until(holds) -> None:
    while not holds():
        time.sleep(0.001)


def test_the_lock_goes_to_whoever_has_waited_longest():
    lock, order = FairLock(), []

    def take(name: str) -> None:
        with lock.held(60):
            order.append(name)

    threads = [threading.Thread(target=take, args=(name,)) for name in "abcd"]
    with lock.held(60):
        for i, thread in enumerate(threads):
            thread.start()
            wait_until(lambda i=i: len(lock._waiting) == i + 1)
    for thread in threads:
        thread.join()
    assert order == ["a", "b", "c", "d"]


def test_who_waits_too_long_is_told_and_leaves_the_line():
    lock = FairLock()
    with lock.held(1), pytest.raises(TimeoutError), lock.held(0.01):
        pass
    with lock.held(0.01):  # free again
        pass


def test_an_error_under_the_lock_frees_it():
    lock = FairLock()
    with pytest.raises(ZeroDivisionError), lock.held(1):
        raise ZeroDivisionError
    with lock.held(0.01):
        pass
