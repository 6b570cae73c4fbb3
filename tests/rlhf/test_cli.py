"""How a failure is told: one line, an exit code, and a traceback only for our own bugs or where it is asked for."""

import errno
import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_module

from rlhf.config.schema import Resume, RunConfig
from rlhf.console import say
from rlhf.errors import ArtifactError, NumericsError, Stopped, UserError
from rlhf.run import cli
from rlhf.run.cli import explain, failures_told, run_stage
from rlhf.run.stopping import StopRequest


def composed(*overrides):
    with initialize_config_module("conf", version_base="1.3"):
        return compose("config", overrides=list(overrides))


def told(capsys, error, debug=False):
    """(exit code, stderr) of a program that ends with this error."""
    with pytest.raises(SystemExit) as end, failures_told(debug):
        raise error
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("x"), 2), (ArtifactError("x"), 3), (NumericsError("x"), 4), (Stopped("x"), 75)]
)
def test_an_expected_error_is_one_line_with_its_exit_code(capsys, error, code):
    assert told(capsys, error) == (code, "error: x\n")


def test_debug_shows_where_an_expected_error_came_from(capsys):
    code, err = told(capsys, UserError("x"), debug=True)
    assert code == 2 and err.startswith("Traceback") and err.endswith("\nerror: x\n")


def test_a_bug_of_ours_has_a_traceback_and_asks_to_be_reported(capsys):
    code, err = told(capsys, ZeroDivisionError("division by zero"))
    assert code == 1 and err.startswith("Traceback")
    assert err.endswith("\nerror: ZeroDivisionError: division by zero. This is a bug of ours: please report it\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"),
            " (tried to allocate 2.00 GiB)",
        ),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you"), ""),
        (MemoryError(), ""),
    ],
)
def test_too_little_memory_is_no_bug_of_ours(capsys, error, line):
    code, err = told(capsys, error)
    assert code == 2 and err.startswith(f"error: out of memory{line}. preflight=true shows what takes how much")


def test_ctrl_c_outside_of_training_ends_with_130_and_no_traceback(capsys):
    code, err = told(capsys, KeyboardInterrupt())
    assert code == 130
    assert err == "stopped at once. The last checkpoint is kept: the same command goes on from it\n"


def test_what_goes_well_is_not_touched(capsys):
    with failures_told(debug=False):
        pass
    assert capsys.readouterr().err == ""


# ---- several ranks


@pytest.fixture
def as_rank(monkeypatch):
    """as_rank(1) makes this process rank 1 of 2, as the launcher would, before the ranks have met."""

    def become(number):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", str(number))
        monkeypatch.setattr(cli, "OTHERS_FIRST", 0.2)  # seconds

    return become


@pytest.mark.parametrize(("rank", "line"), [(0, "error: x\n"), (1, "[rank 1] error: x\n")])
def test_an_error_names_its_rank_unless_it_is_rank_0_s(as_rank, capsys, rank, line):
    as_rank(rank)
    assert told(capsys, UserError("x")) == (2, line)


@pytest.mark.parametrize(("rank", "line"), [(0, "error: x\n"), (1, "")])
def test_an_error_that_rank_0_is_known_to_tell_is_told_by_no_other(as_rank, capsys, rank, line):
    as_rank(rank)
    error = UserError("x")
    error.is_on_all_ranks = True
    assert told(capsys, error) == (2, line)


@pytest.mark.parametrize(
    ("rank", "error", "waits"),
    [(0, UserError("x"), 0), (1, UserError("x"), 1), (0, RuntimeError("Broken pipe"), 1)],
    ids=["rank 0", "rank 1", "rank 0 that lost another"],
)
def test_the_rank_whose_error_says_most_speaks_first_and_the_launcher_ends_the_others(
    as_rank, capsys, monkeypatch, rank, error, waits
):
    as_rank(rank)
    monkeypatch.setattr(cli, "OTHERS_FIRST", 0.2 if waits else 60)
    began = time.monotonic()
    told(capsys, error)
    assert 0.2 * waits <= time.monotonic() - began < 60


