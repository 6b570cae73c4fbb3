"""What ranks tell each other, between two real processes that meet over gloo; and that one process needs no other."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from rlhf import distributed
from rlhf.errors import UserError

pytestmark = pytest.mark.slow

# Each rank does this and prints what it got, as JSON, in one line.
TWO_RANKS = """
import json, torch
from rlhf import distributed
from rlhf.errors import NumericsError, UserError

def failure(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def fail_on(number, error):
    with distributed.failing_together():
        if number == distributed.rank():
            raise error

def fail_on_main():
    raise UserError("no such file") if distributed.is_main() else AssertionError("called on another rank")

got = {"before": [distributed.launched_world_size(), distributed.world_size(), distributed.rank()]}
distributed.start()
rank = distributed.rank()
got["size"] = distributed.world_size()
got["gather"] = distributed.gather({"rank": rank})
got["on_main"] = distributed.on_main(lambda: f"by {distributed.rank()}")
got["on_main_error"] = failure(lambda: distributed.on_main(fail_on_main))
got["together"] = failure(lambda: fail_on(1, NumericsError("NaN")))
got["together_well"] = failure(lambda: fail_on(None, NumericsError("NaN")))
got["any_rank"] = [distributed.any_rank(flag) for flag in (False, rank == 1, True)]
got["sum"] = distributed.over_ranks(torch.tensor([1.0 + rank, 10.0])).tolist()
got["max"] = distributed.over_ranks(torch.tensor([1.0 + rank, -rank]), "max").tolist()
got["rows"] = distributed.gather_rows(torch.tensor([[rank, 5], [rank, 6]])).tolist()
got["bool_rows"] = distributed.gather_rows(torch.tensor([[rank == 1, True]])).tolist()
got["places"] = [list(distributed.own_places(total)) for total in (4, 5)]
distributed.leave()
got["left"] = distributed.world_size()
print(json.dumps(got), flush=True)
"""


@pytest.fixture(scope="module")
def got():
    """What rank 0 and rank 1 got."""
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_SIZE": "2"}
    common = {**os.environ, **meeting, "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    command, ranks = [sys.executable, "-c", TWO_RANKS], [{"RANK": str(n), "LOCAL_RANK": str(n)} for n in (0, 1)]
    started = [subprocess.Popen(command, env={**common, **rank}, stdout=subprocess.PIPE, text=True) for rank in ranks]
    try:
        return [json.loads(process.communicate(timeout=240)[0]) for process in started]
    finally:
        for process in started:
            process.kill()


def test_a_rank_knows_its_number_before_it_meets_the_others(got):
    assert [rank["before"] for rank in got] == [[2, 1, 0], [2, 1, 1]]
    assert [rank["size"] for rank in got] == [2, 2]


def test_a_rank_that_has_left_is_alone_again(got):
    assert [rank["left"] for rank in got] == [1, 1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gather", [{"rank": 0}, {"rank": 1}]),
        ("on_main", "by 0"),
        ("on_main_error", "UserError: no such file"),
        ("together", "NumericsError: rank 1: NaN"),
        ("together_well", None),
        ("any_rank", [False, True, True]),
        ("sum", [3.0, 20.0]),
        ("max", [2.0, 0.0]),
        ("rows", [[0, 5], [0, 6], [1, 5], [1, 6]]),
        ("bool_rows", [[False, True], [True, True]]),
    ],
)
def test_both_ranks_get_the_same(got, name, expected):
    assert [rank[name] for rank in got] == [expected, expected]


def test_ranks_take_different_places_and_equally_many(got):
    assert [rank["places"][0] for rank in got] == [[0, 1], [2, 3]]
    assert [rank["places"][1] for rank in got] == [[0, 1, 2], [3, 4, 5]]


def test_one_process_is_rank_0_of_1_and_gets_back_what_it_gives():
    rows = torch.tensor([[1.0, 2.0]])
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.gather("x") == ["x"] and distributed.on_main(lambda: 7) == 7
    assert distributed.any_rank(True) and not distributed.any_rank(False)
    assert distributed.over_ranks(rows) is rows and distributed.gather_rows(rows) is rows
    assert list(distributed.own_places(3)) == [0, 1, 2]
    distributed.barrier()


def test_an_error_of_one_process_alone_keeps_its_words():
    with pytest.raises(UserError, match=r"^words$"), distributed.failing_together():
        raise UserError("words")
