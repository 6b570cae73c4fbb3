"""A stage that was stopped goes on from its checkpoint and ends bit for bit as if nothing had happened."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from rlhf.artifacts.manifest import load_manifest, verify
from rlhf.errors import ArtifactError, Stopped
from rlhf.tracking.tracker import Tracker
from stages import ppo, reward, sft

STAGES = {"sft": sft, "reward": reward, "ppo": ppo}
ALL_STATE = [  # all that PPO can carry on
    *("ppo.kl_control=adaptive", "ppo.kl_horizon=10", "ppo.running_score_norm=true", "ppo.ema_decay=0.5"),
    *("ppo.ptx_coef=1.0", "ppo.ptx_batch_size=6", "ppo.responses_per_prompt=2", "ppo.bootstrap_cut=true"),
]


@pytest.fixture
def stop_at(monkeypatch):
    """stop_at(step): a SIGTERM arrives when this step is logged; stop_at(None): none does."""
    log = Tracker.log

    def arm(stop_step):
        def log_and_signal(self, step, metrics):
            log(self, step, metrics)
            if step == stop_step:
                signal.raise_signal(signal.SIGTERM)

        monkeypatch.setattr(Tracker, "log", log_and_signal)

    return arm


def result(stage_dir: Path) -> tuple:
    """What must not depend on interruptions: the weights, and what was logged but for clock times."""
    logged = [json.loads(line) for line in (stage_dir / "metrics.jsonl").read_text().splitlines()]
    lines = [{name: value for name, value in line.items() if not is_clock_time(name)} for line in logged]
    samples = stage_dir / "samples.jsonl"
    weights = [path.read_bytes() for path in sorted((stage_dir / "model").glob("*.safetensors"))]
    return weights, lines, samples.read_text() if samples.exists() else None


def is_clock_time(name: str) -> bool:
    return name in ("time", "eps") or name.startswith(("time/", "throughput/"))


def assert_same_result(one: Path, other: Path) -> None:
    for a, b in zip(result(one), result(other), strict=True):
        assert a == b


@pytest.fixture
def ready(finished, tmp_path):
    """ready("ppo") is tmp_path/run with all artifacts that PPO needs, and none of its own."""

    def make(stage):
        for earlier in list(STAGES)[: list(STAGES).index(stage)]:
            shutil.copytree(finished / earlier, tmp_path / "run" / earlier)
        return tmp_path / "run" / stage

    return make


@pytest.fixture
def stopped_ppo(ready, config, stop_at):
    """The folder of a PPO run of the tiny world that was stopped after step 2 of 4."""
    folder = ready("ppo")
    stop_at(2)
    with pytest.raises(Stopped):
        ppo.run(config())
    stop_at(None)
    return folder


# ---- the same end


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_stopped_ppo_run_ends_bit_for_bit_like_one_that_was_not_stopped(ready, config, stop_at, tmp_path, step):
    folder = ready("ppo")
    ppo.run(config(*ALL_STATE))
    folder.rename(tmp_path / "straight")
    stop_at(step)
    with pytest.raises(Stopped, match=f"stopped after {step} steps, saved; the same command goes on from there"):
        ppo.run(config(*ALL_STATE))
    assert not (folder / "manifest.json").exists()
    stop_at(None)
    ppo.run(config(*ALL_STATE))
    assert_same_result(tmp_path / "straight", folder)


@pytest.mark.parametrize("step", [1, 2, 5, 8])
@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_a_stopped_training_ends_bit_for_bit_like_one_that_was_not_stopped(
    ready, config, stop_at, finished, stage, step
):
    folder = ready(stage)
    stop_at(step)
    with pytest.raises(Stopped, match="saved; the same command goes on from there"):
        STAGES[stage].run(config())
    stop_at(None)
    STAGES[stage].run(config())
    assert_same_result(finished / stage, folder)
    assert load_manifest(finished / stage)["metrics"] == load_manifest(folder)["metrics"]


@pytest.mark.parametrize("option", ["sft.dropout=0.3", "model.dtype=bfloat16"])
def test_random_numbers_and_float32_copies_of_weights_go_on_to_the_bit(ready, config, stop_at, tmp_path, option):
    folder = ready("sft")
    sft.run(config(option))
    folder.rename(tmp_path / "straight")
    stop_at(3)
    with pytest.raises(Stopped):
        sft.run(config(option))
    stop_at(None)
    sft.run(config(option))
    assert_same_result(tmp_path / "straight", folder)


def test_early_stopping_counts_on_after_a_stop(ready, config, stop_at, tmp_path):
    never_better = ["sft.learning_rate=1e-30", "sft.eval_steps=1", "sft.patience=3", "sft.num_epochs=5"]
    folder = ready("sft")
    sft.run(config(*never_better))
    folder.rename(tmp_path / "straight")
    stop_at(2)
    with pytest.raises(Stopped):
        sft.run(config(*never_better))
    stop_at(None)
    sft.run(config(*never_better))
    steps = [line["step"] for line in result(folder)[1] if "train/loss" in line]
    assert steps == [1, 2, 3, 4]  # the first validation is the best one, three more are no better
    assert_same_result(tmp_path / "straight", folder)


def test_a_run_stopped_twice_ends_like_one_that_was_not_stopped(ready, config, stop_at, finished):
    folder = ready("ppo")
    for step in (1, 3):
        stop_at(step)
        with pytest.raises(Stopped):
            ppo.run(config())
    stop_at(None)
    ppo.run(config())
    assert_same_result(finished / "ppo", folder)


def test_killed_without_warning_a_run_goes_on_from_the_last_checkpoint(ready, config, start, ended, tmp_path):
    folder = ready("ppo")
    rewards = "ppo.rewards=[{source: tiny_world:kills_once}]"
    process = start("ppo", rewards, TINY_KILL="6")  # two evaluations, step 1, 2, an evaluation, then dying in step 3
    assert ended(process).code == -signal.SIGKILL
    assert [path.name for path in (folder / "checkpoints").glob("step-*")] == ["step-000002"]
    ppo.run(config(rewards))
    folder.rename(tmp_path / "resumed")
    ppo.run(config(rewards))
    assert_same_result(tmp_path / "resumed", folder)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(ready, config, stop_at, finished, capsys):
    folder = ready("ppo")
    stop_at(3)
    with pytest.raises(Stopped):
        ppo.run(config("ppo.save_steps=1"))
    stop_at(None)
    weights = folder / "checkpoints" / "step-000003" / "policy.0.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    ppo.run(config("ppo.save_steps=1"))
    assert f"passing over a damaged checkpoint: {weights} is not what was saved" in capsys.readouterr().err
    assert_same_result(finished / "ppo", folder)


def test_with_no_whole_checkpoint_left_the_run_does_not_start_over_by_itself(stopped_ppo, config):
    (stopped_ppo / "checkpoints" / "step-000002" / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match=r"none of its 1 checkpoints is whole; start again with run.resume=never"):
        ppo.run(config())


def test_an_incomplete_checkpoint_of_a_trainer_is_not_used(ready, config, stop_at, finished):
    folder = ready("sft")
    stop_at(5)
    with pytest.raises(Stopped):
        sft.run(config())
    stop_at(None)
    newest = max((folder / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    (newest / "manifest.json").unlink()
    (newest / "training.0.safetensors").write_bytes(b"")
    sft.run(config())
    assert_same_result(finished / "sft", folder)


# ---- what a stopped run may go on with


def test_a_stopped_run_is_not_gone_on_with_under_another_config(stopped_ppo, tiny_command):
    outcome = tiny_command("ppo", "ppo.gamma=0.9", "seed=1")
    assert outcome.code == 3
    assert outcome.error == (
        f"{stopped_ppo} holds a stopped run that differs (ppo.gamma 1.0 -> 0.9; seed 0 -> 1). Give it the old values, "
        "choose another run.dir, or run.resume=never to start again (the old one moves aside)"
    )
    assert (stopped_ppo / "checkpoints" / "step-000002").is_dir()


def test_a_stopped_run_is_not_gone_on_with_on_other_data(stopped_ppo, tiny_command, own_world):
    prompts = own_world / "prompts.jsonl"
    outcome = tiny_command("ppo", f"data.prompts={prompts}")
    assert outcome.code == 3 and f"{prompts} is new" in outcome.error


def test_what_does_not_change_the_result_may_differ(stopped_ppo, tiny_command):
    outcome = tiny_command("ppo", "ppo.save_steps=1", "ppo.keep_checkpoints=1", "tracking.num_samples=2")
    assert outcome.code == 0 and verify(stopped_ppo)


@pytest.mark.parametrize("option", ["run.resume=never", "run.force=true"])
def test_a_stopped_run_starts_again_when_it_is_told_to_and_the_old_one_moves_aside(
    stopped_ppo, tiny_command, finished, option
):
    outcome = tiny_command("ppo", option)
    assert outcome.code == 0
    (old,) = (stopped_ppo.parent / "replaced").iterdir()
    assert (old / "checkpoints" / "step-000002").is_dir()
    assert f"an unfinished run moves to {old}" in outcome.err
    assert_same_result(finished / "ppo", stopped_ppo)


def test_the_pipeline_goes_on_with_a_stopped_stage(stopped_ppo, tiny_command, finished):
    outcome = tiny_command("pipeline")
    assert outcome.code == 0 and "ppo: stopped before it finished" in outcome.err
    assert_same_result(finished / "ppo", stopped_ppo)


def test_the_pipeline_starts_a_stopped_stage_of_another_config_again(stopped_ppo, tiny_command):
    outcome = tiny_command("pipeline", "ppo.gamma=0.9")
    assert outcome.code == 0 and "an unfinished run moves to" in outcome.err
    assert load_manifest(stopped_ppo)["config"]["ppo.gamma"] == 0.9


def test_a_stage_whose_input_is_a_stopped_run_says_where_that_stopped(stopped_ppo, tiny_command):
    outcome = tiny_command("evaluate")
    assert outcome.code == 3
    assert outcome.error == (
        f"{stopped_ppo}: not a finished artifact (no manifest.json; the stage was stopped, last checkpoint "
        "checkpoints/step-000002); run python -m stages.ppo to finish it"
    )


# ---- signals to a real process


def wait_for_step(stage_dir: Path, step: int, process) -> None:
    """Returns once the process has logged this step."""
    for _ in range(6000):
        log = stage_dir / "metrics.jsonl"
        if log.exists() and f'{{"step": {step},' in log.read_text():
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not logged in five minutes")


def test_ctrl_c_and_sigterm_leave_a_checkpoint_and_say_how_to_go_on(start, ended, tmp_path, finished):
    folders = {stage: tmp_path / f"long-{stage}" / stage for stage in ("sft", "ppo")}
    options = {"sft": ["sft.num_epochs=2000", "sft.eval_steps=1000"], "ppo": ["ppo.num_steps=2000"]}
    artifacts = [f"inputs.{role}={finished}/{role}" for role in ("sft", "reward")]
    processes = {s: start(s, f"run.dir={folder.parent}", *artifacts, *options[s]) for s, folder in folders.items()}
    for stage, number in (("sft", signal.SIGINT), ("ppo", signal.SIGTERM)):
        process, folder = processes[stage], folders[stage]
        wait_for_step(folder, 1, process)
        process.send_signal(number)
        outcome = ended(process)
        err = outcome.err
        assert outcome.code == 75 and "Traceback" not in err
        assert f"{number.name}: stopping after this step, with a checkpoint (Ctrl-C again stops at once)" in err
        assert err.splitlines()[-1].endswith("saved; the same command goes on from there")
        assert list((folder / "checkpoints").glob("*-[0-9]*"))
