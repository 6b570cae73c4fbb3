"""docs/from_trl.md: every field of theirs has a key of ours, with the value that it has, or a reason why not."""

import dataclasses
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rlhf.config.composing import load_config
from rlhf.config.keys import all_keys
from rlhf.config.schema import Config

PAGE = (Path(__file__).parents[1] / "docs" / "from_trl.md").read_text(encoding="utf-8")

# Of packages that are not installed: PPOConfig of TRL 1.12.0, the last one, and RLHFArguments of LLaMA-Factory 0.9.5.
LAST_PPO_CONFIG = re.findall(
    r"\w+",
    """
learning_rate dataset_num_proc num_mini_batches total_episodes local_rollout_forward_batch_size num_sample_generations
response_length stop_token stop_token_id temperature missing_eos_penalty sft_model_path world_size num_total_batches
micro_batch_size local_batch_size batch_size local_mini_batch_size mini_batch_size push_to_hub reward_model_path
model_adapter_name ref_adapter_name num_ppo_epochs whiten_rewards kl_coef kl_estimator cliprange vf_coef cliprange_value
gamma lam ds3_gather_for_generation
""",
)
LLAMA_FACTORY = re.findall(
    r"\w+",
    """
ppo_buffer_size ppo_epochs ppo_score_norm ppo_target ppo_whiten_rewards ref_model ref_model_adapters
ref_model_quantization_bit reward_model reward_model_adapters reward_model_quantization_bit reward_model_type
""",
)


def rows(text=PAGE):
    """(their field, its default, our key, its value, what to know) of each row that begins with a name in backticks."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def part(title):
    """What stands under a heading."""
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def fields_in(text):
    """The names in the first column of its tables."""
    return {name for row in rows(text) for name in re.findall(r"`(\w+)`", row[0])}


def test_no_field_of_trls_last_ppo_config_is_missing():
    assert set(LAST_PPO_CONFIG) <= fields_in(part("TRL 1.12.0: PPOConfig"))


def test_no_field_of_the_installed_reward_config_is_missing_and_its_defaults_are_right():
    from trl import RewardConfig
    from trl.trainer.base_config import _BaseConfig

    own = {name for kind in (RewardConfig, _BaseConfig) for name in vars(kind)["__annotations__"] if name[0] != "_"}
    assert own == fields_in(part("TRL 1.16: RewardConfig"))
    defaults = {field.name: field.default for field in dataclasses.fields(RewardConfig)}
    for names, default, *_ in rows(part("TRL 1.16: RewardConfig")):
        written = re.findall(r"`([^`]+)`", default)
        for i, name in enumerate(re.findall(r"`(\w+)`", names)):
            assert str(defaults[name]) == str(OmegaConf.create(f"x: {written[min(i, len(written) - 1)]}").x), name


def test_no_argument_of_llama_factory_for_ppo_is_missing():
    assert set(LLAMA_FACTORY) <= fields_in(part("TRL up to 0.11, and LLaMA-Factory"))


def test_each_row_names_a_key_that_exists_or_says_why_there_is_none():
    assert len(rows()) > 80
    keys = set(all_keys(Config))
    for field, _, key, _, told in rows():
        assert told if key == "none" else key.strip("`") in keys, field


def test_each_value_is_that_of_the_experiment_for_pretrained_models():
    data = ["data.demonstrations=my/a.jsonl", "data.rankings=my/b.jsonl", "data.prompts=my/c.jsonl"]
    config = load_config(["experiment=pretrained", *data])
    plain = OmegaConf.create(OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True))
    for field, _, key, value, _ in rows():
        if value:
            assert OmegaConf.create(f"x: {value.strip('`')}").x == OmegaConf.select(plain, key.strip("`")), field


def test_the_rule_of_the_example_scores_as_the_old_reward_model(make_scalar, tokenizer, tmp_path, monkeypatch):
    from reward.foreign import load_foreign
    from reward.rules import load_rule

    folder = tmp_path / "models" / "old_reward"
    make_scalar(3).model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "my_rules_of_trl.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    scores = load_rule("my_rules_of_trl:old_reward")(["hi"], ["yes"])
    assert scores == pytest.approx(load_foreign(folder)(["hi"], ["yes"]).tolist())
