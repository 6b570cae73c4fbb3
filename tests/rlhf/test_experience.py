"""One step's experience: batches of prompts, responses joined to them, what every model says, what is logged."""

import math
from dataclasses import replace

import pytest
import torch

from rlhf.errors import NumericsError
from rlhf.models.policies import response_logprobs
from rlhf.ppo.experience import Collector, PromptBatch, Rollout, Sequences, join, logprobs_of, prompt_batches
from rlhf.ppo.metrics import rollout_metrics
from rlhf.ppo.scores import Scored, ScoreShaping
from rlhf.rollout.responses import Responses

TRUE, FALSE = True, False


# ---- batches of prompts


def take(prompts, prompt_ids, count, batch_size=3, seed=0, first_step=0):
    batches = prompt_batches(prompts, prompt_ids, batch_size, seed, first_step)
    return [next(batches) for _ in range(count)]


def places(batches):
    return [where for batch in batches for where in batch.where]


def test_every_prompt_comes_once_per_epoch_whether_or_not_the_batch_divides_the_data(prompts, prompt_ids):
    order = places(take(prompts, prompt_ids, 8))  # 24 places are three epochs of 8 prompts
    for epoch in range(3):
        assert sorted(order[8 * epoch : 8 * epoch + 8]) == [f"prompts.jsonl:{i}" for i in range(1, 9)]


def test_each_epoch_and_each_seed_has_an_order_of_its_own(prompts, prompt_ids):
    order = places(take(prompts, prompt_ids, 8))
    assert len({tuple(order[i : i + 8]) for i in (0, 8, 16)}) == 3
    assert places(take(prompts, prompt_ids, 8, seed=1)) != order


@pytest.mark.parametrize("step", [1, 2, 5, 11])
def test_batches_from_step_k_on_are_those_of_the_uninterrupted_run(prompts, prompt_ids, step):
    assert take(prompts, prompt_ids, 4, first_step=step) == take(prompts, prompt_ids, 4 + step)[step:]


def test_several_responses_per_prompt_repeat_each_prompt_side_by_side(prompts, prompt_ids):
    batches = prompt_batches(prompts, prompt_ids, 6, 0, 0, responses_per_prompt=3)
    order = places([next(batches) for _ in range(4)])  # 24 responses are 8 prompts, an epoch
    assert order[::3] == order[1::3] == order[2::3] == places(take(prompts, prompt_ids, 4, batch_size=2))
    later = prompt_batches(prompts, prompt_ids, 6, 0, 3, responses_per_prompt=3)
    assert places([next(later)]) == order[18:]


def test_a_batch_keeps_ids_messages_and_places_together(prompts, prompt_ids):
    by_place = {prompt.where: (ids, prompt.messages) for prompt, ids in zip(prompts, prompt_ids, strict=True)}
    for batch in take(prompts, prompt_ids, 3):
        assert len(batch) == 3
        for ids, messages, where in zip(batch.ids, batch.messages, batch.where, strict=True):
            assert by_place[where] == (ids, messages)


# ---- sequences


def responses_of(ids, mask):
    ids = torch.tensor(ids)
    return Responses(ids, torch.tensor(mask), torch.tensor([True] * len(ids)), torch.zeros(ids.shape))


def test_joining_puts_left_padded_prompts_before_right_padded_responses():
    responses = responses_of([[7, 8], [9, 0]], [[TRUE, TRUE], [TRUE, FALSE]])
    sequences = join([[5], [3, 4]], responses, pad_id=0)
    assert sequences.ids.tolist() == [[0, 5, 7, 8], [3, 4, 9, 0]]
    assert sequences.attention_mask.tolist() == [[FALSE, TRUE, TRUE, TRUE], [TRUE, TRUE, TRUE, FALSE]]
    assert sequences.mask.tolist() == [[TRUE, TRUE], [TRUE, FALSE]]


def test_joined_masks_come_from_lengths_even_when_eos_is_the_pad_token():
    eos = 1
    responses = responses_of([[7, eos], [eos, eos]], [[TRUE, TRUE], [TRUE, FALSE]])
    sequences = join([[eos, 5], [5]], responses, pad_id=eos)
    assert sequences.attention_mask.tolist() == [[TRUE, TRUE, TRUE, TRUE], [FALSE, TRUE, TRUE, FALSE]]


def test_chosen_rows_lose_the_columns_that_only_others_need():
    responses = responses_of([[7, 8, 9], [6, 0, 0], [5, 4, 0]], [[TRUE] * 3, [TRUE, FALSE, FALSE], [TRUE, TRUE, FALSE]])
    sequences = join([[1, 2, 3, 4], [1, 2], [2]], responses, pad_id=0)
    part = sequences[torch.tensor([2, 1])]
    assert part.ids.tolist() == [[0, 2, 5, 4], [1, 2, 6, 0]]
    assert part.attention_mask.tolist() == [[FALSE, TRUE, TRUE, TRUE], [TRUE, TRUE, TRUE, FALSE]]
    assert part.mask.tolist() == [[TRUE, TRUE], [TRUE, FALSE]]
    assert len(part) == 2


