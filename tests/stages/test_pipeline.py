"""The stages as a whole, on the tiny world: what they leave, what runs again and why, each variant of a stage."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from tiny_world import COLOURS, names_the_colour, question, records, write_jsonl

from reward.scorer import load_scorer
from rlhf.artifacts.manifest import load_manifest, manifest_sha256, verify
from stages import evaluate, ppo, reward, sft

STAGES = ["sft", "reward", "ppo", "evaluate"]
MANIFEST_FIELDS = {
    *("schema", "stage", "status", "created", "inputs", "data", "base_model", "adapter", "tokenizer_sha256"),
    *("chat_template_sha256", "files", "metrics", "reward_norm", "config_sha256", "versions", "git", "seconds"),
}
PPO_METRICS = {
    *(f"objective/{name}" for name in ("kl", "entropy", "non_score_reward", "rlhf_reward", "scores", "scores_std")),
    *("objective/kl_coef", "policy/approxkl_avg", "policy/clipfrac_avg", "policy/entropy_avg", "policy/grad_norm"),
    *("loss/policy_avg", "loss/value_avg", "val/clipfrac_avg", "val/ratio", "val/num_eos_tokens", "val/explained_var"),
    *("eps", "episode", "lr", "critic/grad_norm", "response/length_mean", "response/eos_rate"),
    *("time/rollout", "time/score", "time/update", "throughput/tokens_per_second"),
}


def read_metrics(stage_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (stage_dir / "metrics.jsonl").read_text().splitlines()]


def report_of(run_dir: Path) -> dict:
    return json.loads((run_dir / "evaluate" / "report.json").read_text())


def data_report(stage_dir: Path) -> dict:
    return json.loads((stage_dir / "data_report.json").read_text())


def digests(run_dir: Path, *stages: str) -> dict[str, str]:
    return {stage: manifest_sha256(run_dir / stage) for stage in stages or STAGES}


# ---- what a run leaves behind


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_leaves_a_whole_artifact_with_every_field_of_the_manifest(finished, stage):
    manifest = verify(finished / stage)
    assert set(manifest) >= MANIFEST_FIELDS
    assert (manifest["stage"], manifest["status"]) == (stage, "complete")
    assert all(value is None or value == value for value in manifest["metrics"].values()) and manifest["metrics"]
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((finished / stage / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_but_the_artifact_stays_in_the_folder_of_a_stage(finished, stage):
    files = {path.relative_to(finished / stage).as_posix() for path in (finished / stage).rglob("*") if path.is_file()}
    assert files == {*load_manifest(finished / stage)["files"], "manifest.json"}
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl"))]


@pytest.mark.parametrize("stage", STAGES)
def test_the_resolved_config_lies_in_every_artifact(finished, stage):
    config = OmegaConf.load(finished / stage / "config.yaml")
    assert config.ppo.num_steps == 4 and config.inputs.sft == f"{finished}/sft"


def test_each_artifact_names_the_artifacts_it_came_from(finished):
    inputs = {stage: load_manifest(finished / stage)["inputs"] for stage in STAGES}
    sha256 = digests(finished)
    assert inputs["sft"] == []
    assert inputs["reward"] == [{"role": "sft", "path": "../sft", "sha256": sha256["sft"]}]
    assert {entry["role"]: entry["sha256"] for entry in inputs["ppo"]} == {k: sha256[k] for k in ("sft", "reward")}
    assert {entry["role"]: entry["sha256"] for entry in inputs["evaluate"]} == {k: sha256[k] for k in ("sft", "ppo")}


def test_each_artifact_names_the_data_it_read_with_its_hash_and_its_number_of_records(finished, world):
    def entry(stem):
        path = world / f"{stem}.jsonl"
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        return {"path": str(path), "records": len(records()[stem]), "sha256": sha256}

    data = {stage: load_manifest(finished / stage)["data"] for stage in STAGES}
    assert data["sft"] == [entry("demonstrations")]
    assert data["reward"] == [entry("rankings")]
    assert data["ppo"] == [entry("prompts"), entry("heldout")]
    assert sorted(data["evaluate"], key=str) == sorted(map(entry, ("demonstrations", "prompts", "heldout")), key=str)


def test_the_three_models_share_tokenizer_and_chat_template(finished):
    manifests = [load_manifest(finished / stage) for stage in ("sft", "reward", "ppo")]
    for field in ("tokenizer_sha256", "chat_template_sha256"):
        assert len({manifest[field] for manifest in manifests}) == 1 and manifests[0][field] is not None


def test_only_the_reward_stage_has_a_norm_and_it_makes_scores_of_sft_samples_standard(finished):
    norms = {stage: load_manifest(finished / stage)["reward_norm"] for stage in STAGES}
    assert [stage for stage in STAGES if norms[stage] is not None] == ["reward"]
    prompts, answers = [question("red", "cat"), question("blue", "yak")], ["red.", "no."]
    raw, normalised = (
        load_scorer(finished / "reward", normalised=choice)(prompts, answers) for choice in (False, True)
    )
    norm = norms["reward"]
    torch.testing.assert_close(normalised, (raw - norm["mean"]) / norm["std"])
    assert norm["num_samples"] == 16


def test_metrics_of_ppo_are_one_line_a_step_under_the_names_that_dashboards_know(finished):
    lines = read_metrics(finished / "ppo")
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert all("time" in line for line in lines)
    assert set(lines[4]) >= PPO_METRICS  # the policy itself learns from step 2 on
    assert [line["step"] for line in lines if "eval/scores" in line] == [0, 2, 4]
    assert lines[4]["val/ratio"] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("stage", "validated"), [("sft", "eval/loss"), ("reward", "eval/pair_accuracy")])
def test_sft_and_reward_log_the_loss_of_every_step_and_each_validation(finished, stage, validated):
    lines = read_metrics(finished / stage)
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [line["step"] for line in lines if validated in line] == [2, 4, 6, 8]


def test_critic_warm_up_leaves_the_policy_as_it_was(finished):
    first = read_metrics(finished / "ppo")[1]  # ppo.critic_warmup_steps=1
    assert "loss/value_avg" in first and "loss/policy_avg" not in first


def test_data_report_counts_records_splits_and_tokens(finished):
    report = data_report(finished / "sft")
    assert report["sources"][0]["records"] == 80
    assert sum(report["splits"]["demonstrations"].values()) == 80
    assert report["tokens"]["demonstrations"]["train"]["count"] == report["splits"]["demonstrations"]["train"]


def test_the_exported_policy_is_the_best_evaluated_one(finished):
    evaluated = {line["step"]: line["eval/scores"] for line in read_metrics(finished / "ppo") if "eval/scores" in line}
    metrics = load_manifest(finished / "ppo")["metrics"]
    assert metrics["best_score"] == max(evaluated.values()) == evaluated[metrics["best_step"]]


# ---- the report


def test_report_json_says_how_often_ppo_won_and_gives_both_policies_the_same_figures(finished):
    report = report_of(finished)
    assert report["win_rate"]["by"] == "gold rule tiny_world:names_the_colour"
    assert 0 <= report["win_rate"]["low"] <= report["win_rate"]["value"] <= report["win_rate"]["high"] <= 1
    sft_figures, ppo_figures = report["policies"]["sft"], report["policies"]["ppo"]
    names = {"score_mean", "gold_mean", "kl", "length_mean", "eos_rate", "distinct_1", "distinct_2", "perplexity"}
    assert names <= set(sft_figures) and names <= set(ppo_figures)
    assert ppo_figures["win_rate"] == report["win_rate"]
    assert sft_figures["kl"] == 0 and report["num_prompts"] == 16
    assert report["seed"] == 0 and report["reward_cards"]["reward model"]["pair_accuracy"]["value"] > 0.5


def test_report_judges_the_examples_it_shows_by_the_gold_rule(finished):
    for example in report_of(finished)["examples"]:
        prompt = example["prompt"]
        for role in ("sft", "ppo"):
            assert example["gold"][role] == names_the_colour([prompt], [example[role]])[0]


def test_report_html_is_one_file_that_loads_nothing_and_runs_nothing(finished):
    html = (finished / "evaluate" / "report.html").read_text()
    assert html.lstrip().lower().startswith("<!doctype html>") and html.count("<svg") >= 3
    assert not re.findall(r"<(?:script|link|iframe|object|img[^>]+src=[\"'](?!data:))", html)
    assert not re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", html)


def test_without_a_gold_rule_the_reward_model_judges(config, run_dir):
    evaluate.run(config("data.gold_rule=null"), replace=True)
    assert report_of(run_dir)["win_rate"]["by"] == "reward model"


# ---- what runs again


def test_a_second_pipeline_does_nothing(tiny_command, run_dir):
    before = digests(run_dir)
    outcome = tiny_command("pipeline")
    assert outcome.code == 0 and digests(run_dir) == before
    assert [line.split(":")[0] for line in outcome.err.splitlines() if "up to date" in line] == STAGES
    assert f"report: {run_dir}/evaluate/report.html" in outcome.out


def test_a_key_of_ppo_runs_ppo_and_evaluate_again_and_says_why(tiny_command, run_dir):
    before = digests(run_dir)
    outcome = tiny_command("pipeline", "ppo.learning_rate=0.02")
    assert outcome.code == 0
    after = digests(run_dir)
    assert [stage for stage in STAGES if after[stage] != before[stage]] == ["ppo", "evaluate"]
    assert f"ppo: ppo.learning_rate 0.03 -> 0.02 -> {run_dir}/ppo" in outcome.err
    assert f"evaluate: input ppo changed -> {run_dir}/evaluate" in outcome.err
    assert {path.name.split("-")[0] for path in (run_dir / "replaced").iterdir()} == {"ppo", "evaluate"}


def test_how_often_checkpoints_are_saved_runs_nothing_again(tiny_command, run_dir):
    before = digests(run_dir)
    assert tiny_command("pipeline", "ppo.save_steps=1", "tracking.log_steps=2").code == 0
    assert digests(run_dir) == before


def test_other_rankings_run_everything_from_the_reward_model_on_again(tiny_command, own_world, run_dir, tmp_path):
    command = [f"data.{stem}={own_world / stem}.jsonl" for stem in records()]
    assert tiny_command("pipeline", *command).code == 0
    before = digests(run_dir)
    write_jsonl(own_world / "rankings.jsonl", records()["rankings"][:-1])
    outcome = tiny_command("pipeline", *command)
    after = digests(run_dir)
    assert [stage for stage in STAGES if after[stage] != before[stage]] == ["reward", "ppo", "evaluate"]
    assert f"reward: {own_world}/rankings.jsonl changed" in outcome.err


def test_a_moved_run_is_still_up_to_date(tiny_command, run_dir, tmp_path):
    run_dir.rename(tmp_path / "elsewhere")
    outcome = tiny_command("pipeline", f"run.dir={tmp_path}/elsewhere")
    assert outcome.err.count("up to date") == 4


def test_a_stage_does_not_overwrite_an_artifact_of_another_config(tiny_command, run_dir):
    before = digests(run_dir)
    outcome = tiny_command("ppo", "seed=1")
    assert outcome.code == 3 and digests(run_dir) == before
    assert outcome.error == (
        f"{run_dir}/ppo holds an artifact made otherwise (seed 0 -> 1). Choose another run.dir, or "
        "run.force=true to make it anew (the old one moves aside)"
    )


def test_force_makes_an_artifact_anew_and_moves_the_old_one_aside(tiny_command, run_dir):
    before = digests(run_dir, "ppo")
    assert tiny_command("ppo", "seed=1", "run.force=true").code == 0
    assert load_manifest(run_dir / "ppo")["config"]["seed"] == 1
    (old,) = (run_dir / "replaced").iterdir()
    assert {"ppo": manifest_sha256(old)} == before and verify(old)["config"]["seed"] == 0


def test_the_same_seed_gives_the_same_run(config, finished, tmp_path):
    for stage in (sft, reward, ppo):
        stage.run(config())
    for stage in ("sft", "reward", "ppo"):
        old, new = (load_manifest(folder / stage)["files"] for folder in (finished, tmp_path / "run"))
        assert old["model/model.safetensors"] == new["model/model.safetensors"]


# ---- supervised fine-tuning


def test_sequential_tuning_goes_on_from_an_earlier_artifact_and_rehearses_its_data(config, run_dir, tmp_path):
    new = [{"prompt": f"is {c} a {n}?", "completion": "yes."} for c in COLOURS for n in range(5)]
    path = write_jsonl(tmp_path / "new.jsonl", new)
    options = [f"run.dir={tmp_path}/next", f"data.demonstrations={path}", f"sft.start_from={run_dir}/sft"]
    num_new = data_report(sft.run(config(*options)))["splits"]["demonstrations"]["train"]
    folder = sft.run(config(*options, "sft.rehearsal_share=0.25"), replace=True)
    assert data_report(folder)["splits"]["demonstrations"]["train"] == num_new + round(num_new / 3)
    manifest, earlier = verify(folder), load_manifest(run_dir / "sft")
    parent = ("start_from", manifest_sha256(run_dir / "sft"))
    assert [(entry["role"], entry["sha256"]) for entry in manifest["inputs"]] == [parent]
    for field in ("base_model", "tokenizer_sha256", "chat_template_sha256"):
        assert manifest[field] == earlier[field]
    assert {entry["path"] for entry in manifest["data"]} == {str(path), earlier["data"][0]["path"]}


def test_rehearsal_of_data_that_changed_since_is_refused(tiny_command, own_world, tmp_path):
    first = f"data.demonstrations={own_world}/demonstrations.jsonl"
    assert tiny_command("sft", first).code == 0
    write_jsonl(own_world / "demonstrations.jsonl", records()["demonstrations"][1:])
    options = [f"run.dir={tmp_path}/next", f"sft.start_from={tmp_path}/run/sft", "sft.rehearsal_share=0.2"]
    outcome = tiny_command("sft", *options)
    assert outcome.code == 3
    assert f"{own_world}/demonstrations.jsonl is not what the earlier SFT artifact was trained on" in outcome.error


def test_objective_assistant_learns_every_answer_of_a_dialogue(config, tmp_path):
    rows = [
        {
            "messages": [
                {"role": "user", "content": question(colour, "cat")},
                {"role": "assistant", "content": f"{colour}."},
                {"role": "user", "content": f"{n}?"},
                {"role": "assistant", "content": "no."},
            ]
        }
        for colour in COLOURS
        for n in range(10)
    ]
    path = write_jsonl(tmp_path / "dialogues.jsonl", rows)
    limits = ["data.max_prompt_tokens=40", "model.scratch.max_positions=64"]
    folder = sft.run(config("sft.objective=assistant", f"data.demonstrations={path}", *limits))
    assert verify(folder)["metrics"]["valid_loss"] > 0


def test_objective_text_learns_plain_text(config, tmp_path):
    rows = [{"text": f"{question(c, a)} {c}. " * 4} for c in COLOURS for a in ("cat", "dog", "cow", "hen")]
    path = write_jsonl(tmp_path / "texts.jsonl", rows)
    folder = sft.run(config("sft.objective=text", f"data.demonstrations={path}"))
    report = data_report(folder)
    assert (
        report["tokens"]["demonstrations"]["train"]["max"] == 26
    )  # max_prompt_tokens + max_response_tokens: in blocks
    assert verify(folder)["metrics"]["valid_loss"] > 0


def test_dropout_is_off_again_in_the_artifact(config):
    folder = sft.run(config("sft.dropout=0.1", "sft.num_epochs=1"))
    assert json.loads((folder / "model" / "config.json").read_text())["attention_dropout"] == 0


# ---- reward models


@pytest.mark.parametrize("loss", ["bt_pairs", "plackett_luce", "rao_kupper", "davidson", "pick_best"])
def test_every_reward_loss_trains_and_the_tie_models_keep_what_they_learned_of_ties(config, run_dir, loss):
    folder = reward.run(config(f"reward.loss={loss}", "reward.num_epochs=1", "seed=3"), replace=True)
    metrics = load_manifest(folder)["metrics"]
    losses = [line["train/loss"] for line in read_metrics(folder) if "train/loss" in line]
    assert len(losses) == 4 and all(0 < value < 10 for value in losses)
    assert ("eta" in metrics) == (loss in ("rao_kupper", "davidson"))
    assert metrics.get("eta") != 0


def test_regularisers_of_the_reward_loss_are_part_of_it(config, run_dir):
    plain, pulled = (
        read_metrics(reward.run(config("reward.num_epochs=1", "seed=3", *options), replace=True))[0]["train/loss"]
        for options in ([], ["reward.l2_coef=1", "reward.center_coef=1"])
    )
    assert pulled > plain


# ---- PPO


def test_ppo_optimises_a_function_named_in_the_config_without_a_reward_artifact(config, run_dir):
    shutil.rmtree(run_dir / "reward")
    options = ["ppo.rewards=[{source: tiny_world:names_the_colour}]"]
    folder = ppo.run(config(*options), replace=True)
    assert [entry["role"] for entry in verify(folder)["inputs"]] == ["sft"]
    evaluate.run(config(*options), replace=True)
    figures = report_of(run_dir)["policies"]
    assert figures["ppo"]["score_mean"] == figures["ppo"]["gold_mean"]  # the same function in both places


def test_a_weighted_sum_of_rewards_is_that_sum(config, run_dir, tmp_path):
    sources = ["reward", "tiny_world:names_the_colour", "tiny_world:length"]

    def first_scores(*terms):
        rewards = ",".join(f"{{source: '{source}', weight: {weight}}}" for source, weight in terms)
        folder = ppo.run(config(f"ppo.rewards=[{rewards}]", "ppo.num_steps=2"), replace=True)
        return read_metrics(folder)[0]["eval/scores"]  # of the SFT policy, on the same prompts and seeds

    single = [first_scores((source, 1)) for source in sources]
    weights = [1.0, 2.0, -0.5]
    together = first_scores(*zip(sources, weights, strict=True))
    assert together == pytest.approx(sum(w * s for w, s in zip(weights, single, strict=True)), abs=1e-5)


@pytest.fixture
def other_reward(config, run_dir, tmp_path) -> Path:
    """A reward artifact from another SFT policy, with another tokenizer."""
    options = [f"run.dir={tmp_path}/other", "model.scratch.vocab_size=300"]
    sft.run(config(*options))
    return reward.run(config(*options))


def test_a_reward_model_with_another_tokenizer_is_refused_unless_it_is_allowed(
    tiny_command, other_reward, run_dir, tmp_path
):
    options = [f"inputs.reward={other_reward}", "run.force=true"]
    outcome = tiny_command("ppo", *options)
    ours, theirs = (load_manifest(path)["tokenizer_sha256"][:12] for path in (run_dir / "sft", other_reward))
    assert outcome.code == 3
    assert outcome.error == (
        f"tokenizer differs: reward has {theirs}, sft has {ours}; train it from this SFT artifact, or set "
        "ppo.allow_other_parent=true (texts are then tokenised anew)"
    )
    assert tiny_command("ppo", *options, "ppo.allow_other_parent=true").code == 0
    assert verify(run_dir / "ppo")["inputs"][1]["sha256"] == manifest_sha256(other_reward)
    assert tiny_command("evaluate", *options).code == 0


@pytest.mark.parametrize("micro_batch_size", [1, 8])
def test_the_size_of_micro_batches_changes_nothing_but_rounding(config, finished, run_dir, micro_batch_size):
    folder = ppo.run(config(f"ppo.micro_batch_size={micro_batch_size}"), replace=True)
    for new, old in zip(read_metrics(folder), read_metrics(finished / "ppo"), strict=True):
        for name in set(old) - {"time", "eps"}:
            if not name.startswith(("time/", "throughput/")):
                assert new[name] == pytest.approx(old[name], rel=1e-3, abs=1e-4), name


def test_gradient_checkpointing_changes_nothing_but_memory(config, finished, run_dir):
    folder = ppo.run(config("model.gradient_checkpointing=true"), replace=True)
    old, new = (load_file(path / "model" / "model.safetensors") for path in (finished / "ppo", folder))
    for name, value in old.items():
        torch.testing.assert_close(new[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        ["ppo.kl_control=adaptive"],
        ["ppo.running_score_norm=true", "ppo.score_clip=1", "ppo.missing_eos_penalty=1"],
        ["ppo.target_kl=1e-6", "ppo.dual_clip=3", "ppo.clip_range_high=0.3", "ppo.entropy_coef=0.01"],
        ["model.dtype=bfloat16"],
        ["model.attention=eager", "ppo.whiten_advantages=false", "rollout.temperature=0.7"],
    ],
    ids=lambda options: options[0].split("=")[0],
)
def test_each_option_of_ppo_runs(config, run_dir, options):
    assert verify(ppo.run(config(*options), replace=True))["metrics"]["best_kl"] <= 20


def test_a_small_kl_budget_exports_the_sft_policy(config, run_dir):
    folder = ppo.run(config("ppo.learning_rate=0.3", "ppo.kl_budget=0.01"), replace=True)
    old, new = (load_file(path / "model" / "model.safetensors") for path in (run_dir / "sft", folder))
    assert load_manifest(folder)["metrics"]["best_step"] == 0
    assert all(torch.equal(new[name], value) for name, value in old.items())


# ---- evaluation


def test_without_heldout_prompts_the_test_split_of_the_prompts_is_evaluated(tiny_command, run_dir):
    outcome = tiny_command("pipeline", "data.heldout=null")
    assert outcome.code == 0
    report = data_report(run_dir / "ppo")
    assert report_of(run_dir)["num_prompts"] == report["splits"]["prompts"]["test"] > 0


def test_several_samples_a_prompt_are_compared_by_prompt(config, run_dir):
    evaluate.run(config("evaluate.num_samples=3"), replace=True)
    report = report_of(run_dir)
    assert (report["num_prompts"], report["num_responses"]) == (16, 48)


def test_evaluate_refuses_an_sft_policy_or_a_reward_that_the_policy_did_not_come_from(
    tiny_command, other_reward, run_dir
):
    for role, path in (("sft", other_reward.parent / "sft"), ("reward", other_reward)):
        outcome = tiny_command("evaluate", f"inputs.{role}={path}", "run.force=true")
        assert outcome.code == 3 and f"inputs.{role}={path}" in outcome.error
    assert verify(run_dir / "evaluate")
