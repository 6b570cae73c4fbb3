"""PPO's options and invariants in whole runs of the stage: what each changes, and what the artifact says of it."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlhf.artifacts.manifest import load_manifest
from rlhf.config.checks import check_split
from rlhf.data.load import prompt_key
from rlhf.errors import NumericsError, UserError
from rlhf.hashing import file_sha256
from rlhf.ppo.heldout import BestPolicy
from rlhf.ppo.scores import ScoreShaping
from stages import ppo


@pytest.fixture
def run_ppo(finished, config):
    """run_ppo("ppo.gamma=0.9") -> the folder of a PPO run of the tiny world on finished SFT and reward artifacts."""
    artifacts = [f"inputs.{role}={finished}/{role}" for role in ("sft", "reward")]

    def run(*overrides: str) -> Path:
        return ppo.run(config(*artifacts, *overrides))

    return run


def metrics(folder: Path) -> list[dict]:
    """By step; the first line is the evaluation before any step."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict:
    return load_file(folder / "model" / "model.safetensors")


# ---- the PTX mix


def test_the_ptx_mix_makes_demonstrations_an_input_of_ppo(run_ppo, finished, world):
    folder, source = run_ppo("ppo.ptx_coef=1.0", "ppo.ptx_batch_size=6"), world / "demonstrations.jsonl"
    used = {record["path"]: record["sha256"] for record in load_manifest(folder)["data"]}
    assert used[str(source)] == file_sha256(source)
    assert str(source) not in {record["path"] for record in load_manifest(finished / "ppo")["data"]}
    steps = metrics(folder)[1:]
    assert "loss/ptx_avg" not in steps[0]  # the critic's warm-up
    assert all(step["loss/ptx_avg"] > 0 for step in steps[1:])
    assert all("loss/ptx_avg" not in step for step in metrics(finished / "ppo"))
    assert not all(torch.equal(x, weights(finished / "ppo")[name]) for name, x in weights(folder).items())


def test_demonstrations_that_are_mixed_in_are_claimed_as_training_data(run_ppo, own_world):
    extra = {"prompt": "newt is teal?", "completion": "teal."}
    demonstrations = own_world / "demonstrations.jsonl"
    demonstrations.write_text("".join(json.dumps({**extra, "group": f"g{i}"}) + "\n" for i in range(20)))
    folder = run_ppo("ppo.ptx_coef=1.0", "ppo.ptx_batch_size=4", f"data.demonstrations={demonstrations}")
    assert prompt_key([{"role": "user", "content": extra["prompt"]}]) in (folder / "train_prompts.txt").read_text()
    shutil.rmtree(folder)
    heldout = own_world / "heldout.jsonl"
    heldout.write_text(json.dumps({"prompt": extra["prompt"]}) + "\n")
    with pytest.raises(UserError, match="1 held-out prompts are in the training data of ppo"):
        run_ppo("ppo.ptx_coef=1.0", f"data.demonstrations={demonstrations}", f"data.heldout={heldout}")


def test_a_ptx_mix_without_demonstrations_is_refused(config):
    with pytest.raises(UserError, match=r"ppo.ptx_coef=1.0 mixes in demonstrations, and data.demonstrations"):
        config("ppo.ptx_coef=1.0", "data.demonstrations=null")


def test_a_ptx_minibatch_that_the_ranks_cannot_split_is_refused(config):
    options = ["ppo.ptx_coef=1.0", "ppo.ptx_batch_size=5", "deepspeed=zero2", "ppo.micro_batch_size=2"]
    with pytest.raises(UserError, match=r"ppo\.ptx_batch_size=5 cannot be split over 2 ranks"):
        check_split(config(*options), ppo.needs(config(*options)).batches, world_size=2)


def test_more_demonstrations_per_step_than_there_are_is_refused(run_ppo):
    with pytest.raises(UserError, match=r"ppo.ptx_batch_size=5000 is more than the \d+ training demonstrations"):
        run_ppo("ppo.ptx_coef=1.0", "ppo.ptx_batch_size=5000")


# ---- which policy is exported


def test_a_policy_that_learned_to_end_its_answers_is_exported_though_its_raw_scores_fell(run_ppo, capsys):
    """The rule pays for length, and an answer that is cut pays more than that."""
    rewards = ["ppo.rewards=[{source: tiny_world:plain_length}]", "ppo.missing_eos_penalty=30", "ppo.kl_coef=0.001"]
    folder = run_ppo(*rewards, "ppo.num_steps=12", "ppo.batch_size=32", "ppo.eval_steps=12")
    start, end = (line for line in metrics(folder) if "eval/scores" in line)
    assert end["eval/eos_rate"] > start["eval/eos_rate"] and end["eval/raw_scores"] < start["eval/raw_scores"]
    found = load_manifest(folder)["metrics"]
    assert (found["best_step"], found["best_score"]) == (12, end["eval/scores"])
    assert found["best_raw_score"] == end["eval/raw_scores"]
    for line in (start, end):
        cut = 1 - line["eval/eos_rate"]
        assert line["eval/scores"] == pytest.approx(line["eval/raw_scores"] - 30 * cut, abs=1e-4)
    assert "artifact holds the SFT policy" not in capsys.readouterr().err


