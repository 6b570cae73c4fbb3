"""Adam on float32 copies of bfloat16 weights."""

import copy

import pytest
import torch

from rlhf.engines.adam import MasterAdamW, load_tensors, tensors


def walk(optimizer, parameter, num_steps):
    """Steps in a constant direction."""
    for _ in range(num_steps):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()


@pytest.fixture
def weights():
    return torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 0.02


def test_small_steps_add_up_in_bfloat16_as_they_do_in_float32(weights):
    """The same walk in float32 is the expected value; torch's own AdamW makes next to nothing of it in bfloat16."""
    ends = {}
    for name, kind, dtype in (
        ("float32", torch.optim.AdamW, torch.float32),
        ("master", MasterAdamW, torch.bfloat16),
        ("plain", torch.optim.AdamW, torch.bfloat16),
    ):
        parameter = torch.nn.Parameter(weights.to(dtype).clone())
        walk(kind([parameter], lr=1e-6, weight_decay=0.0), parameter, 1000)
        ends[name] = (parameter.detach().float() - weights.bfloat16().float()).mean().item()
    assert ends["float32"] == pytest.approx(-1e-3, rel=0.01)
    assert ends["master"] == pytest.approx(ends["float32"], rel=0.05)
    assert abs(ends["plain"]) < 0.2 * abs(ends["float32"])


def test_float32_weights_take_the_steps_of_torchs_adamw_to_the_last_bit(weights):
    ends = []
    for kind in (torch.optim.AdamW, MasterAdamW):
        parameter = torch.nn.Parameter(weights.clone())
        walk(kind([parameter], lr=1e-3), parameter, 5)
        ends.append(parameter.detach())
    assert ends[0].equal(ends[1])


def test_a_restored_optimizer_goes_on_to_the_last_bit(weights):
    straight = torch.nn.Parameter(weights.bfloat16())
    optimizer = MasterAdamW([straight], lr=1e-5)
    walk(optimizer, straight, 3)
    saved = copy.deepcopy(tensors(optimizer, {"weight": straight}))
    resumed = torch.nn.Parameter(torch.zeros_like(straight))
    walk(optimizer, straight, 3)
    other = MasterAdamW([resumed], lr=1e-5)
    load_tensors(other, {"weight": resumed}, saved)
    walk(other, resumed, 3)
    assert other.state[resumed]["master"].equal(optimizer.state[straight]["master"])
    assert resumed.equal(straight)
