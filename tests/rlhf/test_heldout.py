"""Evaluation on held-out prompts, the best policy within the KL budget, perplexity."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from rlhf.errors import NumericsError
from rlhf.models.perplexity import perplexity
from rlhf.models.policies import response_logprobs
from rlhf.ppo.heldout import Answers, BestPolicy, Evaluation, answer, answer_metrics
from rlhf.ppo.scores import Scored, ScoreShaping


def answers(scores, kl=(0.0, 0.0, 0.0, 0.0), lengths=(1, 2, 3, 4), terminated=(True, True, True, False)):
    return Answers(["a", "b", "c", "d"], *(torch.tensor(x) for x in (scores, kl, lengths, terminated)))


UNSHAPED = ScoreShaping(running_norm=False, clip=None, missing_eos_penalty=0.0)


def test_figures_of_an_evaluation_by_hand():
    ours, others = answers([3.0, 1.0, 2.0, 6.0], kl=[1.0, 2.0, 3.0, 6.0]), answers([1.0, 1.0, 5.0, 0.0])
    assert answer_metrics(ours, others, UNSHAPED) == {
        "eval/scores": 3.0,
        "eval/raw_scores": 3.0,
        "eval/kl": 3.0,
        "eval/length_mean": 2.5,
        "eval/eos_rate": 0.75,
        "eval/win_rate": 0.625,  # two wins, a tie counted half, a loss
    }


def test_held_out_scores_and_wins_are_of_what_is_optimised_and_raw_scores_stand_apart():
    """3, 1, 2, 6 are clipped to 3, 1, 2, 4; the last answer, which was cut, pays 2. The others' last: 0 - 2."""
    shaping = ScoreShaping(running_norm=False, clip=4.0, missing_eos_penalty=2.0)
    found = answer_metrics(answers([3.0, 1.0, 2.0, 6.0]), answers([2.0, 1.0, 4.0, 4.0]), shaping)
    assert found["eval/scores"] == (3 + 1 + 2 + 2) / 4
    assert found["eval/raw_scores"] == 3.0
    assert found["eval/win_rate"] == (1 + 0.5 + 0 + 0.5) / 4  # the last ones tie at 2


def test_an_evaluation_does_not_move_the_scale_of_a_running_normalisation():
    shaping = ScoreShaping(running_norm=True, clip=None, missing_eos_penalty=0.0)
    ours = answers([3.0, 1.0, 2.0, 6.0])
    assert answer_metrics(ours, ours, shaping)["eval/scores"] == 3.0  # no scale yet
    shaping(torch.tensor([0.0, 4.0]), torch.tensor([True, True]))  # these deviate by 2
    assert answer_metrics(ours, ours, shaping)["eval/scores"] == 1.5
    assert shaping.moments.count == 2


def number_of_e(prompts, texts, records):
    return Scored(torch.tensor([float(text.count("e")) for text in texts]))


@pytest.fixture
def evaluation(ref_policy, prompts, prompt_ids, make_sampler):
    return Evaluation(ref_policy, number_of_e, make_sampler(max_tokens=10), prompts, prompt_ids, micro_batch_size=3)


def test_the_sft_policy_ties_with_itself_at_kl_zero(evaluation, make_policy):
    found = evaluation(make_policy(7))  # the reference's weights
    metrics, samples = evaluation.metrics(found, UNSHAPED), evaluation.samples(found)
    assert metrics["eval/win_rate"] == 0.5
    assert metrics["eval/kl"] == pytest.approx(0, abs=1e-5)
    assert all(sample["response"] == sample["sft_response"] for sample in samples)


def test_an_evaluation_is_the_same_each_time_and_shows_its_responses(evaluation, policy, prompts):
    first, again = evaluation(policy), evaluation(policy)
    assert evaluation.metrics(first, UNSHAPED) == evaluation.metrics(again, UNSHAPED)
    samples = evaluation.samples(first)
    assert evaluation.samples(again) == samples
    assert [sample["prompt"] for sample in samples] == [list(prompt.messages) for prompt in prompts]
    assert [sample["score"] for sample in samples] == [sample["response"].count("e") for sample in samples]
    assert any(sample["response"] != sample["sft_response"] for sample in samples)