@pytest.mark.parametrize(
    "words",
    [
        "[/pytorch/gloo/pair.cc:553] Connection closed by peer [127.0.0.1]:4242. This may indicate a remote failure",
        "[/pytorch/gloo/unbound_buffer.cc:119] Timed out waiting 600000ms for recv operation to complete. Or not",
        "NCCL communicator was aborted on rank 0",
    ],
)
def test_a_lost_rank_is_told_in_one_line_with_exit_code_5(as_rank, words):
    as_rank(0)
    line, code = explain(RuntimeError(words))
    assert code == 5 and "\n" not in line
    assert line == (
        f"another rank was ended or does not answer ({words.split('. ')[0]}): the same command goes on from the last "
        "checkpoint"
    )
    line, _ = explain(RuntimeError(words), RunConfig(resume=Resume.auto, force=True))
    assert line.endswith("): the same command without run.force=true goes on from the last checkpoint")


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), OSError("Read timed out")])
def test_other_errors_are_not_taken_for_a_lost_rank(as_rank, error):
    as_rank(0)
    assert explain(error)[1] == 1


def test_one_process_has_no_other_rank_to_lose():
    assert explain(RuntimeError("Broken pipe"))[1] == 1


@pytest.mark.parametrize(("rank", "line"), [(0, "error: stopped\n"), (1, "")])
def test_a_stop_that_all_ranks_agreed_on_is_told_once(as_rank, capsys, rank, line):
    as_rank(rank)
    assert told(capsys, Stopped("stopped")) == (75, line)


@pytest.mark.parametrize(("rank", "lines"), [(0, "line\n"), (1, "")])
def test_only_rank_0_speaks_of_progress(as_rank, capsys, rank, lines):
    as_rank(rank)
    say("line")
    assert capsys.readouterr().err == lines


def test_a_rank_says_nothing_of_a_signal_that_the_launcher_may_have_sent(as_rank, capsys):
    as_rank(0)
    with StopRequest() as request:
        signal.raise_signal(signal.SIGTERM)
        assert request.received is signal.SIGTERM and request.on_any_rank()
    assert capsys.readouterr().err == ""


# ---- the config


def test_a_missing_value_is_asked_for_by_its_key(capsys):
    with pytest.raises(SystemExit) as end:
        run_stage(lambda config: None, composed("data.prompts=???"))
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: config: data.prompts is not set; give it a value, data.prompts=...\n"


# ---- running a stage


def test_the_stage_gets_the_checked_config(tmp_path, own_logging):
    seen = []
    run_stage(seen.append, composed(f"run.dir={tmp_path}", "seed=3"))
    assert seen[0].seed == 3 and seen[0].run.dir == str(tmp_path)


def test_no_stage_runs_under_an_impossible_config(capsys):
    seen = []
    with pytest.raises(SystemExit):
        run_stage(seen.append, composed("ppo.gamma=2"))
    assert seen == [] and capsys.readouterr().err.startswith("error: config: ppo.gamma=2.0 must lie between 0 and 1")


def test_a_full_disk_is_told_whatever_library_met_it(capsys, tmp_path, own_logging):
    def run(config):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{tmp_path}/file")

    with pytest.raises(SystemExit) as end:
        run_stage(run, composed(f"run.dir={tmp_path}"))
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: cannot write {tmp_path}/file: no space left (")


# ---- stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_becomes_a_request_to_stop(capsys, number):
    with StopRequest() as request:
        assert request.received is None
        signal.raise_signal(number)
        assert request.received is number
    line = f"{number.name}: stopping after this step, with a checkpoint (Ctrl-C again stops at once)\n"
    assert capsys.readouterr().err == line


def test_a_second_ctrl_c_stops_at_once():
    with StopRequest(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)


def test_a_second_sigterm_waits_for_the_checkpoint():
    with StopRequest() as request:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert request.received is signal.SIGTERM


def test_signals_mean_what_they_meant_once_training_is_over():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopRequest():
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] != before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_error_that_only_looks_like_one_of_the_config_is_a_bug():
    assert explain(KeyError("seed")) == ("KeyError: 'seed'. This is a bug of ours: please report it", 1)
    assert explain(AttributeError("no attribute", SimpleNamespace()))[1] == 1


@pytest.mark.parametrize(
    ("resume", "force", "words"),
    [
        ("auto", False, "the same command goes on"),
        ("never", False, "the same command without run.resume=never goes on"),
        ("auto", True, "the same command without run.force=true goes on"),
        ("never", True, "the same command without run.resume=never and run.force=true goes on"),
    ],
)
def test_who_stops_a_run_learns_which_command_goes_on_with_it(resume, force, words):
    run = RunConfig(resume=Resume(resume), force=force)
    assert StopRequest(run).going_on == words
