"""Rewards in whole PPO runs: rules that fail, that see records, that call services; several terms."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_world
from safetensors.torch import load_file

from reward.examples import Annotation, RankingExample
from rlhf.artifacts.manifest import load_manifest
from rlhf.errors import ArtifactError, UserError
from stages import evaluate, ppo
from stages.reward import gold_utilities


@pytest.fixture
def run_dir(finished, tmp_path) -> Path:
    """tmp_path/run with the artifacts that PPO needs."""
    for role in ("sft", "reward"):
        shutil.copytree(finished / role, tmp_path / "run" / role)
    return tmp_path / "run"


@pytest.fixture
def service(monkeypatch):
    """service(fails_at) resets the rule `unsteady`: its calls begin at 1 again, and that number fails."""

    def arm(fails_at=None, calls=0):
        monkeypatch.setattr(tiny_world.unsteady, "calls", calls)
        monkeypatch.setattr(tiny_world.unsteady, "fails_at", fails_at)

    return arm


def lines(folder: Path) -> list[dict]:
    """metrics.jsonl without clock times."""
    clock = ("time", "eps", "throughput")
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith(clock)} for line in logged]


UNSTEADY = ["ppo.rewards=[{source: tiny_world:unsteady}]", "ppo.save_steps=100"]


# ---- a reward that fails


# Questions, as the start is the SFT policy again: 1 its answers, 2 and 3 steps 1 and 2, 4 their evaluation, 5, 6, 7.
@pytest.mark.parametrize(("fails_at", "saved"), [(5, 2), (4, 2), (3, 1), (7, 4)])
def test_a_reward_that_fails_costs_no_step_and_the_run_goes_on_as_if_it_had_not(
    run_dir, config, tmp_path, service, fails_at, saved
):
    service()
    whole = ppo.run(config(*UNSTEADY, "ppo.reward_cache=true"))
    whole = shutil.move(whole, tmp_path / "whole")
    service(fails_at)
    with pytest.raises(UserError, match=rf"HTTP 503.* Saved after {saved} steps: the same command goes on from there"):
        ppo.run(config(*UNSTEADY, "ppo.reward_cache=true"))
    found = sorted(path.name for path in (run_dir / "ppo" / "checkpoints").glob("step-*"))
    assert found == [f"step-{saved:06d}"]
    service(calls=fails_at - 1)  # what it would have said
    resumed = ppo.run(config(*UNSTEADY, "ppo.reward_cache=true"))
    assert lines(resumed) == lines(whole)
    assert load_manifest(resumed)["metrics"] == load_manifest(whole)["metrics"]
    old, new = (load_file(folder / "model" / "model.safetensors") for folder in (Path(whole), resumed))
    assert all((new[name] == value).all() for name, value in old.items())


def test_without_a_cache_a_resumed_run_asks_a_service_again(run_dir, config, service):
    service(6)
    with pytest.raises(UserError, match="HTTP 503"):
        ppo.run(config(*UNSTEADY))
    ppo.run(config(*UNSTEADY))
    assert tiny_world.unsteady.calls == 6 + 1 + 3  # the SFT policy's answers once more, then three


def test_a_reward_that_fails_before_any_step_leaves_no_checkpoint(run_dir, config, service):
    service(3)
    with pytest.raises(UserError, match=r"step 0 \(prompts .* HTTP 503.* Nothing was trained yet"):
        ppo.run(config(*UNSTEADY))
    assert list((run_dir / "ppo" / "checkpoints").glob("step-*")) == []


def test_a_rule_may_be_mended_and_the_run_goes_on(run_dir, config, tmp_path, monkeypatch):
    code = "from reward.rules import rule\n@rule\ndef mine(prompts, responses):\n    calls.append(1)\n"
    code += "    return [float(len(text)) / (BUG - len(calls)) for text in responses]\ncalls = []\n"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    file, options = tmp_path / "mended_rules.py", ["ppo.rewards=[{source: mended_rules:mine}]"]
    file.write_text(code.replace("BUG", "6"))
    with pytest.raises(UserError, match=r"ZeroDivisionError.* with run.mended_rule=true where the code"):
        ppo.run(config(*options))
    file.write_text(code.replace("BUG", "1e9"))
    monkeypatch.delitem(__import__("sys").modules, "mended_rules")
    with pytest.raises(ArtifactError, match=r"run.mended_rule=true to go on with the rule as it is now"):
        ppo.run(config(*options))
    folder = ppo.run(config(*options, "run.mended_rule=true"))
    assert [line["step"] for line in lines(folder)] == [0, 1, 2, 3, 4]


# ---- records


def test_a_rule_sees_the_reference_of_each_record_in_training_evaluation_and_as_gold_rule(run_dir, config, tmp_path):
    data = {}
    for stem in ("prompts", "heldout"):
        rows = [{**row, "reference": row["prompt"].split()[-1].rstrip("?")} for row in tiny_world.records()[stem]]
        data[stem] = tiny_world.write_jsonl(tmp_path / f"{stem}.jsonl", rows)
    options = ["ppo.rewards=[{source: tiny_world:right_answer}, {source: tiny_world:names_the_colour, weight: 0}]"]
    options += [f"data.{stem}={path}" for stem, path in data.items()] + ["data.gold_rule=tiny_world:right_answer"]
    folder = ppo.run(config(*options))
    for line in lines(folder)[1:]:  # the reference is the colour, so both rules say the same
        assert line["objective/scores/right_answer"] == line["objective/scores/names_the_colour"]
        assert line["objective/scores/right_answer"] == line["objective/scores"]
    evaluate.run(config(*options))
    figures = json.loads((run_dir / "evaluate" / "report.json").read_text())["policies"]["ppo"]
    assert figures["score_mean"] == figures["gold_mean"] > 0


def test_a_gold_rule_sees_the_reference_of_each_ranking_and_judges_it_once_per_annotation(config):
    annotation = Annotation((1, 2), annotator=None, weight=1.0, margin=0.0)
    messages = ({"role": "user", "content": "cat is red?"},)
    answers = {"sequences": ([1], [2]), "responses": ("red.", "no."), "lengths": (1, 1)}
    example = RankingExample(
        **answers, annotations=(annotation,) * 2, messages=messages, key="", meta={"reference": "red"}
    )
    assert gold_utilities(config("data.gold_rule=tiny_world:right_answer"), [example]) == [[1.0, 0.0], [1.0, 0.0]]


# ---- several terms


def test_each_term_has_its_own_curve_and_may_carry_scale_and_clip(run_dir, config):
    rewards = "{source: reward}, {source: tiny_world:length, scale: 0.1, clip: 0.75, weight: 2}"
    folder = ppo.run(config(f"ppo.rewards=[{rewards}]"))
    for kind, log in (("objective", lines(folder)[1:]), ("eval", [lines(folder)[0], lines(folder)[-1]])):
        for line in log:
            terms = [line[f"{kind}/scores/{name}"] for name in ("reward", "length")]
            assert 0 < terms[1] <= 0.75
            assert terms[0] + 2 * terms[1] == pytest.approx(line[f"{kind}/scores"], abs=1e-5)


# ---- a negative KL


def test_a_negative_kl_is_explained_once_in_the_terminal_and_in_the_report(run_dir, config, capsys):
    """The k1 estimate over 8 responses of a policy that has hardly moved falls on either side of 0."""
    options = ["ppo.learning_rate=3e-3", "ppo.num_steps=10"]
    folder = ppo.run(config(*options))
    told = [line for line in capsys.readouterr().err.splitlines() if "a KL below 0 is no error" in line]
    below = [line for line in lines(folder) if min(line.get("objective/kl", 0), line.get("eval/kl", 0)) < -1e-3]
    assert below and len(told) == 1
    assert told[0].startswith(f"step {below[0]['step']}, ")
    report = json.loads((evaluate.run(config(*options)) / "report.json").read_text())
    assert any("KL below 0 is no error" in note for note in report["notes"])
