"""The server's time goes on when the system's clock is set back."""

import time

from reward.collect.store import audit
from reward.collect.store.clock import SteadyClock, behind, newest_time

HOUR = 3600


class Hands:
    """A system's clock, and one that only counts: both as a test moves them."""

    def __init__(self):
        self.wall, self.counted = 1000.0 * HOUR, 5.0

    def clock(self, last: float = 0.0) -> SteadyClock:
        return SteadyClock(last, lambda: self.wall, lambda: self.counted)

    def pass_by(self, seconds: float) -> None:
        self.wall, self.counted = self.wall + seconds, self.counted + seconds


def test_it_shows_the_systems_time():
    assert abs(SteadyClock()() - time.time()) < 1


def test_set_back_by_two_hours_it_goes_on_second_by_second():
    hands = Hands()
    clock = hands.clock()
    begun = clock()
    hands.wall -= 2 * HOUR
    hands.pass_by(10)
    assert clock() == begun + 10
    hands.pass_by(HOUR)
    assert clock() == begun + 10 + HOUR


def test_set_forward_it_follows():
    hands = Hands()
    clock = hands.clock()
    hands.wall += HOUR
    assert clock() == hands.wall


def test_it_begins_no_earlier_than_what_is_stored():
    hands = Hands()
    clock = hands.clock(last=1001.0 * HOUR)
    hands.pass_by(7)
    assert clock() == 1001.0 * HOUR + 7


def test_a_clock_that_is_behind_what_is_stored_is_told():
    assert behind(1000.0, 1000.0) is None and behind(1000.0, 1059.0) is None
    assert "is 120 minutes behind what was stored here last" in behind(3 * HOUR, 1 * HOUR)


def test_the_newest_time_is_that_of_the_last_entry(database):
    with database.write() as session:
        audit.append(session, "command line", "export version", "1", now=4e9)
        assert newest_time(session) == 4e9