def test_tensors_that_do_not_belong_together_are_refused():
    with pytest.raises(AssertionError):
        Sequences(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2, 1))
    with pytest.raises(AssertionError):
        Responses(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3), torch.zeros(2, 3))
    with pytest.raises(AssertionError):
        Responses(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2), torch.zeros(2, 1))


# ---- the sweep of models over a rollout


def letters(prompts, texts, records):
    """A rule: the number of e's."""
    return Scored(torch.tensor([float(text.count("e")) for text in texts]))


@pytest.fixture
def batch(prompts, prompt_ids):
    return PromptBatch.of(4, prompts, prompt_ids)


@pytest.fixture
def collect(policy, ref_policy, batch, make_sampler):
    def run(score=letters, shaping=None, micro_batch_size=3, temperature=0.8):
        sampler = make_sampler(temperature=temperature, max_tokens=9, stop_ids=[1, *range(60, 90)])
        shaping = shaping or ScoreShaping(False, None, 0.0)
        return Collector(sampler, shaping, micro_batch_size)(policy, ref_policy, score, batch)

    return run


def test_a_rollout_holds_for_each_response_what_each_model_says_of_it_alone(collect, policy, ref_policy, batch):
    """One bare sequence at a time, without padding or neighbours, is the expected value."""
    rollout = collect()
    assert len(set(rollout.lengths.tolist())) > 1
    for i, prompt in enumerate(batch.ids):
        size = int(rollout.lengths[i])
        response = rollout.sequences.ids[i, -rollout.mask.shape[1] :][:size].tolist()
        ids = torch.tensor([prompt + response])
        mask = torch.ones_like(ids).bool()
        logprobs, entropies = response_logprobs(policy, ids, mask, size, 0.8)
        ref_logprobs, _ = response_logprobs(ref_policy, ids, mask, size, 0.8)
        for found, expected in (
            (rollout.logprobs, logprobs),
            (rollout.sampled_logprobs, logprobs),
            (rollout.entropies, entropies),
            (rollout.ref_logprobs, ref_logprobs),
        ):
            assert torch.allclose(found[i, :size], expected[0], atol=1e-5)
            assert (found[i, size:] == 0).all()


@pytest.mark.parametrize("micro_batch_size", [1, 8])
def test_the_size_of_micro_batches_changes_no_rollout(collect, micro_batch_size):
    expected, found = collect(), collect(micro_batch_size=micro_batch_size)
    assert torch.equal(found.sequences.ids, expected.sequences.ids)
    assert found.texts == expected.texts
    for name in ("logprobs", "ref_logprobs", "entropies", "scores"):
        assert torch.allclose(getattr(found, name), getattr(expected, name), atol=1e-5), name


def test_more_padding_changes_no_logprob_of_a_rollout(collect, policy):
    rollout = collect()
    s = rollout.sequences
    eos = 1  # as the pad token
    wide = Sequences(
        torch.nn.functional.pad(torch.where(s.attention_mask, s.ids, eos), (7, 7), value=eos),
        torch.nn.functional.pad(s.attention_mask, (7, 7)),
        torch.nn.functional.pad(s.mask, (0, 7)),
    )
    size = s.mask.shape[1]
    assert torch.allclose(logprobs_of(policy, wide, 0.8, 3)[0][:, :size], rollout.logprobs, atol=1e-5)


def test_the_score_is_of_the_text_up_to_the_first_stop_token(collect, batch, tokenizer):
    seen = []

    def score(prompts, texts, records):
        seen.append((prompts, texts, records))
        return letters(prompts, texts, records)

    rollout = collect(score)
    ((messages, texts, records),) = seen
    assert messages == batch.messages and texts == rollout.texts and records == batch.records
    for i, text in enumerate(texts):
        response = rollout.sequences.ids[i, -rollout.mask.shape[1] :][rollout.mask[i]].tolist()
        assert text == tokenizer.decode(response[:-1] if rollout.terminated[i] else response)
    assert rollout.raw_scores.tolist() == [text.count("e") for text in texts]
    assert torch.equal(rollout.scores, rollout.raw_scores)


def test_a_missing_eos_costs_the_shaped_score_and_leaves_the_raw_one(collect):
    rollout = collect(shaping=ScoreShaping(False, None, missing_eos_penalty=2.5))
    assert 0 < rollout.terminated.sum() < 8
    assert (rollout.raw_scores - rollout.scores).tolist() == [0.0 if ended else 2.5 for ended in rollout.terminated]


