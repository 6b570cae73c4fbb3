"""The order of examples, sealed checkpoints, and what a checkpoint may hold, all in one process."""

import json
from itertools import chain
from pathlib import Path

import pytest
import torch

from rlhf.checkpoints import sealing
from rlhf.checkpoints.checkpoint import Checkpoints
from rlhf.checkpoints.trainer import trainer_checkpoints
from rlhf.config.schema import DeepspeedConfig, Engine
from rlhf.engines.deepspeed_config import deepspeed_config
from rlhf.errors import ArtifactError
from rlhf.training.epochs import EpochBatches, WithBlanks
from rlhf.training.trainer import Window

# ---- the order of examples


def epoch(micro_batch_size, step=0, num_examples=10, seed=0):
    return list(EpochBatches(num_examples, 4, micro_batch_size, seed, lambda: step))


def test_an_epoch_sees_every_example_once_and_fills_its_last_step_with_blanks():
    flat = list(chain(*epoch(2)))
    assert sorted(i for i in flat if i >= 0) == list(range(10))
    assert len(flat) == 12 and all(i < 0 for i in flat[10:])


def test_the_examples_of_a_step_do_not_depend_on_the_micro_batch_size():
    assert list(chain(*epoch(4))) == list(chain(*epoch(2))) == list(chain(*epoch(1)))


def test_each_epoch_and_each_seed_has_its_own_order_and_a_stopped_epoch_keeps_its():
    assert epoch(4, step=0) == epoch(4, step=2)  # three steps an epoch
    assert epoch(4, step=3) != epoch(4, step=0) != epoch(4, step=0, seed=1)


def test_a_blank_is_made_of_a_real_example():
    examples = WithBlanks(["a", "b"], blank=lambda example: f"blank {example}")
    assert [examples[i] for i in (0, 1, -1, -2)] == ["a", "b", "blank a", "blank b"]


# ---- sealed folders


@pytest.fixture
def sealed(tmp_path):
    folder = tmp_path / "checkpoint-1"
    (folder / "inner").mkdir(parents=True)
    (folder / "weights").write_bytes(b"weights")
    (folder / "inner" / "shard").write_bytes(b"shard")
    sealing.seal(folder)
    return folder


def test_a_sealed_folder_is_whole(sealed):
    sealing.check_sealed(sealed)
    assert json.loads((sealed / "manifest.json").read_text())["files"].keys() == {"weights", "inner/shard"}


def test_a_file_that_is_changed_gone_or_new_breaks_the_seal_and_is_named(sealed):
    (sealed / "inner" / "shard").write_bytes(b"shart")
    with pytest.raises(ArtifactError, match=r"inner/shard is not what was saved \(5 bytes"):
        sealing.check_sealed(sealed)
    (sealed / "inner" / "shard").unlink()
    with pytest.raises(ArtifactError, match="inner/shard is gone"):
        sealing.check_sealed(sealed)
    (sealed / "inner" / "shard").write_bytes(b"shard")
    (sealed / "late").touch()
    with pytest.raises(ArtifactError, match="late was added later"):
        sealing.check_sealed(sealed)


