"""Losses over rankings, against float64 references in plain Python that share no code with them."""

import math
import random

import pytest
import torch

from reward.losses import (
    LOSSES,
    center_penalty,
    comparable,
    davidson_log_probs,
    l2_penalty,
    pairs,
    rao_kupper_log_probs,
)


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def reference_bt(r, k, label_smoothing=0.0, margin=0.0):
    terms = []
    for i in range(len(r)):
        for j in range(i + 1, len(r)):
            if k[i] == k[j]:
                z = r[i] - r[j]
                terms.append(-(log_sigmoid(z) + log_sigmoid(-z)) / 2)
            else:
                z = (r[i] - r[j] if k[i] < k[j] else r[j] - r[i]) - margin
                p = 1 - label_smoothing / 2
                terms.append(-p * log_sigmoid(z) - (1 - p) * log_sigmoid(-z))
    return sum(terms) / len(terms)


def reference_plackett_luce(r, k):
    total = 0.0
    for rank in sorted(set(k)):
        tied = [x for x, rank_x in zip(r, k, strict=True) if rank_x == rank]
        below = sum(math.exp(x) for x, rank_x in zip(r, k, strict=True) if rank_x > rank)
        for gone in range(len(tied)):
            total -= math.log(below + (1 - gone / len(tied)) * sum(math.exp(x) for x in tied))
        total += sum(tied)
    return -total / (len(r) - 1)


def reference_rao_kupper(r, k, eta=0.0):
    theta, terms = math.exp(eta), []
    for i in range(len(r)):
        for j in range(i + 1, len(r)):
            z = r[i] - r[j]
            first, second = 1 / (1 + math.exp(theta - z)), 1 / (1 + math.exp(theta + z))
            terms.append(-math.log(first if k[i] < k[j] else second if k[i] > k[j] else 1 - first - second))
    return sum(terms) / len(terms)


def reference_davidson(r, k, eta=0.0):
    nu, terms = math.exp(eta), []
    for i in range(len(r)):
        for j in range(i + 1, len(r)):
            first, second = math.exp((r[i] - r[j]) / 2), math.exp((r[j] - r[i]) / 2)
            happened = first if k[i] < k[j] else second if k[i] > k[j] else nu
            terms.append(-math.log(happened / (first + second + nu)))
    return sum(terms) / len(terms)


def reference_pick_best(r, k):
    best = [x for x, rank in zip(r, k, strict=True) if rank == min(k)]
    return math.log(sum(math.exp(x) for x in r)) - sum(best) / len(best)


REFERENCES = {
    "bt_pairs": reference_bt,
    "plackett_luce": reference_plackett_luce,
    "rao_kupper": reference_rao_kupper,
    "davidson": reference_davidson,
    "pick_best": reference_pick_best,
}
CASES = [
    *[(name, {}) for name in LOSSES],
    ("bt_pairs", {"label_smoothing": 0.1}),
    ("bt_pairs", {"margin": 0.5}),
    ("bt_pairs", {"label_smoothing": 0.2, "margin": 0.7}),
    ("rao_kupper", {"eta": -1.3}),
    ("davidson", {"eta": 0.8}),
]
every_case = pytest.mark.parametrize(("name", "options"), CASES)
every_loss = pytest.mark.parametrize("name", LOSSES)


def random_rankings(seed, num_rankings=12):
    """Lists (scores, ranks) of one to six answers with ties, gaps in the ranks and unranked answers (0)."""
    rng = random.Random(seed)
    sizes = [rng.randint(1, 6) for _ in range(num_rankings)]
    return [([rng.gauss(0, 2) for _ in range(k)], [rng.choice([0, 1, 2, 2, 3, 5]) for _ in range(k)]) for k in sizes]


def flat(rankings, dtype=torch.float64):
    """(scores, ranks) lists -> rewards [sumK], ranks [sumK], cu_lengths [N + 1]."""
    rewards = torch.tensor([x for scores, _ in rankings for x in scores], dtype=dtype)
    ranks = torch.tensor([k for _, ranks in rankings for k in ranks], dtype=torch.long)
    return rewards, ranks, torch.tensor([0] + [len(ranks) for _, ranks in rankings]).cumsum(0)


def reference_batch(name, rankings, weights, **options):
    total = weight_sum = 0.0
    for (scores, ranks), weight in zip(rankings, weights, strict=True):
        ranked = [(x, k) for x, k in zip(scores, ranks, strict=True) if k > 0]
        if len(ranked) > 1:
            total += weight * REFERENCES[name](*zip(*ranked, strict=True), **options)
            weight_sum += weight
    return total / weight_sum


