"""docs/config.md holds every key with the default that a run has, and is what its command makes now."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rlhf.config.composing import shipped_config
from rlhf.config.files import options, settings
from rlhf.config.keys import all_keys
from rlhf.config.page import allowed, page
from rlhf.config.schema import Config

PAGE = (Path(__file__).parents[1] / "docs" / "config.md").read_text(encoding="utf-8")
ROWS = {key: default for key, default in re.findall(r"^\| `([\w.]+)` \| `(.*?)` \| [^|]+ \| [^|]+", PAGE, re.MULTILINE)}


def test_the_page_is_the_one_that_its_command_makes():
    assert page() == PAGE, "run: python -m rlhf.config.page > docs/config.md"


def test_each_key_has_a_row_with_the_default_that_a_run_has():
    keys = all_keys(Config)
    sections = {key.rpartition(".")[0] for key in keys}
    terms = {key for key in keys if key.startswith("ppo.rewards.")}  # a list: its items have a table of their own
    assert set(ROWS) == set(keys) - sections - terms | {"ppo.rewards"}
    plain = OmegaConf.to_container(OmegaConf.structured(shipped_config()), enum_to_str=True)
    defaults = OmegaConf.create(plain)
    for key, written in ROWS.items():
        if "${" not in written and key != "ppo.rewards":
            assert OmegaConf.create(f"x: {written}").x == OmegaConf.select(defaults, key), key


def test_each_file_of_each_group_is_described():
    for group in ("model", "adapter", "data", "deepspeed", "collect", "experiment"):
        for option in options(group):
            assert f"\n**`{group}={option}`**. " in PAGE


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("ppo.gamma", "number; between 0 and 1"),
        ("ppo.dual_clip", "number, null; > 1"),
        ("reward.label_smoothing", "number; >= 0; < 0.5"),
        ("reward.norm_samples", "whole number; >= 2"),
        ("collect.port", "whole number; a port, 1 to 65535"),
        ("run.resume", "`auto`, `never`"),
        ("bench.seeds", "list of: whole number"),
        ("data.heldout", "source, list of sources, null"),
        ("model.path", "text, null"),
    ],
)
def test_the_values_of_a_key_are_those_that_the_config_takes(key, values):
    assert allowed(key) == values


def test_a_key_is_read_with_its_value_as_written_and_the_comment_beside_it_or_above_it():
    own = settings("config.yaml")
    assert own["reward.learning_rate"].value == "7.0e-4"
    assert own["bench.seeds"].value == "[0, 1, 2]"
    assert own["ppo"].value == "" and own["ppo"].comment.startswith("stage 3")
    assert own["ppo.rewards"].value == "[{source: reward, weight: 1.0}]"
    assert "also scale and clip" in own["ppo.rewards"].comment  # of an item of the list
    assert "seed" in own and "ppo.seed" not in own