def test_a_prompt_that_comes_twice_is_answered_with_other_random_numbers(
    policy, ref_policy, prompts, prompt_ids, make_sampler
):
    twice = next(prompt_batches(prompts, prompt_ids, 8, 0, 0, responses_per_prompt=2))
    collect = Collector(make_sampler(), ScoreShaping(False, None, 0.0), 8)
    texts = collect(policy, ref_policy, letters, twice).texts
    assert twice.ids[::2] == twice.ids[1::2] and all(x != y for x, y in zip(texts[::2], texts[1::2], strict=True))


def test_a_score_that_is_nan_stops_the_step_and_names_it(collect):
    with pytest.raises(NumericsError, match=r"^the reward of 1 of 8 responses is not finite"):
        collect(lambda prompts, texts, records: Scored(torch.tensor([0.0] * 7 + [math.nan])))


def test_collecting_leaves_no_gradient_and_no_graph(collect, policy):
    assert not collect().logprobs.requires_grad
    assert all(p.grad is None for p in policy.parameters())


# ---- what is logged


@pytest.fixture
def small_rollout():
    """Two responses, of three tokens (cut) and of one (ended)."""
    mask = torch.tensor([[TRUE, TRUE, TRUE], [TRUE, FALSE, FALSE]])
    return Rollout(
        sequences=Sequences(torch.zeros(2, 4), torch.ones(2, 4).bool(), mask),
        logprobs=torch.tensor([[-1.0, -2.0, -1.0], [-3.0, 0.0, 0.0]]),
        ref_logprobs=torch.tensor([[-2.0, -2.0, -2.0], [-1.0, 0.0, 0.0]]),
        entropies=torch.tensor([[0.5, 1.0, 0.5], [3.0, 0.0, 0.0]]),
        sampled_logprobs=torch.tensor([[-1.0, -2.0, -1.5], [-3.25, 9.0, 9.0]]),
        scores=torch.tensor([4.0, 2.0]),
        raw_scores=torch.tensor([9.0, 2.0]),
        term_scores={"brief": torch.tensor([5.0, 2.0])},
        terminated=torch.tensor([False, True]),
        texts=["a b c", "d"],
        seconds={"rollout": 0.5, "score": 0.25},
    )


def test_metrics_of_a_rollout_by_hand(small_rollout):
    found = rollout_metrics(small_rollout, kl_coef=0.1)
    k3 = 2 * (math.exp(-1) - 1 + 1) + (math.exp(2) - 1 - 2)  # k1 = 1, 0, 1 and -2
    expected = {
        "objective/kl": 0.0,  # 2 nats in one response, -2 in the other
        "objective/kl_per_token": 0.0,
        "objective/kl_k3": k3 / 2,
        "objective/entropy": 2.5,
        "objective/non_score_reward": 0.0,
        "objective/rlhf_reward": 3.0,
        "objective/scores": 3.0,
        "objective/scores_std": 1.0,
        "objective/scores_min": 2.0,
        "objective/scores_max": 4.0,
        "objective/raw_scores": 5.5,
        "objective/scores/brief": 3.5,
        "objective/kl_coef": 0.1,
        "response/length_mean": 2.0,
        "response/length_max": 3.0,
        "response/eos_rate": 0.5,
        "val/num_eos_tokens": 1.0,
        "val/rollout_logprob_diff": 0.75 / 4,  # 0, 0, 0.5 and 0.25
        "val/rollout_logprob_diff_max": 0.5,
        "throughput/tokens_per_second": 8.0,
        "eps": 4.0,
        "time/rollout": 0.5,
        "time/score": 0.25,
    }
    assert found == pytest.approx(expected, abs=1e-6)
    assert all(isinstance(value, float) for value in found.values())


def test_the_price_of_kl_is_what_the_reward_lost(small_rollout):
    nearer = replace(small_rollout, ref_logprobs=small_rollout.logprobs - small_rollout.mask.float())  # a nat a token
    found = rollout_metrics(nearer, kl_coef=0.1)
    assert found["objective/kl"] == pytest.approx(2.0)
    assert found["objective/kl_per_token"] == pytest.approx(1.0)
    assert found["objective/non_score_reward"] == pytest.approx(-0.2)
    assert found["objective/rlhf_reward"] == pytest.approx(2.8)


def test_the_kl_of_a_rollout_is_the_sum_over_its_response_tokens(small_rollout):
    assert small_rollout.kl.tolist() == [2.0, -2.0]
    assert small_rollout.mean_kl == 0.0
    assert small_rollout.lengths.tolist() == [3, 1]


def test_a_rollout_whose_tensors_disagree_is_refused(small_rollout):
    with pytest.raises(AssertionError, match=r"entropies \(2, 4\)"):
        replace(small_rollout, entropies=torch.zeros(2, 4))
    with pytest.raises(AssertionError):
        replace(small_rollout, scores=torch.zeros(3))
