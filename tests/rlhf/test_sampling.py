"""Responses come from softmax(logits / temperature) and nothing else, and depend on seed, step and index alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from rlhf.errors import NumericsError
from rlhf.models.policies import response_logprobs
from rlhf.rollout.decoder import inverse_cdf, sample
from rlhf.rollout.draws import Draws
from rlhf.rollout.responses import Responses
from rlhf.rollout.sampling import Sampler

EOS, PAD = 1, 0
PROMPTS = [[3, 40, 4], [3, 50, 51, 52, 53, 4], [3, 4], [3, 60, 61, 62, 4]]


def even(count):
    """The midpoints of `count` equal parts of [0, 1): draws whose counts are the probabilities, without luck."""
    return (torch.arange(count, dtype=torch.float64).unsqueeze(-1) + 0.5) / count


def probabilities(policy, ids, temperature):
    """Of the token after ids, from one forward of the bare sequence, in float64 NumPy."""
    logits = policy(torch.tensor([ids])).logits[0, -1].detach().double().numpy() / temperature
    p = np.exp(logits - logits.max())
    return p / p.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_sampled_distribution_is_the_softmax_of_the_logits_over_the_temperature(policy, temperature):
    count = 4000
    responses = sample(policy, [PROMPTS[0]] * count, even(count), temperature, [EOS], PAD)
    shares = np.bincount(responses.ids[:, 0].numpy(), minlength=policy.config.vocab_size) / count
    # An interval of length p holds p * count midpoints, give or take one.
    assert np.abs(shares - probabilities(policy, PROMPTS[0], temperature)).max() <= 1.01 / count


def assert_tokens_follow(policy, temperature, stop_ids):
    """Each sampled token again, from its uniform number and one forward of the bare tokens before it."""
    uniform = Draws(0, "rollout", 0, range(len(PROMPTS))).uniforms(10)
    responses = sample(policy, PROMPTS, uniform, temperature, stop_ids, PAD)
    for prompt, response, numbers in zip(PROMPTS, responses.rows(), uniform.tolist(), strict=True):
        for t, token in enumerate(response):
            edges = [0.0, *probabilities(policy, prompt + response[:t], temperature).cumsum()]
            assert edges[token] - 1e-5 <= numbers[t] <= edges[token + 1] + 1e-5


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_every_sampled_token_follows_from_its_uniform_number_and_the_tokens_before_it(policy, temperature):
    """Cache, masks, leaving rows and temperature at once."""
    assert_tokens_follow(policy, temperature, stop_ids=[EOS, 9, 77])


def test_positions_are_counted_within_each_sequence(absolute):
    """A model with absolute positions says what it says of the bare sequence, left-padded or not."""
    assert_tokens_follow(absolute[0], 1.0, stop_ids=[EOS])


def test_the_sampled_distribution_is_the_one_that_is_scored(policy):
    """How often each token is drawn is exp of its logprob: so the two use the same temperature."""
    count = 4000
    responses = sample(policy, [PROMPTS[0]] * count, even(count), 0.6, [EOS], PAD)
    tokens, counts = responses.ids[:, 0].unique(return_counts=True)
    ids = torch.tensor([PROMPTS[0] + [token] for token in tokens.tolist()])
    logprobs, _ = response_logprobs(policy, ids, torch.ones_like(ids).bool(), 1, 0.6)
    assert (logprobs[:, 0].exp() - counts / count).abs().max() <= 1.01 / count


def test_a_generation_config_does_not_leak_into_sampling(policy, make_policy):
    uniform = Draws(0, "rollout", 0, range(len(PROMPTS))).uniforms(10)
    expected = sample(make_policy(0), PROMPTS, uniform, 1.0, [EOS], PAD).ids
    policy.generation_config.update(
        top_k=1, top_p=0.1, temperature=0.01, do_sample=False, repetition_penalty=9.0, min_new_tokens=10, max_length=3
    )
    assert torch.equal(sample(policy, PROMPTS, uniform, 1.0, [EOS], PAD).ids, expected)


class Says(nn.Module):
    """A policy by hand, whose logits are the same after any token."""

    def __init__(self, logits, dtype=torch.float32):
        super().__init__()
        self.logits, self.config, self.device = logits.to(dtype), LlamaConfig(num_hidden_layers=1), torch.device("cpu")

    def forward(self, input_ids, logits_to_keep=None, **_):
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1)[:, -(logits_to_keep or 0) :])


def test_sampling_and_scoring_divide_bfloat16_logits_by_the_temperature_in_float32():
    policy = Says(torch.tensor([100.0, 100.5, 101.0, 101.5]), torch.bfloat16)  # / 0.7 is rounded to 143, 144 or 145
    responses = sample(policy, [[3]] * 2000, even(2000), 0.7, [9], PAD)
    shares = responses.ids[:, 0].bincount() / 2000
    ids = torch.tensor([[3, token] for token in range(4)])
    logprobs, _ = response_logprobs(policy, ids, torch.ones_like(ids).bool(), 1, 0.7)
    assert (shares - logprobs[:, 0].exp()).abs().max() <= 1.01 / 2000


# ---- where a response ends


def long_responses(policy, stop_ids=(9999,), limit=12):
    return sample(
        policy, PROMPTS, Draws(1, "rollout", 0, range(len(PROMPTS))).uniforms(limit), 2.0, list(stop_ids), PAD
    )


@pytest.mark.parametrize("places", [[(0, 0)], [(1, 5)], [(0, 3), (2, 7)], [(0, 2), (1, 2), (2, 2), (3, 2)]])
def test_a_response_ends_with_the_first_of_several_stop_tokens(policy, places):
    """Stop ids are picked from responses sampled without any: the same numbers must give a prefix of each."""
    whole = long_responses(policy).rows()
    stop_ids = [whole[row][t] for row, t in places]
    responses = long_responses(policy, stop_ids)
    for found, full, terminated in zip(responses.rows(), whole, responses.terminated.tolist(), strict=True):
        stops = [t for t, token in enumerate(full) if token in stop_ids]
        assert found == full[: stops[0] + 1 if stops else None]
        assert terminated == bool(stops)


def test_a_response_cut_at_the_limit_is_not_terminated(policy):
    responses = long_responses(policy, limit=5)
    assert responses.mask.all()
    assert not responses.terminated.any()


def test_a_stop_token_at_the_limit_terminates(policy):
    whole = long_responses(policy, limit=5).rows()
    place = next(i for i, row in enumerate(whole) if row[-1] not in row[:-1])
    responses = long_responses(policy, [whole[place][-1]], limit=5)
    assert responses.rows()[place] == whole[place]
    assert responses.terminated[place]


def test_masks_come_from_lengths_even_when_eos_is_the_pad_token(policy):
    stop = long_responses(policy).rows()[0][3]
    with_pad, with_eos = (
        sample(policy, PROMPTS, Draws(1, "rollout", 0, range(4)).uniforms(12), 2.0, [stop], pad) for pad in (PAD, stop)
    )
    assert torch.equal(with_pad.mask, with_eos.mask)
    assert with_pad.rows() == with_eos.rows()
    assert with_eos.ids[0, with_eos.mask[0]][-1] == stop


def test_finished_rows_leave_the_batch(policy):
    sizes = []
    policy.lm_head.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[0]))
    stop = long_responses(policy).rows()[1][2]
    sizes.clear()
    responses = long_responses(policy, [stop])
    assert sum(sizes) == responses.mask.sum()
    assert sizes[0] == 4 and sizes[-1] < 4


# ---- what a response depends on


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_response_does_not_depend_on_the_batch_it_is_in(policy, prompt_ids, make_sampler, batch_size):
    together = make_sampler(batch_size=64, max_tokens=10)(policy, prompt_ids, "rollout", 5)
    apart = make_sampler(batch_size=batch_size, max_tokens=10)(policy, prompt_ids, "rollout", 5)
    assert apart.rows() == together.rows()
    assert torch.equal(apart.mask, together.mask) and torch.equal(apart.terminated, together.terminated)


def test_a_response_depends_on_nothing_sampled_before(policy, prompt_ids, make_sampler):
    sampler = make_sampler()
    torch.manual_seed(0)
    first = sampler(policy, prompt_ids, "rollout", 5).rows()
    sampler(policy, prompt_ids, "heldout", 0)
    torch.manual_seed(1)
    assert sampler(policy, prompt_ids, "rollout", 5).rows() == first


def test_other_seeds_streams_and_steps_give_other_responses(policy, prompt_ids, make_sampler):
    found = [
        make_sampler(seed=seed)(policy, prompt_ids, stream, step).rows()
        for seed, stream, step in [(0, "rollout", 0), (1, "rollout", 0), (0, "heldout", 0), (0, "rollout", 1)]
    ]
    assert all(found[i] != found[j] for i in range(4) for j in range(i))


def test_the_same_prompt_twice_gets_two_responses(policy, make_sampler):
    first, second = make_sampler()(policy, [PROMPTS[0]] * 2, "rollout").rows()
    assert first != second


def test_a_row_of_uniforms_belongs_to_its_index_alone():
    all_rows = Draws(0, "rollout", 3, [0, 1, 2]).uniforms(6)
    assert torch.equal(Draws(0, "rollout", 3, [2]).uniforms(6)[0], all_rows[2])
    assert torch.equal(Draws(0, "rollout", 3, [2]).uniforms(4)[0], all_rows[2, :4])
    assert len(set(all_rows.flatten().tolist())) == 18
    assert all_rows.dtype is torch.float64


def test_uniform_numbers_are_uniform():
    numbers = Draws(0, "rollout", 0, range(200)).uniforms(50).flatten()
    counts = (numbers * 10).long().bincount(minlength=10).double()
    assert ((counts - 1000) ** 2 / 1000).sum() < 27.9  # chi-square, 9 degrees of freedom, p = 0.001


# ---- one draw


def test_a_token_of_probability_zero_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(6, -1)
    uniform = torch.tensor([0.0, 0.49999, 0.5, 0.9, 1 - 1e-16, 1.0], dtype=torch.float64)
    assert inverse_cdf(logits, uniform).tolist() == [1, 1, 3, 3, 3, 3]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_stop_the_run(bad):
    with pytest.raises(NumericsError, match="logits are not finite while sampling"):
        sample(Says(torch.tensor([0.0, bad, 1.0])), [[3]], even(1), 1.0, [9], PAD)


def test_texts_show_every_token_but_the_one_that_ended_them(tokenizer, policy, prompt_ids, make_sampler):
    sampler = make_sampler(temperature=2.0, max_tokens=40)
    responses = sampler(policy, prompt_ids, "rollout")
    assert responses.terminated.any()
    for text, row in zip(sampler.texts(responses), responses.rows(), strict=True):
        assert text == tokenizer.decode(row[:-1] if row[-1] == tokenizer.eos_token_id else row)


# ---- another engine


class Recites:
    """A rollout engine that gives every prompt the same tokens, as far as its draws' first number allows."""

    temperature = 1.0

    def __init__(self, tokens):
        self.tokens = tokens

    def __call__(self, policy, prompts, draws, after_batch):
        ids = torch.tensor([self.tokens] * len(prompts))
        lengths = (draws.uniforms(1) * len(self.tokens)).long() + 1  # [B, 1]
        mask = torch.arange(len(self.tokens)) < lengths
        after_batch(len(prompts))
        return Responses(ids, mask, mask[:, -1], torch.zeros(ids.shape))


def test_a_stage_samples_with_any_engine_that_turns_token_ids_and_draws_into_responses(tokenizer, prompt_ids):
    tokens = [*tokenizer("yes no maybe").input_ids, tokenizer.eos_token_id]
    sampler, done = Sampler(Recites(tokens), tokenizer, seed=3), []
    sampler.after_batch = done.append
    responses = sampler(None, prompt_ids, "rollout", 7)
    expected = [int(u * len(tokens)) + 1 for u in Draws(3, "rollout", 7, range(8)).uniforms(1).flatten().tolist()]
    assert [len(row) for row in responses.rows()] == expected
    assert len(set(expected)) > 1 and done == [8]
    assert all("yes no maybe".startswith(text) for text in sampler.texts(responses))
