"""A model is tried before it trains: one of each kind of model that would train on wrong numbers."""

from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaForCausalLM

from rlhf.errors import UserError
from rlhf.training.trial import require_usable


class IgnoresTheMask(LlamaForCausalLM):
    def forward(self, *args, attention_mask, **kwargs):
        return super().forward(*args, attention_mask=torch.ones_like(attention_mask), **kwargs)


class IsRandomInTraining(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + torch.randn_like(output.logits) * self.training
        return output


class ForgetsItsCache(LlamaForCausalLM):
    def forward(self, *args, past_key_values=None, **kwargs):
        return super().forward(*args, **kwargs)


class TakesOtherInputs(LlamaForCausalLM):
    def forward(self, tokens):
        return SimpleNamespace(logits=tokens)


def test_a_model_that_keeps_all_rules_is_left_as_it_was(policy):
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    random = torch.get_rng_state()
    require_usable(policy)
    assert not policy.training and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


@pytest.mark.parametrize(
    "kind, problem",
    [
        (IgnoresTheMask, "says something else of a text that has padding before it"),
        (IsRandomInTraining, "says something else in training, though its dropout is 0"),
        (ForgetsItsCache, "draws tokens from another distribution"),
        (TakesOtherInputs, "cannot make the forwards that PPO needs .TypeError.*choose another model"),
    ],
)
def test_a_model_that_would_train_on_wrong_numbers_is_refused_with_the_reason(policy, kind, problem):
    policy.__class__ = kind
    with pytest.raises(UserError, match=f"{kind.__name__} {problem}"):
        require_usable(policy)
