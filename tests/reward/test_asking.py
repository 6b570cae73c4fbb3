"""Rules that call the world: retries, time limits, and a cache that makes a resumed run see what it saw before."""

import re
import sqlite3
import sys
import time
from pathlib import Path

import pytest

from reward import asking
from reward.asking import Asking, ScoreCache, ask, key_of
from reward.rules import load_rule, rule
from rlhf.data.load import DataReport, parse_prompt, read_rows
from rlhf.errors import UserError

PROMPTS, TEXTS, RECORDS = [[{"role": "user", "content": "?"}]] * 3, ["a", "bb", "a"], [{}, {}, {}]


class Service:
    """A rule whose answers count up with every response, and whose first calls fail."""

    def __init__(self, failures: int = 0):
        self.failures, self.calls, self.asked = failures, 0, []

        @rule
        def judge(prompts, responses):
            self.calls += 1
            if self.calls <= self.failures:
                raise ConnectionError("HTTP 503")
            self.asked += responses
            return [100.0 * self.calls + place for place, _ in enumerate(responses)]

        self.rule = judge

    def ask(self, texts=TEXTS, records=RECORDS, name="my_rules:judge", **how):
        return ask(self.rule, name, Asking(**how), PROMPTS, texts, records)


@pytest.fixture
def pauses(monkeypatch):
    """The pauses that were made, none of which was waited for."""
    found = []
    monkeypatch.setattr(asking.time, "sleep", found.append)
    return found


def test_a_rule_that_fails_is_asked_again_after_growing_pauses(pauses, capsys):
    service = Service(failures=2)
    assert service.ask(retries=3) == [300.0, 301.0, 302.0]
    assert pauses == [1.0, 2.0]
    assert "failed (ConnectionError: HTTP 503)" in capsys.readouterr().err


def test_without_retries_left_the_last_failure_is_raised(pauses):
    service = Service(failures=9)
    with pytest.raises(UserError, match="HTTP 503"):
        service.ask(retries=2)
    assert service.calls == 3
    with pytest.raises(UserError, match="HTTP 503"):
        service.ask()
    assert service.calls == 4


def test_a_rule_that_hangs_is_ended_even_where_it_catches_every_exception():
    @rule
    def hangs(prompts, responses):
        while True:
            try:
                time.sleep(60)
            except Exception:
                continue

    began = time.monotonic()
    with pytest.raises(UserError, match=r"rule 'm:hangs' took more than ppo.reward_timeout=0.05 s for 3 responses"):
        ask(hangs, "m:hangs", Asking(timeout=0.05), PROMPTS, TEXTS, RECORDS)
    assert time.monotonic() - began < 30  # it would sleep 60


def test_a_rule_in_time_is_not_disturbed_afterwards():
    assert Service().ask(timeout=0.5) == [100.0, 101.0, 102.0]
    time.sleep(0.6)


# ---- the cache


def test_what_was_answered_once_is_not_asked_again_though_the_service_would_say_otherwise(tmp_path):
    service, path = Service(), tmp_path / "scores.sqlite"
    assert service.ask(cache=path) == [100.0, 101.0, 100.0]  # the same text twice is one question
    assert service.ask(["a", "ccc", "bb"], cache=path) == [100.0, 200.0, 101.0]
    assert service.asked == ["a", "bb", "ccc"]


def test_another_record_rule_or_code_is_another_question():
    one = key_of("m:f", "code", PROMPTS[0], "a", {"reference": "4"})
    assert one == key_of("m:f", "code", PROMPTS[0], "a", {"reference": "4"})
    others = [
        ("m:g", "code", "a", "4"),
        ("m:f", "mended", "a", "4"),
        ("m:f", "code", "b", "4"),
        ("m:f", "code", "a", "5"),
    ]
    keys = {key_of(name, code, PROMPTS[0], text, {"reference": value}) for name, code, text, value in others}
    assert len(keys | {one}) == 5


def test_what_a_failed_call_would_have_said_is_not_kept_and_neither_is_nan(tmp_path):
    path = tmp_path / "scores.sqlite"
    with pytest.raises(UserError):
        Service(failures=1).ask(cache=path)

    @rule
    def nan_at_first(prompts, responses):
        return [float("nan") for _ in responses]

    scores = ask(nan_at_first, "my_rules:judge", Asking(cache=path), PROMPTS, TEXTS, RECORDS)
    assert all(score != score for score in scores)
    assert Service().ask(cache=path) == [100.0, 101.0, 100.0]


def test_scores_come_back_from_the_disk_to_the_last_bit(tmp_path):
    scores = {bytes([i] * 16): value for i, value in enumerate([0.1 + 0.2, -1e-300, 1e300, 0.0])}
    ScoreCache(tmp_path / "a").add(scores)
    assert ScoreCache(tmp_path / "a").read([*scores, b"x" * 16]) == scores


def test_a_hundred_thousand_scores_take_less_than_6_megabytes(tmp_path):
    path = tmp_path / "scores.sqlite"
    ScoreCache(path).add({key_of("m:f", None, "p", str(i), {}): i / 7 for i in range(100_000)})
    assert path.stat().st_size < 6e6


def test_a_damaged_cache_is_refused_with_the_remedy(tmp_path):
    path = tmp_path / "scores.sqlite"
    path.write_bytes(b"no database" * 100)
    with pytest.raises(
        UserError, match=r"scores.sqlite: cannot keep the rewards' scores .* or set ppo.reward_cache=false"
    ):
        Service().ask(cache=path)
    with pytest.raises(sqlite3.Error):
        sqlite3.connect(path).execute("SELECT 1 FROM scores")


# ---- the examples of docs/rewards.md


def test_the_worked_example_pays_for_the_reference_answer_alone(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()
    (code,) = [block for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S) if "right_number" in block]
    (tmp_path / "sums.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    (rows,) = re.findall(r"^```json\n(.*?)^```", text, re.M | re.S)
    (tmp_path / "sums.jsonl").write_text(rows)
    prompts = list(read_rows(str(tmp_path / "sums.jsonl"), "error", DataReport(), "prompts", parse=parse_prompt))
    messages, records = [prompt.messages for prompt in prompts], [prompt.meta for prompt in prompts]
    scores = load_rule("sums:right_number")(messages, ["17 + 25 is 42", "9 * 8 is 71"], records)
    assert scores == [1.0, 0.0]
    sys.modules.pop("sums")
