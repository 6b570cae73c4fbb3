"""--help says what the comments in conf say."""

from dataclasses import fields, is_dataclass

import pytest
from omegaconf import OmegaConf

from rlhf.config.composing import load_config
from rlhf.config.files import groups, options, sections
from rlhf.config.help import KEYS, help_text, setting
from rlhf.config.schema import Config


def test_every_section_and_every_group_of_files_has_its_line():
    of_config = {field.name for field in fields(Config) if is_dataclass(field.type)}
    assert set(sections()) | set(groups()) == of_config | {"experiment"}
    text = help_text("stages.sft")
    for name, purpose in sections().items():
        assert f"\n  {name} " in text and f" {purpose}\n" in text
    for name, (_, purpose) in groups().items():
        assert f"\n  {name}=" in text and f" {purpose}: {', '.join(options(name))}\n" in text


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_shown_with_the_default_that_a_run_has_and_its_comment(key):
    value, comment = setting(key)
    default = OmegaConf.select(OmegaConf.structured(load_config()), key)
    assert OmegaConf.create(f"x: {value}").x == default
    assert f"  {key}={value} " in help_text("stages.ppo") and comment in help_text("stages.ppo")


def test_the_stage_is_described_by_its_own_first_line():
    assert help_text("stages.sft").startswith("Stage 1: fine-tunes a model on demonstrations.\n\npython -m stages.sft ")


def test_a_key_of_a_section_is_not_taken_from_another():
    assert setting("ppo.learning_rate")[1].startswith("policy, Adam")
    assert setting("reward.learning_rate")[0] == "7.0e-4"