@every_case
@pytest.mark.parametrize("seed", range(20))
def test_loss_equals_the_float64_reference(name, options, seed):
    rankings = random_rankings(seed)
    weights = [random.Random(seed).uniform(0.1, 3) for _ in rankings]
    expected = reference_batch(name, rankings, weights, **options)
    loss = LOSSES[name](*flat(rankings), weights=torch.tensor(weights, dtype=torch.float64), **options)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    single = LOSSES[name](*flat(rankings, torch.float32), weights=torch.tensor(weights), **options)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(expected, rel=1e-6)


@every_case
def test_gradient_is_the_derivative_of_the_loss(name, options):
    rewards, ranks, cu_lengths = flat(random_rankings(3, num_rankings=5))
    weights = torch.rand(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda r: LOSSES[name](r, ranks, cu_lengths, weights=weights, **options), rewards.requires_grad_()
    )


@pytest.mark.parametrize("name", ["rao_kupper", "davidson"])
def test_gradient_of_the_tie_parameter_is_the_derivative_of_the_loss(name):
    rewards, ranks, cu_lengths = flat(random_rankings(4, num_rankings=5))
    eta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda r, e: LOSSES[name](r, ranks, cu_lengths, eta=e), (rewards.requires_grad_(), eta)
    )


def test_each_ranking_can_have_a_margin_of_its_own():
    rankings = [([1.0, 0.5, -1.0], [1, 2, 3]), ([0.2, 0.1], [2, 1])]
    expected = (reference_bt(*rankings[0], margin=0.5) + reference_bt(*rankings[1], margin=2.0)) / 2
    assert LOSSES["bt_pairs"](*flat(rankings), margin=torch.tensor([0.5, 2.0])).item() == pytest.approx(expected)


def test_a_tied_pair_has_no_margin():
    tied = flat([([1.0, -0.5], [1, 1])])
    assert LOSSES["bt_pairs"](*tied, margin=3.0) == LOSSES["bt_pairs"](*tied)


@pytest.mark.parametrize("name", ["bt_pairs", "plackett_luce", "pick_best"])
def test_two_equal_rewards_cost_log_two(name):
    assert LOSSES[name](*flat([([0.7, 0.7], [1, 2])])).item() == pytest.approx(math.log(2), rel=1e-12)


@pytest.mark.parametrize("name", ["plackett_luce", "pick_best"])
def test_two_answers_in_order_make_the_bradley_terry_loss(name):
    two = flat([([1.3, -0.4], [2, 1]), ([0.1, 0.9], [2, 1])])
    assert LOSSES[name](*two).item() == pytest.approx(LOSSES["bt_pairs"](*two).item(), rel=1e-12)


@pytest.mark.parametrize("ranks", [[1, 2, 3, 4], [1, 1, 3, 3], [1, 1, 1, 4], [2, 2, 2, 2]])
def test_plackett_luce_of_equal_rewards_is_the_log_of_all_orders_whatever_the_ties(ranks):
    assert LOSSES["plackett_luce"](*flat([([0.5] * 4, ranks)])).item() == pytest.approx(math.log(24) / 3, rel=1e-12)


def test_davidson_without_ties_in_sight_is_bradley_terry():
    rankings = flat([([1.3, -0.4, 0.2], [2, 1, 3])])
    assert LOSSES["davidson"](*rankings, eta=-60.0).item() == pytest.approx(
        LOSSES["bt_pairs"](*rankings).item(), rel=1e-9
    )


@pytest.mark.parametrize("log_probs", [rao_kupper_log_probs, davidson_log_probs])
@pytest.mark.parametrize("eta", [-20.0, -3.0, 0.0, 2.0, 5.0])
def test_probabilities_of_the_three_outcomes_sum_to_one(log_probs, eta):
    z = torch.linspace(-30, 30, 61, dtype=torch.float64)
    assert torch.allclose(log_probs(z, eta).exp().sum(0), torch.ones_like(z), rtol=0, atol=1e-14)


@pytest.mark.parametrize("z", [-30.0, -12.0, 0.0, 7.0, 30.0])
@pytest.mark.parametrize("eta", [-80.0, -25.0, -8.0, 0.0, 3.0])
def test_rao_kupper_log_probability_of_a_tie_is_exact_where_one_minus_both_cancels(z, eta):
    # sigma(z + t) - sigma(z - t) = sinh(t) / (cosh(z) + cosh(t)), in logarithms
    log_two_sinh = math.log(2 * math.sinh(math.exp(eta)))
    log_two_sum = math.log(2 * (math.cosh(z) + math.cosh(math.exp(eta))))
    for dtype, rel in [(torch.float64, 1e-9), (torch.float32, 1e-6)]:
        tie = rao_kupper_log_probs(torch.tensor([z], dtype=dtype), eta)[2]
        assert tie.item() == pytest.approx(log_two_sinh - log_two_sum, rel=rel, abs=1e-7)