def test_samples_show_the_whole_dialogue(policy, prompts, prompt_ids, ref_policy, make_sampler):
    turns = [
        {"role": role, "content": text}
        for role, text in (("system", "be kind"), ("user", "hi"), ("assistant", "yes?"), ("user", "what is the time"))
    ]
    dialogue = [dataclasses.replace(prompts[0], messages=tuple(turns))]
    evaluation = Evaluation(ref_policy, number_of_e, make_sampler(max_tokens=4), dialogue, prompt_ids[:1], 1)
    assert [sample["prompt"] for sample in evaluation.samples(evaluation(policy))] == [turns]


def test_kl_is_the_sum_of_log_ratios_over_the_response(policy, ref_policy, prompts, prompt_ids, make_sampler):
    """Against bare sequences, one at a time, scored at the temperature of sampling."""
    sampler = make_sampler(temperature=0.7, max_tokens=10, stop_ids=[1, *range(60, 90)])
    found = answer(policy, ref_policy, number_of_e, sampler, prompt_ids, prompts, 3)
    responses = sampler(policy, prompt_ids, "heldout", 0).rows()
    assert found.lengths.tolist() == [len(response) for response in responses]
    for i, (prompt, response) in enumerate(zip(prompt_ids, responses, strict=True)):
        ids = torch.tensor([prompt + response])
        mine, others = (
            response_logprobs(model, ids, torch.ones_like(ids).bool(), len(response), 0.7)[0].sum().item()
            for model in (policy, ref_policy)
        )
        assert found.kl[i].item() == pytest.approx(mine - others, abs=1e-4)


def test_another_sample_is_another_response(policy, ref_policy, prompts, prompt_ids, make_sampler):
    settings = (policy, ref_policy, number_of_e, make_sampler(), prompt_ids, prompts, 8)
    assert answer(*settings, sample=0).texts != answer(*settings, sample=1).texts


def test_a_heldout_score_that_is_nan_stops_the_run(policy, ref_policy, prompts, prompt_ids, make_sampler):
    def broken(prompts, texts, records):
        return Scored(torch.tensor([1.0] * 7 + [math.nan]))

    with pytest.raises(NumericsError, match="held-out prompts: the reward of 1 of 8 responses is not finite"):
        answer(policy, ref_policy, broken, make_sampler(), prompt_ids, prompts, 8)


# ---- the best policy


def engine(make_engine, make_policy, seed):
    return make_engine("policy", make_policy(seed))


def holds_the_weights_of(best, engine):
    return best.weights.keys() == engine.parameters.keys() and all(
        torch.equal(best.weights[name], parameter) for name, parameter in engine.parameters.items()
    )


@pytest.mark.parametrize(
    "offers, expected",
    [
        ([(1.0, 0.0), (3.0, 4.0), (2.0, 4.0)], 1),  # the best score
        ([(1.0, 0.0), (2.0, 5.0), (9.0, 5.1)], 1),  # within the budget, which may be used up
        ([(1.0, 0.0), (1.0, 1.0)], 0),  # of equals the first
        ([(1.0, 0.0), (math.nan, 1.0), (2.0, math.nan)], 0),
        ([(-5.0, 0.0)], 0),  # the SFT policy, whatever its score
    ],
)
def test_the_best_policy_has_the_best_score_within_the_kl_budget(make_engine, make_policy, offers, expected):
    best = BestPolicy(5.0, UNSHAPED)
    for i, (score, kl) in enumerate(offers):
        best.offer(i, answers([score] * 4, [kl] * 4), engine(make_engine, make_policy, i))
    assert best.num_over_budget == sum(not kl <= 5 for _, kl in offers)
    assert (best.step, best.score, best.kl) == (expected, *offers[expected])
    assert holds_the_weights_of(best, engine(make_engine, make_policy, expected))


def test_the_best_weights_are_a_copy(make_engine, make_policy):
    best, policy = BestPolicy(5.0, UNSHAPED), engine(make_engine, make_policy, 0)
    best.offer(0, answers([1.0] * 4), policy)
    with torch.no_grad():
        for parameter in policy.module.parameters():
            parameter.zero_()
    assert holds_the_weights_of(best, engine(make_engine, make_policy, 0))


