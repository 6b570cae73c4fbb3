"""Demonstrations mixed into PPO's updates: which ones, in what order, with what gradient."""

import pytest
import torch

from rlhf.config.schema import LongPrompts
from rlhf.data.load import Demonstration
from rlhf.data.report import DataReport
from rlhf.ppo.ptx import PtxMix, ptx_examples

USER = {"role": "user", "content": "what is the time"}


def example(context, answer):
    return {"input_ids": context + answer, "labels": [-100] * len(context) + answer}


EXAMPLES = [
    example([3, 40, 4], [60, 61, 1]),
    example([3, 50, 51, 52, 4], [70, 1]),
    example([3, 4], [80, 81, 82, 83, 1]),
    {"input_ids": [90, 91, 92, 1], "labels": [90, 91, 92, 1]},  # plain text: its first token has no prediction
]
NUM_TOKENS = 3 + 2 + 5 + 3


@pytest.fixture
def make_ptx():
    def make(examples=EXAMPLES, coef=2.0, batch_size=4, micro_batch_size=2, seed=0, pad_id=0):
        return PtxMix(examples, coef, batch_size, micro_batch_size, seed, pad_id)

    return make


def loss_of_bare_sequences(policy):
    """The mean over all learned tokens, from one sequence at a time."""
    total = 0
    for item in EXAMPLES:
        logprobs = policy(torch.tensor([item["input_ids"]])).logits[0].log_softmax(-1)
        total -= sum(logprobs[t - 1, label] for t, label in enumerate(item["labels"]) if label >= 0 and t > 0)
    return total / NUM_TOKENS


@pytest.mark.parametrize("micro_batch_size", [1, 3, 4])
@pytest.mark.parametrize("pad_id", [0, 1])
def test_the_loss_and_its_gradient_are_those_of_bare_sequences(
    make_ptx, make_engine, make_policy, micro_batch_size, pad_id
):
    expected = make_policy(0)
    loss = loss_of_bare_sequences(expected)
    loss.backward()
    engine = make_engine("policy", make_policy(0))
    parts = list(make_ptx(micro_batch_size=micro_batch_size, pad_id=pad_id).losses(engine, 0))
    sum(parts).backward()
    assert sum(parts).item() == pytest.approx(loss.item(), rel=1e-5)
    for found, wanted in zip(engine.module.parameters(), expected.parameters(), strict=True):
        assert (found.grad - wanted.grad).norm() <= 1e-4 * wanted.grad.norm() + 1e-7


def test_each_demonstration_comes_once_an_epoch_in_an_order_of_seed_and_step_alone(make_ptx):
    many = [example([3], [i, 1]) for i in range(10, 20)]
    ptx = make_ptx(many, batch_size=4)
    order = [item["input_ids"][1] for number in range(5) for item in ptx.minibatch(number)]  # 20 places: two epochs
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10, 20))
    assert order[:10] != order[10:]
    assert make_ptx(many).minibatch(3) == ptx.minibatch(3)  # whatever was asked before
    assert make_ptx(many, seed=1).minibatch(3) != ptx.minibatch(3)


def test_answers_are_learned_and_of_plain_text_everything(tokenizer):
    dialogue = Demonstration((USER, {"role": "assistant", "content": "yes"}), None, "a", "d.jsonl:1")
    text = Demonstration((), "hello world", "b", "d.jsonl:2")

    class Limits:
        max_prompt_tokens, max_response_tokens, long_prompts = 50, 20, LongPrompts.error

    examples = ptx_examples(tokenizer, [dialogue, text], Limits, DataReport())
    learned = [tokenizer.decode([i for i in item["labels"] if i >= 0]) for item in examples]
    assert learned == ["hello world" + tokenizer.eos_token, "yes" + tokenizer.eos_token]