def test_that_nothing_was_better_than_sft_is_said_with_what_to_try(run_ppo, capsys):
    run_ppo("ppo.learning_rate=0.3", "ppo.kl_budget=0.01")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ppo: done")]
    assert "No later policy was better on held-out prompts (eval/scores) within ppo.kl_budget=0.01" in line
    assert (
        "the artifact holds the SFT policy itself. 2 evaluations were beyond that budget: raise ppo.kl_budget" in line
    )


def test_where_no_policy_left_the_budget_the_remedy_is_to_learn_more():
    best = BestPolicy(20.0, ScoreShaping(False, None, 0.0), step=0)
    assert "Try more ppo.num_steps, a higher ppo.learning_rate or a lower ppo.kl_coef" in ppo.remark(best)
    assert ppo.remark(BestPolicy(20.0, ScoreShaping(False, None, 0.0), step=10)) == ""


# ---- the moving average


def test_the_moving_average_is_what_is_evaluated_and_exported(run_ppo, finished):
    """With a decay of nearly 1 it is still the SFT policy, however far the policy went."""
    folder = run_ppo("ppo.ema_decay=0.999999")
    start, plain = weights(finished / "sft"), weights(finished / "ppo")
    assert max((x - start[name]).abs().max() for name, x in weights(folder).items()) < 1e-5
    assert max((x - start[name]).abs().max() for name, x in plain.items()) > 1e-2
    for ours, others in zip(metrics(folder), metrics(finished / "ppo"), strict=True):
        assert ours.get("objective/kl") == others.get("objective/kl")  # the policy itself trains as before
        assert ours.get("eval/kl", 0) == pytest.approx(0, abs=1e-3)
    assert metrics(finished / "ppo")[-1]["eval/kl"] > 0.05


# ---- rollouts


def test_cut_responses_bootstrap_where_it_is_asked_for(run_ppo, finished):
    """Until the first update of the critic both runs are the same but for the returns."""
    ours, plain = metrics(run_ppo("ppo.bootstrap_cut=true"))[1], metrics(finished / "ppo")[1]
    assert plain["response/eos_rate"] < 1 and ours["objective/scores"] == plain["objective/scores"]
    assert ours["loss/value_avg"] != plain["loss/value_avg"]


def test_several_responses_per_prompt_keep_the_number_of_responses(run_ppo, finished):
    ours, plain = metrics(run_ppo("ppo.responses_per_prompt=4")), metrics(finished / "ppo")
    assert [step.get("episode") for step in ours] == [step.get("episode") for step in plain] == [None, 8, 16, 24, 32]
    assert ours[1]["objective/scores"] != plain[1]["objective/scores"]


def test_more_prompts_than_there_are_can_be_met_by_several_responses_of_each(run_ppo):
    sizes = ["ppo.batch_size=128", "ppo.num_steps=1", "ppo.critic_warmup_steps=0", "run.resume=never"]
    with pytest.raises(UserError, match=r"ppo.batch_size=128 is more than the \d+ training prompts"):
        run_ppo(*sizes)
    with pytest.raises(UserError, match=r"ppo.batch_size / ppo.responses_per_prompt=64 is more than the \d+ training"):
        run_ppo(*sizes, "ppo.responses_per_prompt=2")
    assert metrics(run_ppo(*sizes, "ppo.responses_per_prompt=8"))[-1]["episode"] == 128


def test_responses_per_prompt_must_divide_the_batch(config):
    with pytest.raises(UserError, match=r"ppo.batch_size=8 must be a multiple of ppo.responses_per_prompt=3"):
        config("ppo.responses_per_prompt=3")


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5])
def test_a_decay_outside_0_and_1_is_refused(config, value):
    with pytest.raises(UserError, match=r"ppo.ema_decay=.* must lie between 0 and 1, or be null"):
        config(f"ppo.ema_decay={value}")


# ---- invariants


def test_what_was_sampled_is_compared_with_what_is_scored_in_every_step(run_ppo, finished, monkeypatch):
    for step in metrics(finished / "ppo")[1:]:
        assert 0 < step["val/rollout_logprob_diff"] <= step["val/rollout_logprob_diff_max"] < 1e-5
    monkeypatch.setitem(ppo.SAMPLING_ROUNDING, "float32", 1e-12)
    with pytest.raises(NumericsError, match=r"step 0 \(prompts .* were sampled differ by .* Likely causes"):
        run_ppo()


def test_a_reference_that_trains_along_stops_the_run(run_ppo, monkeypatch):
    load = ppo.load_models

    def load_once(cfg, stage):
        models = load(cfg, stage)
        return dataclasses.replace(models, ref_policy=models.policy)

    monkeypatch.setattr(ppo, "load_models", load_once)
    with pytest.raises(NumericsError, match=r"frozen weights .* a reference that shares its weights with the policy"):
        run_ppo("ppo.critic_warmup_steps=0")