@pytest.mark.parametrize("name", ["rao_kupper", "davidson"])
@pytest.mark.parametrize("eta", [-50.0, -5.0, 5.0, 20.0])
def test_tie_models_and_their_gradients_stay_finite_at_extreme_rewards(name, eta):
    rewards, ranks, cu_lengths = flat([([30.0, 0.0, -30.0, 30.0], [3, 1, 2, 3])], torch.float32)
    eta = torch.tensor(eta, requires_grad=True)
    LOSSES[name](rewards.requires_grad_(), ranks, cu_lengths, eta=eta).backward()
    assert rewards.grad.isfinite().all() and eta.grad.isfinite()


@every_case
def test_order_of_the_answers_within_a_ranking_does_not_matter(name, options):
    rankings = random_rankings(5)
    shuffled = [
        tuple(zip(*random.Random(1).sample(list(zip(*r, strict=True)), len(r[0])), strict=True)) for r in rankings
    ]
    expected = LOSSES[name](*flat(rankings), **options).item()
    assert LOSSES[name](*flat(shuffled), **options).item() == pytest.approx(expected, rel=1e-12)


@every_case
def test_a_constant_added_to_the_scores_of_a_ranking_does_not_matter(name, options):
    rankings = random_rankings(6)
    moved = [([x + 10 * n for x in scores], ranks) for n, (scores, ranks) in enumerate(rankings)]
    expected = LOSSES[name](*flat(rankings), **options).item()
    assert LOSSES[name](*flat(moved), **options).item() == pytest.approx(expected, rel=1e-9)


@every_loss
def test_only_the_order_of_the_ranks_matters(name):
    scores = [0.3, -1.0, 2.0, 0.9]
    expected = LOSSES[name](*flat([(scores, [1, 2, 2, 3])])).item()
    assert LOSSES[name](*flat([(scores, [3, 20, 20, 21])])).item() == expected


@every_loss
def test_an_unranked_answer_changes_nothing_and_gets_no_gradient(name):
    rewards, ranks, cu_lengths = flat([([0.3, 50.0, -1.0], [2, 0, 1]), ([1.0, 2.0, -9.0], [1, 1, 0])])
    loss = LOSSES[name](rewards.requires_grad_(), ranks, cu_lengths)
    loss.backward()
    without = LOSSES[name](*flat([([0.3, -1.0], [2, 1]), ([1.0, 2.0], [1, 1])]))
    assert loss.item() == pytest.approx(without.item(), rel=1e-12)
    assert rewards.grad[ranks == 0].tolist() == [0, 0]
    assert (rewards.grad[ranks > 0] != 0).all()


@every_loss
def test_a_ranking_with_nothing_to_compare_counts_for_nothing_but_stays_in_the_graph(name):
    rewards, ranks, cu_lengths = flat([([0.3, -1.0], [2, 1]), ([5.0, 6.0], [0, 1]), ([7.0], [1]), ([1.0, 1.0], [0, 0])])
    loss = LOSSES[name](rewards.requires_grad_(), ranks, cu_lengths, weights=torch.tensor([1.0, 9.0, 9.0, 9.0]))
    loss.backward()
    assert loss.item() == pytest.approx(LOSSES[name](*flat([([0.3, -1.0], [2, 1])])).item(), rel=1e-12)
    assert rewards.grad[2:].tolist() == [0] * 5
    assert comparable(ranks, cu_lengths).tolist() == [True, False, False, False]


@every_loss
def test_a_batch_with_nothing_to_compare_costs_zero_with_a_graph(name):
    rewards, ranks, cu_lengths = flat([([5.0, 6.0], [0, 1]), ([7.0], [1])])
    loss = LOSSES[name](rewards.requires_grad_(), ranks, cu_lengths)
    loss.backward()
    assert loss.item() == 0.0
    assert rewards.grad.tolist() == [0, 0, 0]


@every_loss
def test_an_empty_batch_costs_zero(name):
    assert LOSSES[name](torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.tensor([0])).item() == 0.0


@every_loss
def test_a_ranking_of_many_answers_weighs_as_much_as_one_of_two(name):
    many, two = ([0.1 * i for i in range(9)], list(range(1, 10))), ([0.4, 0.1], [2, 1])
    alone = [LOSSES[name](*flat([ranking])).item() for ranking in (many, two)]
    assert LOSSES[name](*flat([many, two])).item() == pytest.approx(sum(alone) / 2, rel=1e-12)


@every_loss
def test_answers_that_all_tie_are_pulled_together(name):
    rewards, ranks, cu_lengths = flat([([2.0, 0.0, -2.0], [1, 1, 1])])
    LOSSES[name](rewards.requires_grad_(), ranks, cu_lengths).backward()
    assert rewards.grad[0] > 0 > rewards.grad[2]


