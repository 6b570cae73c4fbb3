"""LoRA and QLoRA from SFT to the report, on the tiny world's own base model."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_world
import torch
from safetensors.torch import load_file, save_file

from reward.scorer import load_scorer
from rlhf.artifacts.manifest import MANIFEST, load_manifest, render, verify
from rlhf.config.schema import Config
from rlhf.hashing import weights_fingerprint
from rlhf.models.trunk import PolicyView, ScalarView
from rlhf.run.stage import Stage
from stages import evaluate, ppo, reward, sft
from stages.models.ppo import PpoModels, all_inputs, load_models

PROMPTS, ANSWERS = ["cat is red?", "dog is blue?"], ["red.", "no."]
IDS = torch.tensor([[3, 40, 50, 4, 60, 61]])


@pytest.fixture(scope="session")
def base(finished) -> Path:
    """A whole model to stand on: that of the tiny world's SFT artifact."""
    return finished / "sft" / "model"


def overrides(run_dir, world, base, kind="lora") -> list[str]:
    small = ["adapter.rank=4", "adapter.alpha=8", "ppo.kl_budget=1e9"]
    return [*tiny_world.tiny_overrides(run_dir, world), f"model.path={base}", f"adapter={kind}", *small]


@pytest.fixture(scope="session")
def lora(world, base, tmp_path_factory) -> Path:
    """The folder of a finished LoRA run. Not to be changed."""
    run_dir = tmp_path_factory.mktemp("lora") / "run"
    config = tiny_world.composed(*overrides(run_dir, world, base))
    for stage in (sft, reward, ppo, evaluate):
        stage.run(config)
    return run_dir


def models_of(config: Config) -> PpoModels:
    return load_models(config, Stage(ppo.needs(config), config, all_inputs(config)))


