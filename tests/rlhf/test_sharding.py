"""Which ZeRO stage trains what."""

import pytest

from rlhf.config.composing import load_config
from rlhf.models.sharding import trained_sharding
from rlhf.preflight.memory import split_of


@pytest.mark.parametrize(
    ("adapter", "group", "stage"),
    [("none", "zero1", 1), ("none", "zero3", 3), ("lora", "zero1", 1), ("lora", "zero3", 2), ("lora", "none", 0)],
)
def test_an_adapter_trains_under_zero2_where_zero3_shares_out_the_trunk(adapter, group, stage):
    cfg = load_config([f"adapter={adapter}", f"deepspeed={group}"])
    assert trained_sharding(cfg).zero_stage == stage
    assert split_of(cfg).stage == stage  # what preflight reckons with
