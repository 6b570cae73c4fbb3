"""Checkpoints are whole or not there, and hold everything that training changes."""

import copy
import errno
import json
import os
import shutil
from dataclasses import fields

import pytest
import torch

from rlhf.checkpoints.learner import LearnerCheckpoints
from rlhf.config.schema import KlControl
from rlhf.errors import ArtifactError, UserError
from rlhf.ppo.heldout import Answers
from rlhf.ppo.learner import Learner
from rlhf.ppo.scores import Scored

TENSORS = {
    "policy": {"module.weight": torch.arange(6.0).reshape(2, 3), "optimizer.0.step": torch.tensor(4.0)},
    "critic": {"module.weight": torch.tensor([1.5, -2.5], dtype=torch.bfloat16)},
    "best": {},
}
STATE = {"kl_coef": 0.1 + 0.2, "best": {"score": float("-inf"), "step": -1}}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def flip(path, place=-1):
    """Changes one bit of a file."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def saved(folder, *steps, keep=5):
    checkpoints = LearnerCheckpoints(folder, keep)
    for step in steps:
        checkpoints.save(step, TENSORS, {**STATE, "turn": step})
    return checkpoints


# ---- whole or not there


def test_a_checkpoint_comes_back_to_the_last_bit(folder):
    found = saved(folder, 7).load_latest()
    assert found.step == 7
    assert found.state == {**STATE, "turn": 7}
    assert found.tensors.keys() == TENSORS.keys()
    for part, tensors in TENSORS.items():
        assert found.tensors[part].keys() == tensors.keys()
        for name, value in tensors.items():
            assert found.tensors[part][name].dtype == value.dtype
            assert torch.equal(found.tensors[part][name], value)


def test_the_newest_checkpoint_is_taken_and_only_the_newest_are_kept(folder):
    checkpoints = saved(folder, 8, 9, 10, 100, keep=2)
    assert names(folder) == ["step-000010", "step-000100"]
    assert checkpoints.load_latest().step == 100


def test_no_checkpoint_is_none(folder):
    assert LearnerCheckpoints(folder, 2).load_latest() is None


@pytest.mark.parametrize("file", ["policy.0.safetensors", "best.0.safetensors", "state.json", "manifest.json"])
def test_a_flipped_bit_falls_back_to_the_checkpoint_before_and_says_so(folder, file):
    checkpoints = saved(folder, 1, 2)
    size = (folder / "step-000002" / file).stat().st_size
    for place in range(0, size, max(1, size // 40)):
        flip(folder / "step-000002" / file, place)
        said = []
        assert checkpoints.load_latest(said.append).step == 1, f"bit of byte {place} of {size}"
        assert len(said) == 1 and "damaged" in said[0] and "step-000002" in said[0]
        flip(folder / "step-000002" / file, place)
    assert checkpoints.load_latest().step == 2


@pytest.mark.parametrize("file", ["policy.0.safetensors", "state.json", "manifest.json"])
def test_a_file_that_is_cut_or_gone_falls_back_too(folder, file):
    checkpoints = saved(folder, 1, 2)
    path = folder / "step-000002" / file
    path.write_bytes(path.read_bytes()[:-1])
    assert checkpoints.load_latest(lambda line: None).step == 1
    path.unlink()
    assert checkpoints.load_latest(lambda line: None).step == 1


def test_when_all_are_damaged_the_run_is_refused_with_the_remedy(folder):
    checkpoints = saved(folder, 1, 2)
    for step in (1, 2):
        flip(folder / f"step-00000{step}" / "policy.0.safetensors")
    with pytest.raises(ArtifactError, match=r"none of its 2 checkpoints is whole; start again with run.resume=never"):
        checkpoints.load_latest(lambda line: None)


def test_a_staging_folder_that_a_kill_left_is_ignored_and_replaced(folder):
    checkpoints = saved(folder, 1)
    shutil.copytree(folder / "step-000001", folder / ".staging-step-000002")
    (folder / ".staging-step-000002" / "left_over.safetensors").write_bytes(b"half")
    assert checkpoints.load_latest().step == 1
    checkpoints.save(2, TENSORS, STATE)
    assert names(folder) == ["step-000001", "step-000002"]
    assert checkpoints.load_latest().tensors.keys() == TENSORS.keys()


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_keeping_one_never_leaves_none(folder, monkeypatch, call):
    """A disk that fills up while the second is written leaves the first."""

    def disk_full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoints = saved(folder, 1, keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, disk_full)
        with pytest.raises(UserError, match=r"no space left.*Results written earlier are untouched"):
            checkpoints.save(2, TENSORS, STATE)
    assert checkpoints.load_latest().step == 1
    checkpoints.save(2, TENSORS, STATE)
    assert names(folder) == ["step-000002"]
    assert checkpoints.load_latest().step == 2


def test_a_damaged_newer_checkpoint_does_not_outlive_the_whole_one_that_the_run_went_on_from(folder):
    """Resumed at 4 since 6 was damaged, stopped at 5: with keep=1 it is 5 that must stay."""
    saved(folder, 4, 6)
    flip(folder / "step-000006" / "policy.0.safetensors")
    checkpoints = LearnerCheckpoints(folder, keep=1)
    assert checkpoints.load_latest(lambda line: None).step == 4
    checkpoints.save(5, TENSORS, STATE)
    assert names(folder) == ["step-000005"]
    assert checkpoints.load_latest().step == 5


def test_a_step_that_is_done_again_replaces_its_damaged_checkpoint(folder):
    checkpoints = saved(folder, 1, 2)
    flip(folder / "step-000002" / "state.json")
    checkpoints.save(2, TENSORS, {"turn": "second"})
    assert checkpoints.load_latest().state == {"turn": "second"}


def test_what_is_read_from_disk_can_run_no_code(folder):
    saved(folder, 1)
    assert {path.suffix for path in (folder / "step-000001").iterdir()} == {".safetensors", ".json"}
    assert json.loads((folder / "step-000001" / "state.json").read_text())["step"] == 1


# ---- everything that training changes

OPTIONS = {"kl_control": KlControl.adaptive, "kl_horizon": 50, "running_score_norm": True, "ema_decay": 0.9}
ENGINES = ("policy", "critic.engine")
FROM_THE_STEP = {f"{engine}.optimizer.lr" for engine in ENGINES}  # Ppo sets the learning rate anew at every step
OF_THE_PROCESS = {f"{engine}.{count}" for engine in ENGINES for count in ("num_forwards", "num_backwards")}
NOT_SAVED = FROM_THE_STEP | OF_THE_PROCESS | {"critic.first_step.is_over"}


def leaves(value, path=""):
    """Every tensor and number inside an object, by its path: modules, optimizers, dicts, lists, plain attributes."""
    if isinstance(value, torch.Tensor | int | float | str | None):
        yield path, value
    elif isinstance(value, torch.nn.Module):
        yield from leaves(dict(value.state_dict()), path)
    elif isinstance(value, torch.optim.Optimizer):
        moments = {str(i): tensors for i, tensors in value.state_dict()["state"].items()}
        yield from leaves({**moments, "lr": value.param_groups[0]["lr"]}, path)
    elif isinstance(value, list | tuple):
        yield from leaves(dict(enumerate(value)), path)
    else:
        for name, part in (value if isinstance(value, dict) else vars(value)).items():
            yield from leaves(part, f"{path}.{name}" if path else str(name))


def snapshot(learner):
    """A copy of every leaf of every part."""
    parts = [(getattr(learner, field.name), field.name) for field in fields(Learner)]
    return {path: copy.deepcopy(value) for part, name in parts for path, value in leaves(part, name)}


def differ(x, y):
    if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
        return x.shape != y.shape or not torch.equal(x, y)
    return type(x) is not type(y) or x != y


def length_of(prompts, texts, records):
    return Scored(torch.tensor([float(len(text)) for text in texts]))


@pytest.fixture
def train(ppo_log, make_options, make_sampler, make_policy):
    """train(learner): two steps of PPO, after which the policy is offered as the best."""

    def run(learner):
        ppo_log(learner, make_policy(0), length_of, make_sampler(), make_options(**OPTIONS), range(2))
        ended = torch.tensor([True, False])
        answers = Answers(["a", "b"], torch.tensor([0.7, 0.2]), torch.tensor([1.3, 0.1]), torch.tensor([1, 2]), ended)
        learner.best.offer(2, answers, learner.policy)

    return run


@pytest.fixture
def make(make_learner, make_options):
    return lambda seed: make_learner(make_options(**OPTIONS), seed)


def test_everything_that_training_changes_comes_back_from_a_checkpoint(folder, make, train):
    """What is state is found by training: whatever is not as it was in a fresh learner."""
    learner, other = make(0), make(10)
    fresh = snapshot(learner)
    train(learner)
    trained = snapshot(learner)
    changed = {path for path in trained if path not in fresh or differ(trained[path], fresh[path])} - NOT_SAVED
    for part in (
        "policy.module",
        "policy.optimizer",
        "critic.engine.module",
        "kl.coef",
        "shaping.moments",
        "best.weights",
        "ema.average",
    ):
        assert any(path.startswith(part) for path in changed), part
    learner.save(LearnerCheckpoints(folder, 1), 2)
    assert other.restore(LearnerCheckpoints(folder, 1), print) == 2
    restored = snapshot(other)
    assert restored.keys() == trained.keys()
    assert [path for path in changed if differ(restored[path], trained[path])] == []


def test_each_single_number_of_the_state_comes_back(folder, make, train):
    """Numbers are moved one by one, so that none is right by luck or copied from another."""
    learner = make(0)
    train(learner)
    for part, names_of in (
        (learner.kl, ["coef"]),
        (learner.shaping.moments, list(vars(learner.shaping.moments))),
        (learner.best, ["step", "kl", "raw_scores", "num_over_budget"]),
    ):
        for i, name in enumerate(names_of):
            setattr(part, name, getattr(part, name) + i + 1)
    engines = [engine.tensors() for engine in learner.engines]
    for tensors in (*engines, learner.best.weights, learner.ema.average):
        for i, value in enumerate(tensors.values()):
            value += i + 1
    expected = snapshot(learner)
    other = make(10)
    learner.save(LearnerCheckpoints(folder, 1), 9)
    assert other.restore(LearnerCheckpoints(folder, 1), print) == 9
    restored = snapshot(other)
    assert [path for path in expected if path not in NOT_SAVED and differ(restored[path], expected[path])] == []


def test_a_learner_saved_before_any_step_comes_back(folder, make):
    learner, other = make(0), make(10)
    learner.save(LearnerCheckpoints(folder, 1), 0)
    assert other.restore(LearnerCheckpoints(folder, 1), print) == 0
    assert other.best.weights == {} and other.best.score == float("-inf")
    assert all(
        torch.equal(p, q)
        for p, q in zip(learner.policy.parameters.values(), other.policy.parameters.values(), strict=True)
    )


def test_without_a_checkpoint_a_learner_stays_as_it_is(folder, make):
    learner = make(0)
    before = snapshot(learner)
    assert learner.restore(LearnerCheckpoints(folder, 1), print) == 0
    assert not any(differ(value, before[path]) for path, value in snapshot(learner).items())


def test_saving_changes_nothing(folder, make, train):
    learner = make(0)
    train(learner)
    before = snapshot(learner)
    learner.save(LearnerCheckpoints(folder, 1), 2)
    assert not any(differ(value, before[path]) for path, value in snapshot(learner).items())