@every_loss
def test_a_step_down_the_gradient_moves_the_better_answer_up(name):
    rewards, ranks, cu_lengths = flat([([0.0, 0.0], [2, 1])])
    LOSSES[name](rewards.requires_grad_(), ranks, cu_lengths).backward()
    assert rewards.grad[0] > 0 > rewards.grad[1]


@every_loss
def test_half_precision_rewards_are_compared_in_float32(name):
    rewards, ranks, cu_lengths = flat([([100.0, 99.5, 3.0], [1, 2, 3])])
    loss = LOSSES[name](rewards.bfloat16(), ranks, cu_lengths)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(LOSSES[name](rewards, ranks, cu_lengths).item(), rel=1e-6)


def test_annotators_as_weighted_rankings_give_the_loss_at_their_vote_fractions():
    prompts = [
        ([0.5, -1.0, 2.0], [[1, 2, 3], [2, 1, 2], [3, 1, 2]]),
        ([0.3, 0.9], [[1, 2]]),
        ([1.0, 0.0], [[1, 2], [2, 1]]),
    ]
    by_prompt = []
    for scores, annotations in prompts:
        terms = []
        for i in range(len(scores)):
            for j in range(i + 1, len(scores)):
                votes = [1.0 if k[i] < k[j] else 0.5 if k[i] == k[j] else 0.0 for k in annotations]
                p, z = sum(votes) / len(votes), scores[i] - scores[j]
                terms.append(-p * log_sigmoid(z) - (1 - p) * log_sigmoid(-z))
        by_prompt.append(sum(terms) / len(terms))

    rewards, _, _ = flat([(scores, scores) for scores, _ in prompts])  # forwarded once: [sumK over prompts]
    gathered = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 5, 6])
    _, ranks, cu_lengths = flat([(k, k) for _, annotations in prompts for k in annotations])
    weights = torch.tensor([1 / 3, 1 / 3, 1 / 3, 1, 1 / 2, 1 / 2], dtype=torch.float64)
    loss = LOSSES["bt_pairs"](rewards[gathered], ranks, cu_lengths, weights=weights)
    assert loss.item() == pytest.approx(sum(by_prompt) / 3, rel=1e-9)


def test_pairs_are_those_of_ranked_answers_of_one_ranking():
    first, second, group = pairs(torch.tensor([1, 0, 2, 2, 1, 5]), torch.tensor([0, 4, 4, 6]))
    assert list(zip(first.tolist(), second.tolist(), group.tolist(), strict=True)) == [
        (0, 2, 0),
        (0, 3, 0),
        (2, 3, 0),
        (4, 5, 2),
    ]


def test_center_penalty_is_the_mean_square_of_the_mean_score_of_a_ranking():
    rewards = torch.tensor([1.0, 3.0, -1.0, 0.0, 1.0])
    assert center_penalty(rewards, torch.tensor([0, 2, 5])).item() == pytest.approx((2.0**2 + 0.0**2) / 2)


def test_l2_penalty_is_the_mean_square_of_the_scores():
    assert l2_penalty(torch.tensor([1.0, -2.0, 3.0])).item() == pytest.approx(14 / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": torch.zeros(2, 1)}, r"rewards must be flat \[sumK\], not \(2, 1\)"),
        ({"ranks": torch.tensor([1, 2, 3])}, r"ranks \(3,\) must match rewards \(2,\)"),
        ({"ranks": torch.tensor([1.0, 2.0])}, "ranks must be integers"),
        ({"ranks": torch.tensor([1, -1])}, "ranks must be 1 = best and up"),
        ({"cu_lengths": torch.tensor([0, 3])}, "cu_lengths must run from 0 to the 2 rewards, not 0 to 3"),
        ({"cu_lengths": torch.tensor([0, 3, 2])}, "cu_lengths must not fall"),
        ({"weights": torch.ones(1, 1)}, r"weights \(1, 1\) must be one number or \[N\]=\[1\]"),
    ],
)
@every_loss
def test_tensors_that_do_not_fit_are_refused(name, change, message):
    fitting = {"rewards": torch.zeros(2), "ranks": torch.tensor([1, 2]), "cu_lengths": torch.tensor([0, 2])}
    with pytest.raises(AssertionError, match=message):
        LOSSES[name](**{**fitting, **change})


def test_a_margin_that_would_broadcast_over_pairs_is_refused():
    with pytest.raises(AssertionError, match=r"margin \(2, 1\) must be one number or \[N\]=\[2\]"):
        LOSSES["bt_pairs"](*flat([([1.0, 2.0], [1, 2])] * 2), margin=torch.zeros(2, 1))
