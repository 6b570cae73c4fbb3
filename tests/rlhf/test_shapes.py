"""A tensor of a wrong shape is told, by name, where a number is made: broadcasting would give another number."""

import pytest
import torch

from rlhf.advantages import gae, kl_penalised_rewards
from rlhf.kl import k1, k2, k3
from rlhf.losses import policy_loss, value_loss
from rlhf.ops import entropy, masked_mean, masked_var, position_ids, token_logprobs, whiten
from rlhf.ppo.critic import explained_variance
from rlhf.shapes import check_shapes

B, R, V = 2, 3, 5
X, MASK = torch.zeros(B, R), torch.ones(B, R).bool()

CALLS = {
    kl_penalised_rewards: {"scores": X[:, 0], "logprobs": X, "ref_logprobs": X, "mask": MASK, "kl_coef": 0.1},
    gae: {"rewards": X, "values": X, "mask": MASK, "gamma": 1.0, "lam": 0.9, "final_values": X[:, 0]},
    policy_loss: {"logprobs": X, "old_logprobs": X, "advantages": X, "mask": MASK, "clip_range": 0.2},
    value_loss: {"values": X, "old_values": X, "returns": X, "mask": MASK, "clip_range": 0.2},
    token_logprobs: {"logits": torch.zeros(B, R, V), "ids": torch.zeros(B, R).long()},
    entropy: {"logits": torch.zeros(B, R, V)},
    masked_mean: {"x": X, "mask": MASK},
    masked_var: {"x": X, "mask": MASK},
    whiten: {"x": X, "mask": MASK},
    position_ids: {"mask": MASK},
    explained_variance: {"values": X, "returns": X, "mask": MASK},
    k1: {"logprobs": X, "ref_logprobs": X},
    k2: {"logprobs": X, "ref_logprobs": X},
    k3: {"logprobs": X, "ref_logprobs": X},
}
ALONE = (entropy, position_ids)  # have but one tensor
TENSORS = [(call, name) for call, given in CALLS.items() for name in given if isinstance(given[name], torch.Tensor)]


def named(value):
    return value if isinstance(value, str) else value.__name__


@pytest.mark.parametrize("call, name", TENSORS, ids=named)
def test_a_tensor_of_one_axis_less_is_told(call, name):
    """[R] in place of [B, R] would broadcast over the responses, and one score in place of [B] over all of them."""
    call(**CALLS[call])
    with pytest.raises(AssertionError, match=r"^must be \[[BRTV. ]+\]: \w+ \("):
        call(**{**CALLS[call], name: CALLS[call][name][0]})


@pytest.mark.parametrize("call, name", [pair for pair in TENSORS if pair[0] not in ALONE], ids=named)
def test_a_tensor_of_one_row_is_told_beside_those_of_two(call, name):
    with pytest.raises(AssertionError, match=r"^must be \[[BR. ]+\]: .*\(2\b.*\(1\b|: .*\(1\b.*\(2\b"):
        call(**{**CALLS[call], name: CALLS[call][name][:1]})


def test_an_error_says_what_the_shapes_are_and_must_be():
    with pytest.raises(AssertionError, match=r"^must be \[B R\]: x \(2, 3\), mask \(2, 1\)$"):
        check_shapes("B R", x=X, mask=MASK[:, :1])
    with pytest.raises(AssertionError, match=r"^must be \[B\]: scores \(2, 3\)$"):
        check_shapes("B", scores=X)


def test_shapes_that_fit_are_told_nothing():
    check_shapes("B R", x=X, mask=MASK)
    check_shapes("...", one=torch.tensor(1.0), other=torch.tensor(2.0))
