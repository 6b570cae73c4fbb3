"""A finished PPO policy that is trained further: it starts where it was, and KL is still that from the SFT policy."""

import json
import shutil
from pathlib import Path

import pytest

from rlhf.artifacts.lineage import ancestry
from rlhf.artifacts.manifest import load_manifest, manifest_sha256
from rlhf.errors import ArtifactError, UserError
from stages import evaluate, ppo, sft

STEPS = ["ppo.num_steps=2", "ppo.eval_steps=2"]


@pytest.fixture
def further(finished, tmp_path, config):
    """further("ppo.gamma=0.9") -> the folder of a PPO run that goes on from the finished one, in a run of its own."""
    roles = [f"inputs.{role}={finished}/{role}" for role in ("sft", "reward")]
    return lambda *overrides: ppo.run(config(*roles, f"ppo.start_from={finished}/ppo", *STEPS, *overrides))


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_it_starts_from_the_policy_that_was_exported_and_keeps_the_sft_policy_as_reference(further, finished, config):
    folder = further()
    earlier = load_manifest(finished / "ppo")["metrics"]
    (start,) = [line for line in metrics(finished / "ppo") if line["step"] == earlier["best_step"]]
    first, one, two = metrics(folder)
    assert earlier["best_step"] > 0 and first["eval/kl"] > 0.05
    for name in ("eval/scores", "eval/kl", "eval/length_mean", "eval/win_rate"):  # the same policy, prompts and seeds
        assert first[name] == pytest.approx(start[name], abs=1e-5)
    assert abs(one["objective/kl"]) > 0.01  # no more the SFT policy, before any update of the policy
    assert two["val/ratio"] == pytest.approx(1, abs=0.5)  # that it is 1 before the update ends the run else
    assert config().ppo.critic_warmup_steps == 1  # step 1 left the policy as it was


def test_its_lineage_names_the_policy_that_it_started_from_and_it_can_be_evaluated(further, finished, config, tmp_path):
    folder = further()
    inputs = {entry["role"]: entry["sha256"] for entry in load_manifest(folder)["inputs"]}
    assert inputs["start_from"] == manifest_sha256(finished / "ppo") and len(inputs) == 3
    assert [path.name for path in ancestry(folder)].count("ppo") == 2
    roles = [f"inputs.{role}={finished}/{role}" for role in ("sft", "reward")]
    assert (evaluate.run(config(*roles, *STEPS, f"ppo.start_from={finished}/ppo")) / "report.html").exists()


def test_where_nothing_was_better_the_message_names_what_it_started_from(further, finished, capsys):
    further("ppo.kl_budget=5", "ppo.learning_rate=1")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ppo: done")]
    assert f"the artifact holds the policy of {finished}/ppo itself" in line


def test_a_policy_that_is_beyond_the_budget_already_is_refused(further):
    with pytest.raises(
        UserError, match=r"ppo.start_from=.* already beyond ppo.kl_budget=0.01 nats .* raise that budget"
    ):
        further("ppo.kl_budget=0.01")


def test_another_kind_of_artifact_another_sft_policy_and_the_own_folder_are_refused(
    further, finished, config, tmp_path
):
    with pytest.raises(ArtifactError, match=r"is an artifact of stages.sft, and one of stages.ppo is needed"):
        further(f"ppo.start_from={finished}/sft")
    with pytest.raises(ArtifactError, match=r"was trained with adapter=none; use adapter=none"):
        further("adapter=lora")
    other = sft.run(config(f"run.dir={tmp_path}/other", "seed=5", "sft.num_epochs=1"))
    with pytest.raises(ArtifactError, match=r"came from sft .*: KL is measured from one SFT policy throughout"):
        further(f"inputs.sft={other}", "ppo.rewards=[{source: tiny_world:length}]")
    shutil.copytree(finished, tmp_path / "copy")
    with pytest.raises(
        UserError, match=r"ppo.start_from=.* is the folder that this run writes; choose another run.dir"
    ):
        ppo.run(config(f"run.dir={tmp_path}/copy", f"ppo.start_from={tmp_path}/copy/ppo"))


def test_an_adapter_goes_on_as_an_adapter_beside_its_reference(finished, config, tmp_path):
    """Both where the SFT artifact is a whole model, so that the base is the reference, and where it is an adapter."""
    base = [f"run.dir={tmp_path}/lora", "adapter=lora", f"model.path={finished}/sft/model"]
    sft.run(config(*base))
    for name, origin in (("whole", finished), ("adapter", tmp_path / "lora")):
        options = ["adapter=lora", f"inputs.sft={origin}/sft", "ppo.rewards=[{source: tiny_world:names_the_colour}]"]
        first = ppo.run(config(f"run.dir={tmp_path}/{name}1", *options, "ppo.kl_budget=1000"))
        lines, best = metrics(first), load_manifest(first)["metrics"]["best_step"]
        (start,) = [line for line in lines if line["step"] == best]
        second = ppo.run(config(f"run.dir={tmp_path}/{name}2", *options, *STEPS, f"ppo.start_from={first}"))
        assert metrics(second)[0]["eval/kl"] == pytest.approx(start["eval/kl"], abs=1e-4)
        assert load_manifest(second)["base_model"] == load_manifest(first)["base_model"]
