"""The exponential moving average of the policy: what it holds, and that it is what is evaluated and exported."""

import pytest
import torch

from rlhf.engines.engine import TorchEngine
from rlhf.models.policies import response_logprobs
from rlhf.ppo.ema import Ema


def one_weight(value, dtype=torch.float32):
    module = torch.nn.Linear(1, 1, bias=False, dtype=dtype)
    torch.nn.init.constant_(module.weight, value)
    return TorchEngine("policy", module, learning_rate=0.1, adam_eps=1e-5, max_grad_norm=1.0)


def set_weight(engine, value):
    torch.nn.init.constant_(engine.module.weight, value)


def test_an_average_by_hand():
    engine = one_weight(1.0)
    ema = Ema(0.75, engine)
    assert ema.average["weight"].item() == 1.0
    set_weight(engine, 5.0)
    ema.update(engine)
    assert ema.average["weight"].item() == 2.0  # 0.75 * 1 + 0.25 * 5
    set_weight(engine, -2.0)
    ema.update(engine)
    assert ema.average["weight"].item() == 1.0  # 0.75 * 2 - 0.25 * 2


def test_an_average_of_bfloat16_weights_keeps_what_bfloat16_cannot():
    engine = one_weight(1.0, torch.bfloat16)
    ema = Ema(0.75, engine)
    set_weight(engine, 1.0078125)  # the next number of bfloat16
    ema.update(engine)
    assert ema.average["weight"].item() == 1.001953125  # a quarter of the way


def test_an_average_is_no_view_of_the_policy_and_gives_copies():
    engine = one_weight(1.0)
    ema = Ema(0.5, engine)
    set_weight(engine, 9.0)
    given = ema.weights()
    given["weight"] += 1
    assert ema.average["weight"].item() == 1.0


def test_inside_using_the_module_has_other_weights_and_afterwards_its_own_to_the_bit(make_policy, make_engine):
    engine, ids = make_engine("policy", make_policy(0)), torch.arange(3, 20).unsqueeze(0)
    before = engine.weights()

    def logprobs(policy):
        return response_logprobs(policy, ids, torch.ones_like(ids).bool(), 8)[0]

    with pytest.raises(ValueError, match="stopped"), engine.using(dict(make_policy(3).named_parameters())):
        assert torch.equal(logprobs(engine.module), logprobs(make_policy(3)))
        raise ValueError("stopped")
    after = engine.weights()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_average_is_what_is_shown_and_the_policy_where_there_is_none(make_learner, make_options, make_policy):
    for decay in (0.5, None):
        learner = make_learner(make_options(ema_decay=decay))
        with torch.no_grad():
            for parameter in learner.policy.parameters.values():
                parameter.zero_()
        with learner.shown() as shown:
            inside = learner.policy.weights()
            expected = dict(make_policy(0).named_parameters()) if decay else {name: 0 for name in inside}
            assert all((inside[name] == expected[name]).all() for name in inside)
            assert all(torch.equal(shown.weights()[name], inside[name]) for name in inside)
