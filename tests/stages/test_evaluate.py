"""What evaluate checks before it begins, and what its report says of the run that it is about."""

import json

import pytest
import tiny_world
from tiny_world import records, write_jsonl

from rlhf.artifacts.manifest import load_manifest
from rlhf.data.report import DataReport
from rlhf.errors import ArtifactError, UserError
from stages import evaluate, ppo
from stages.reports.background import data_warnings

RULE = "ppo.rewards=[{source: tiny_world:kills_once}]"  # names_the_colour, and counts its calls


def report_of(run_dir):
    return json.loads((run_dir / "evaluate" / "report.json").read_text())


def page_of(run_dir):
    return (run_dir / "evaluate" / "report.html").read_text()


# ---- what each stage was told


def test_the_settings_in_the_report_are_those_that_each_stage_was_made_with(config, run_dir):
    evaluate.run(config("sft.learning_rate=9", "ppo.num_steps=77", "evaluate.num_examples=3"), replace=True)
    told = {entry["stage"]: entry for entry in report_of(run_dir)["configs"]}
    assert list(told) == ["sft", "reward", "ppo", "evaluate"]
    for stage, entry in told.items():
        assert entry["values"] == load_manifest(run_dir / stage)["config"]
    assert told["sft"]["values"]["sft.learning_rate"] == 2e-3 and told["ppo"]["values"]["ppo.num_steps"] == 4
    assert "sft.learning_rate: 9" not in page_of(run_dir) and "ppo.num_steps: 4" in page_of(run_dir)


def test_what_is_not_as_shipped_stands_beside_the_shipped_value(finished):
    told = {entry["stage"]: entry["changed"] for entry in report_of(finished)["configs"]}
    assert told["ppo"]["ppo.learning_rate"] == {"value": 0.03, "default": 3e-4}
    assert "ppo.clip_range" not in told["ppo"]


def test_the_lineage_names_what_weights_started_from_and_the_code_of_rules(config, run_dir):
    ppo.run(config(RULE), replace=True)
    evaluate.run(config(RULE), replace=True)
    (ppo_row, sft_row) = report_of(run_dir)["lineage"]
    assert ppo_row["base"].startswith("sft ") and sft_row["base"].startswith("scratch ")
    assert ppo_row["data"][-1]["path"].startswith("tiny_world:kills_once (")


# ---- who judges


def test_where_a_rule_is_the_reward_no_reward_model_is_spoken_of(config, run_dir):
    for stage in (ppo, evaluate):
        stage.run(config(RULE, "data.gold_rule=null"), replace=True)
    report, page = report_of(run_dir), page_of(run_dir)
    assert report["win_rate"]["by"] == "rule tiny_world:kills_once" and report["reward_cards"] == {}
    assert "judged by the rule tiny_world:kills_once that PPO optimised." in page
    assert '<h2 id="reward">' not in page and "judged by the reward model" not in page


def test_a_sum_of_rewards_is_called_one_with_its_terms_and_weights(config, run_dir):
    terms = "ppo.rewards=[{source: reward}, {source: 'tiny_world:length', weight: 0.5}]"
    for stage in (ppo, evaluate):
        stage.run(config(terms, "data.gold_rule=null", "ppo.missing_eos_penalty=1.5"), replace=True)
    report, page = report_of(run_dir), page_of(run_dir)
    assert "PPO optimised them with ppo.missing_eos_penalty=1.5, and so are its curves" in report["notes"][0]
    assert ">Reward terms<" in page and " length</text>" in page
    assert report["win_rate"]["by"] == "weighted sum of rewards" and list(report["reward_cards"]) == ["reward model"]
    assert "1 \N{MULTIPLICATION SIGN} reward model + 0.5 \N{MULTIPLICATION SIGN} rule tiny_world:length" in page


# ---- what is checked before anything is generated


@pytest.fixture
def by_rule(config, run_dir):
    """The tiny run with a policy that a rule rewarded; calls() says how often that rule was asked."""
    ppo.run(config(RULE), replace=True)
    return lambda: tiny_world.kills_once.calls


def test_all_that_is_wrong_with_the_data_is_told_before_anything_is_generated(by_rule, config, tmp_path):
    before, bad = by_rule(), tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a"}\n')
    leaked = write_jsonl(tmp_path / "leaked.jsonl", records()["prompts"][:40])
    long = write_jsonl(tmp_path / "long.jsonl", [{"prompt": "word " * 50}])
    for override, message in (
        (f"data.demonstrations={bad}", "bad.jsonl:1"),
        (f"data.heldout={bad}.gz", "no such file"),
        (f"data.heldout={leaked}", "held-out prompts are in the training data of"),
        (f"data.heldout={long}", "long.jsonl:1"),
        ("data.gold_rule=tiny_world:missing", "has no function 'missing'"),
        ("data.gold_rule=reward.rules:support_desk", "judges only prompts of data/toy"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate.run(config(RULE, override), replace=True)
    assert by_rule() == before


def test_without_demonstrations_there_is_no_perplexity_and_the_report_says_so(tiny_command, run_dir):
    outcome = tiny_command("evaluate", "data.demonstrations=null", "data.prompts=null", "run.force=true")
    assert outcome.code == 0, outcome.err
    said, report = "Perplexity is left out: data.demonstrations is not set.", report_of(run_dir)
    assert said in report["notes"] and said in outcome.out and said in page_of(run_dir)
    assert report["policies"]["ppo"]["perplexity"] is None and ">Perplexity<" not in page_of(run_dir)


def test_perplexity_is_on_demonstrations_that_no_policy_was_trained_on(config, run_dir):
    evaluate.run(config("data.test_share=0.6"), replace=True)
    note = report_of(run_dir)["notes"][0]
    assert note.startswith("Perplexity is without ") and "which the policies were trained on" in note


def test_a_rule_that_changed_since_ppo_is_refused(config, run_dir, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "changing_rules.py"
    path.write_text(
        "from reward.rules import rule\n\n\n@rule\ndef short(prompts, responses):\n"
        "    return [1.0 / (1 + len(response)) for response in responses]\n"
    )
    own = config("ppo.rewards=[{source: changing_rules:short}]")
    ppo.run(own, replace=True)
    path.write_text(path.read_text().replace("1.0 /", "2.0 /"))
    with pytest.raises(
        ArtifactError, match=r"the code of changing_rules:short \(.*restore the file, or run python -m stages.ppo run"
    ):
        evaluate.run(own, replace=True)


# ---- warnings


def test_the_warnings_of_the_report_are_printed_too(tiny_command, run_dir):
    outcome = tiny_command("evaluate")
    warned = report_of(run_dir)["warnings"]
    assert any("Only 16 held-out prompts" in text for text in warned)
    assert [line for line in outcome.out.splitlines() if line.startswith("warning: ")] == [
        f"warning: {text}" for text in warned
    ]


def test_answers_that_a_stage_left_out_for_length_are_a_warning_of_the_report(tmp_path):
    report = DataReport()
    report.see_answers(10)
    for i in range(2):
        report.over_long(f"r.jsonl:{i}", 90, 48)
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward" / "data_report.json").write_text(json.dumps(report.as_dict()))
    (warning,) = data_warnings(tmp_path / "reward")
    assert warning.startswith("Data of reward: 2 of 10 answers (20 %) are over the token limit and left out")
    assert data_warnings(tmp_path) == []