@pytest.mark.parametrize("text", ["", "{}", '{"files": [1]}', '{"files": {"weights": {"size": 7}}}'])
def test_a_damaged_seal_is_no_seal(sealed, text):
    (sealed / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        sealing.check_sealed(sealed)


def test_a_discarded_folder_leaves_its_name_first(sealed, monkeypatch):
    """Killed in the midst of the removal: nothing is left under the name, and the rest goes at the next save."""

    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sealing.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            sealing.discard(sealed)
    assert [path.name.startswith(".trash-checkpoint-1") for path in sealed.parent.iterdir()] == [True]
    with Checkpoints(sealed.parent, 1, "checkpoint-{}").saving(1) as staged:
        (staged / "weights").write_bytes(b"weights")
    assert [path.name for path in sealed.parent.iterdir()] == ["checkpoint-1"]


# ---- the Trainer's checkpoints


def saved(folder: Path, step: int, best: int | None = None, **files: bytes) -> Path:
    """A checkpoint as the Trainer writes it."""
    checkpoints = trainer_checkpoints(folder)
    with checkpoints.saving(step) as staged:
        (staged / "trainer_state.json").write_text(json.dumps({"best_global_step": best}))
        for name, data in files.items():
            (staged / name).write_bytes(data)
    return checkpoints.path(step)


def newest(folder: Path, say=lambda line: None) -> Path | None:
    return trainer_checkpoints(folder).newest(say)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_newest_two_and_the_best_are_kept(tmp_path):
    for step in (2, 4, 6, 8):
        saved(tmp_path, step, best=2)
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-6", "checkpoint-8"}
    assert newest(tmp_path) == tmp_path / "checkpoint-8"


def test_the_best_one_is_kept_as_long_as_a_kept_one_needs_it(tmp_path):
    """With 8 a new best: without 2, 6 would be of no use where 8 is damaged."""
    for step in (2, 4, 6):
        saved(tmp_path, step, best=2)
    (saved(tmp_path, 8, best=8, weights=b"w") / "weights").write_bytes(b"v")
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-6", "checkpoint-8"}
    assert newest(tmp_path) == tmp_path / "checkpoint-6"
    saved(tmp_path, 8, best=8)
    saved(tmp_path, 10, best=8)
    assert names(tmp_path) == {"checkpoint-8", "checkpoint-10"}


def test_no_older_one_goes_while_nobody_can_read_who_needs_it(tmp_path):
    """A file system that answers with an error for once would else cost the best checkpoint."""
    for step in (2, 4):
        saved(tmp_path, step, best=2)
    states = [tmp_path / f"checkpoint-{step}" / "trainer_state.json" for step in (4, 6)]
    saved(tmp_path, 6, best=2)
    kept = [state.read_text() for state in states]
    for state in states:
        state.write_text("")
    saved(tmp_path, 8, best=2)
    assert "checkpoint-2" in names(tmp_path)
    for state, text in zip(states[1:], kept[1:], strict=True):
        state.write_text(text)
    saved(tmp_path, 10, best=2)
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-8", "checkpoint-10"}


@pytest.mark.parametrize("name", ["checkpoint-2.bak", "checkpoint-2-copy", "checkpoint-", "checkpoint-2.tar.gz"])
def test_what_somebody_has_put_beside_is_no_checkpoint_and_stays(tmp_path, name):
    (tmp_path / name).mkdir()
    for step in (2, 4, 6):
        saved(tmp_path, step)
    assert newest(tmp_path) == tmp_path / "checkpoint-6"
    assert names(tmp_path) == {name, "checkpoint-4", "checkpoint-6"}


def test_steps_are_counted_and_not_spelled(tmp_path):
    for step in (8, 9, 10, 100):
        saved(tmp_path, step)
    assert names(tmp_path) == {"checkpoint-10", "checkpoint-100"}


def test_what_a_killed_save_left_goes_before_the_next_one_is_written(tmp_path):
    """Room for it is what the disk may lack."""
    saved(tmp_path, 2)
    for left in (".staging/checkpoint-4", ".staging-step-4", ".trash-checkpoint-1-0a1b2c3d"):
        (tmp_path / left).mkdir(parents=True)
        (tmp_path / left / "half").write_bytes(b"half")
    assert newest(tmp_path) == tmp_path / "checkpoint-2"
    with trainer_checkpoints(tmp_path).saving(6) as staged:
        assert names(tmp_path) == {"checkpoint-2", ".staging"} and names(staged.parent) == {"checkpoint-6"}
        (staged / "trainer_state.json").write_text('{"best_global_step": null}')
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-6"}


def test_a_checkpoint_without_a_seal_is_damaged_and_gives_way_to_the_one_before(tmp_path):
    saved(tmp_path, 2)
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / "half").write_bytes(b"half")
    said = []
    assert newest(tmp_path, said.append) == tmp_path / "checkpoint-2"
    assert len(said) == 1 and said[0].startswith(f"passing over a damaged checkpoint: {tmp_path / 'checkpoint-4'}")
    saved(tmp_path, 3)  # the run was stopped before it was at 4 again
    assert names(tmp_path) == {"checkpoint-2", "checkpoint-3"}


def test_a_damaged_checkpoint_is_passed_over_by_name(tmp_path):
    saved(tmp_path, 2)
    (saved(tmp_path, 4, weights=b"w") / "weights").write_bytes(b"v")
    said = []
    assert newest(tmp_path, said.append) == tmp_path / "checkpoint-2"
    assert f"passing over a damaged checkpoint: {tmp_path / 'checkpoint-4' / 'weights'}" in said[0]


@pytest.mark.parametrize("text", ["{}", "[]", "{", "nothing"])
def test_a_checkpoint_whose_best_one_is_damaged_is_of_no_use(tmp_path, text):
    (saved(tmp_path, 2, best=2) / "trainer_state.json").write_text(text)
    saved(tmp_path, 4, best=2)
    with pytest.raises(ArtifactError, match=r"none of its 2 checkpoints is whole; start again with run.resume=never"):
        newest(tmp_path)


def test_no_checkpoint_is_none(tmp_path):
    assert newest(tmp_path) is None


# ---- sums between two lines of metrics


def test_a_window_that_is_saved_between_two_lines_goes_on():
    window, restored = Window(), Window()
    window.add({"loss": 0.1, "tokens": 3.0})
    restored.sums = json.loads(json.dumps(window.state()["attributes"]["sums"]))
    for each in (window, restored):
        each.add({"loss": 0.2, "tokens": 5.0})
    assert restored.close() == window.close() == {"loss": 0.1 + 0.2, "tokens": 8.0, "steps": 2.0}
    assert window.sums == {}


# ---- what DeepSpeed is told


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("offload", [False, True])
def test_deepspeed_is_told_every_number_and_none_is_left_to_guess(stage, offload):
    options = DeepspeedConfig(Engine.deepspeed, stage, offload, 0.5)
    told = deepspeed_config(options, 4, 3, 0.7, torch.bfloat16)
    assert told["train_micro_batch_size_per_gpu"] == 4 and told["gradient_accumulation_steps"] == 3
    assert told["gradient_clipping"] == 0.7  # DeepSpeed clips at 1.0 where this is missing
    assert told["bf16"] == {"enabled": True} and told["data_types"] == {"grad_accum_dtype": "fp32"}
    assert ("offload_optimizer" in told["zero_optimization"]) is offload
    assert "auto" not in json.dumps(told)