def test_the_best_policy_is_that_of_what_is_optimised(make_engine, make_policy):
    """A policy that ends its answers beats one that rambles to a higher raw score."""
    best, policy = (
        BestPolicy(5.0, ScoreShaping(False, None, missing_eos_penalty=1.0)),
        engine(make_engine, make_policy, 0),
    )
    best.offer(0, answers([1.0] * 4, terminated=[False] * 4), policy)
    best.offer(1, answers([0.5] * 4, terminated=[True] * 4), policy)
    assert (best.step, best.score, best.raw_score) == (1, 0.5, 0.5)


def test_policies_are_compared_on_one_scale_though_a_running_normalisation_moves_it(make_engine, make_policy):
    best, policy = BestPolicy(5.0, ScoreShaping(True, None, 0.0)), engine(make_engine, make_policy, 0)
    best.offer(0, answers([1.0] * 4), policy)  # no scale yet
    best.shaping(torch.tensor([-4.0, 4.0]), torch.tensor([True, True]))  # these deviate by 4
    best.offer(1, answers([2.0] * 4), policy)  # 2 / 4 is less than 1, but the first is 1 / 4 now
    assert (best.step, best.score, best.raw_score) == (1, 0.5, 2.0)


@pytest.mark.parametrize("penalty, expected", [(0.0, 0), (1.0, 1)])
def test_a_best_policy_of_a_checkpoint_without_single_scores_stands_where_its_mean_is_what_is_optimised(
    make_engine, make_policy, penalty, expected
):
    best, policy = BestPolicy(5.0, ScoreShaping(False, None, penalty)), engine(make_engine, make_policy, 0)
    best.load_state({"step": 0, "score": 3.0, "kl": 0.5}, {"a": torch.zeros(1)})
    assert (best.step, best.kl, list(best.weights)) == (0, 0.5, ["a"])
    best.offer(1, answers([2.0] * 4), policy)
    assert best.step == expected


# ---- perplexity


def example(context, answer):
    return {"input_ids": context + answer, "labels": [-100] * len(context) + answer}


EXAMPLES = [
    example([3, 40, 4], [60, 61, 1]),
    example([3, 50, 51, 52, 4], [70, 1]),
    example([3, 4], [80, 81, 82, 83, 1]),
]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_perplexity_is_exp_of_the_mean_loss_per_learned_token(policy, batch_size):
    losses = []
    for item in EXAMPLES:
        logits = policy(torch.tensor([item["input_ids"]])).logits[0].detach().double().numpy()
        for t, label in enumerate(item["labels"]):
            if label >= 0:
                losses.append(np.log(np.exp(logits[t - 1]).sum()) - logits[t - 1, label])
    assert len(losses) == 10
    expected = math.exp(sum(losses) / 10)
    assert perplexity(policy, EXAMPLES, pad_id=0, batch_size=batch_size) == pytest.approx(expected, rel=1e-4)
    assert perplexity(policy, EXAMPLES, pad_id=1, batch_size=batch_size) == pytest.approx(expected, rel=1e-4)


def test_the_perplexity_of_a_policy_without_preference_is_the_size_of_its_vocabulary(policy):
    torch.nn.init.zeros_(policy.lm_head.weight)
    assert perplexity(policy, EXAMPLES, 0, 2) == pytest.approx(policy.config.vocab_size, rel=1e-4)


def test_the_first_token_has_no_prediction_and_does_not_count(policy):
    whole_text = {"input_ids": [3, 40, 1], "labels": [3, 40, 1]}
    without_first = {"input_ids": [3, 40, 1], "labels": [-100, 40, 1]}
    assert perplexity(policy, [whole_text], 0, 1) == perplexity(policy, [without_first], 0, 1)


def test_perplexity_of_nothing_learned_is_none(policy):
    assert perplexity(policy, [], 0, 4) is None
    assert perplexity(policy, [{"input_ids": [3, 4, 5], "labels": [-100] * 3}], 0, 4) is None