def says(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_the_artifact_is_an_adapter_that_names_its_base_and_holds_no_copy_of_it(lora, base, stage):
    manifest = verify(lora / stage)
    assert manifest["base_model"]["fingerprint"] == weights_fingerprint(base)
    assert (lora / stage / manifest["adapter"]["base"]).resolve() == base.resolve()
    assert {key: manifest["adapter"][key] for key in ("kind", "rank", "alpha")} == {
        "kind": "lora",
        "rank": 4,
        "alpha": 8,
    }
    weights = {path.name for path in (lora / stage / "model").glob("*.safetensors")}
    assert weights == {"adapter_model.safetensors"} | ({"head.safetensors"} if stage == "reward" else set())


def test_adapters_learn_in_every_stage(lora):
    """lora_B is zero in a fresh adapter; the reward's and the policy's start as copies of the SFT adapter."""
    folders = [lora / stage / "model" / "adapter_model.safetensors" for stage in ("sft", "reward", "ppo")]
    first, second, third = (load_file(path) for path in folders)
    assert all(value.abs().max() > 0 for name, value in first.items() if "lora_B" in name)
    for later in (second, third):
        assert later.keys() == first.keys()
    assert any(not torch.equal(second[name], first[name]) for name in first)


def test_policy_reference_critic_and_reward_share_one_copy_of_the_weights(lora, world, base):
    models = models_of(tiny_world.composed(*overrides(lora, world, base)))
    assert isinstance(models.policy, PolicyView) and isinstance(models.critic, ScalarView)
    assert models.policy.trunk is models.ref_policy.trunk is models.critic.trunk
    assert set(models.policy.trunk.configs) == {"policy", "reference", "critic", "reward"}


def test_the_policy_starts_as_the_reference_and_the_critic_as_the_reward(lora, world, base):
    models = models_of(tiny_world.composed(*overrides(lora, world, base)))
    assert torch.equal(says(models.policy), says(models.ref_policy))
    norm = load_manifest(lora / "reward")["reward_norm"]
    assert (models.critic.mean, models.critic.std) == (norm["mean"], norm["std"])
    assert any(parameter.abs().max() > 0 for parameter in models.critic.head.parameters())


def test_the_reward_on_the_trunk_scores_as_its_artifact_on_a_base_of_its_own(lora, world, base):
    models = models_of(tiny_world.composed(*overrides(lora, world, base)))
    expected = load_scorer(lora / "reward", normalised=True)(PROMPTS, ANSWERS)
    assert torch.allclose(models.score(PROMPTS, ANSWERS, [{} for _ in ANSWERS]).total, expected, atol=1e-5)
    assert (expected[0] - expected[1]).abs() > 1e-3


def test_a_whole_reward_model_works_beside_a_lora_policy(finished, world, base, tmp_path):
    inputs = [f"inputs.sft={finished / 'sft'}", f"inputs.reward={finished / 'reward'}"]
    config = tiny_world.composed(*overrides(tmp_path / "run", world, base), *inputs)
    models = models_of(config)
    assert torch.allclose(
        models.score(PROMPTS, ANSWERS, [{} for _ in ANSWERS]).total,
        load_scorer(finished / "reward", normalised=True)(PROMPTS, ANSWERS),
        atol=1e-5,
    )
    assert torch.equal(says(models.policy), says(models.ref_policy))  # a fresh adapter on the whole SFT model
    assert not models.critic(IDS, torch.ones_like(IDS).bool()).any()  # a zero head
    folder = ppo.run(config)
    assert load_manifest(folder)["base_model"] == {"name": "sft", "fingerprint": weights_fingerprint(base)}


def test_a_lora_reward_works_beside_a_whole_policy(finished, world, tmp_path):
    settings = [*tiny_world.tiny_overrides(tmp_path / "run", world), f"inputs.sft={finished / 'sft'}"]
    reward.run(tiny_world.composed(*settings, "adapter=lora"))
    assert load_manifest(ppo.run(tiny_world.composed(*settings)))["adapter"] is None


def test_four_bits_from_demonstrations_to_the_report(world, base, tmp_path):
    pytest.importorskip("bitsandbytes", reason="the extra [quant] is not installed")
    config = tiny_world.composed(*overrides(tmp_path / "run", world, base, "qlora"))
    for stage in (sft, reward, ppo, evaluate):
        folder = stage.run(config)
    assert json.loads((folder / "report.json").read_text())["policies"]["ppo"]["perplexity"] > 0


def test_gradient_checkpointing_changes_no_weight(lora, world, base, tmp_path):
    inputs = [f"inputs.sft={lora / 'sft'}", f"inputs.reward={lora / 'reward'}"]
    config = tiny_world.composed(
        *overrides(tmp_path / "run", world, base), *inputs, "model.gradient_checkpointing=true"
    )
    plain, checkpointed = (
        load_file(folder / "model" / "adapter_model.safetensors") for folder in (lora / "ppo", ppo.run(config))
    )
    assert all(torch.allclose(plain[name], checkpointed[name], atol=1e-5) for name in plain)


# ---- what is refused


@pytest.fixture
def lora_command(command, world, base, tmp_path):
    return lambda stage, *more: command(stage, *overrides(tmp_path / "run", world, base), *more)


def test_an_adapter_on_random_weights_is_refused(tiny_command):
    outcome = tiny_command("sft", "adapter=lora")
    assert outcome.code == 2
    assert "model.path=null begins with random weights" in outcome.error
    assert "model.path=outputs/base/sft/model" in outcome.error


def test_whole_models_do_not_go_on_from_an_adapter(lora, lora_command):
    for stage in ("reward", "ppo"):
        outcome = lora_command(stage, f"inputs.sft={lora / 'sft'}", f"inputs.reward={lora / 'reward'}", "adapter=none")
        assert outcome.code == 3 and "the sft artifact is an adapter (lora), and adapter=none" in outcome.error
        assert "python -m stages.export" in outcome.error


def test_an_adapter_of_other_precision_is_refused(lora, lora_command):
    outcome = lora_command("reward", f"inputs.sft={lora / 'sft'}", "adapter=qlora")
    assert outcome.code == 3 and "adapter is lora, this run's is qlora; use adapter=lora" in outcome.error


def test_another_rank_than_the_sft_adapters_is_refused(lora, lora_command):
    outcome = lora_command("reward", f"inputs.sft={lora / 'sft'}", "adapter.rank=8")
    assert outcome.code == 2 and outcome.error.endswith("has 4; set adapter.rank=4")


def test_a_changed_base_is_refused_with_both_fingerprints(lora, world, base, lora_command, tmp_path):
    own = Path(shutil.copytree(base, tmp_path / "base"))
    was = weights_fingerprint(own)
    assert lora_command("sft", f"model.path={own}").code == 0
    weights = load_file(own / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, own / "model.safetensors", {"format": "pt"})
    outcome = lora_command("reward", f"model.path={own}")
    assert outcome.code == 3
    assert was[:12] in outcome.error and weights_fingerprint(own)[:12] in outcome.error


@pytest.mark.parametrize(
    "change, rule",
    [
        ("rank=0", "must be > 0"),
        ("alpha=-1", "must be > 0"),
        ("dropout=1.0", "must be < 1"),
        ("targets=''", "all-linear"),
    ],
)
def test_settings_that_make_no_adapter_are_refused(lora_command, change, rule):
    outcome = lora_command("sft", f"adapter.{change}")
    assert outcome.code == 2 and f"adapter.{change.split('=')[0]}" in outcome.error and rule in outcome.error


def test_four_bits_under_zero_3_are_refused(lora_command):
    outcome = lora_command("sft", "adapter.kind=qlora", "deepspeed=zero3")
    assert outcome.code == 2 and "use deepspeed=zero2" in outcome.error


def test_a_model_that_was_trusted_to_run_its_code_must_be_trusted_again(run_dir, tiny_command):
    """The artifact's config says so; nothing in its files need to."""
    manifest = json.loads((run_dir / "sft" / MANIFEST).read_text())
    manifest["config"]["model.trust_remote_code"] = True
    (run_dir / "sft" / MANIFEST).write_text(render(manifest))
    outcome = tiny_command("reward", "run.force=true")
    assert outcome.code == 2
    assert "was trained with model.trust_remote_code=true" in outcome.error
