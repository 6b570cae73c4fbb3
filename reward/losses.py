"""Losses of a reward model over whole rankings. Pure functions of tensors.

N rankings lie flat, one after the other: ranking n is rewards[cu_lengths[n] : cu_lengths[n + 1]]. K: answers of one
ranking, P: pairs of the batch, z: the score difference of a pair, sigma: the logistic function.

    rewards     [sumK] float   scores of the answers, taken to float32 at least
    ranks       [sumK] int     1 = best, equal = tie, 0 = not ranked: takes no part and gets no gradient
    cu_lengths  [N + 1] int    0, K_0, K_0 + K_1, ..., sumK
    weights     float or [N]   how much a ranking counts

Every loss is the weighted mean over rankings of a mean over what is compared inside one, so a ranking of nine answers
weighs as much as one of two. Fewer than two ranked answers leave nothing to compare: such a ranking counts neither
in the sum nor in the weights, its rewards stay in the graph, and a batch of only such rankings has the loss 0.
Answers that all tie are a judgment too: every loss here then pulls their scores together.

Several annotators of one prompt: each is a ranking of its own over the same rewards, with weight 1 / annotators. For
`bt_pairs` that is the loss at the fractions of their votes, since it is linear in the target.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

Number = float | Tensor


def bt_pairs(
    rewards: Tensor,
    ranks: Tensor,
    cu_lengths: Tensor,
    weights: Number = 1.0,
    label_smoothing: float = 0.0,
    margin: Number = 0.0,
) -> Tensor:
    """Bradley-Terry over all pairs of a ranking: -[p log sigma(z) + (1 - p) log sigma(-z)], averaged.

    p is 1 where the first of the pair is better, 0 where it is worse, 1/2 for a tie, moved to (1 - s) p + s / 2 by
    label_smoothing s. margin (float or [N]) takes z - margin for z, z = better - worse; a tie has none.
    Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, eq. 1; the margin is that of Llama 2,
    https://arxiv.org/abs/2307.09288, eq. 2.
    """
    rewards = _checked(rewards, ranks, cu_lengths)
    first, second, group = pairs(ranks, cu_lengths)
    order = torch.sign(ranks[second].long() - ranks[first].long()).to(
        rewards.dtype
    )  # [P] 1: first is better, -1: second, 0: tie
    margins = _per_ranking("margin", margin, cu_lengths, rewards)[group]
    logits = rewards[first] - rewards[second] - order * margins
    targets = (1 + (1 - label_smoothing) * order) / 2
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return _mean_over_pairs(losses, group, weights, cu_lengths)


def plackett_luce(rewards: Tensor, ranks: Tensor, cu_lengths: Tensor, weights: Number = 1.0) -> Tensor:
    """Plackett-Luce: the best answer is drawn by softmax from all, the next from those left, and so on.

    Without ties -1 / (K - 1) sum_i [r_i - log sum_(j not better than i) exp r_j], K the ranked answers. Ties by Efron's
    method: for a tied set D of d answers, with B all those below it, the bracketed terms are together

        sum_(i in D) r_i - sum_(l = 0 .. d-1) log [ sum_B exp r_j + (1 - l / d) sum_D exp r_j ],

    as after l draws from D each member is gone with chance l / d. Equal scores then cost log(K!) / (K - 1) whatever
    the ties.
    Efron 1977, https://doi.org/10.1080/01621459.1977.10480613 (there for tied failure times).
    """
    rewards = _checked(rewards, ranks, cu_lengths)
    scores, ranks = _padded(rewards, cu_lengths), _padded(ranks, cu_lengths)  # [N, K]
    differences = scores[:, None, :] - scores[:, :, None]  # [N, K, K] at i, j: r_j - r_i
    draws = (differences + _efron_shares(ranks, scores.dtype).log()).logsumexp(-1)  # [N, K] 0 where not ranked
    num_ranked = (ranks > 0).sum(-1)
    return _weighted_mean(draws.sum(-1) / (num_ranked - 1).clamp(min=1), num_ranked > 1, weights, cu_lengths)


def rao_kupper(rewards: Tensor, ranks: Tensor, cu_lengths: Tensor, weights: Number = 1.0, eta: Number = 0.0) -> Tensor:
    """Rao-Kupper, averaged over all pairs: the better answer wins by more than a threshold exp(eta), or it is a tie.

    -log of `rao_kupper_log_probs` at what happened; eta, a float or a 0-d tensor, can be learned.
    """
    return _tie_model(rao_kupper_log_probs, rewards, ranks, cu_lengths, weights, eta)


def davidson(rewards: Tensor, ranks: Tensor, cu_lengths: Tensor, weights: Number = 1.0, eta: Number = 0.0) -> Tensor:
    """Davidson, averaged over all pairs: a tie is a third outcome of weight exp(eta) beside the two wins.

    -log of `davidson_log_probs` at what happened; eta, a float or a 0-d tensor, can be learned.
    """
    return _tie_model(davidson_log_probs, rewards, ranks, cu_lengths, weights, eta)


def pick_best(rewards: Tensor, ranks: Tensor, cu_lengths: Tensor, weights: Number = 1.0) -> Tensor:
    """Softmax cross-entropy of the best answer among the ranked ones, the target shared evenly by tied best.

    The order below the best is not used. Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, eq. 1.
    """
    rewards = _checked(rewards, ranks, cu_lengths)
    scores, ranks = _padded(rewards, cu_lengths), _padded(ranks, cu_lengths)  # [N, K]
    ranked = ranks > 0
    counted = ranked.sum(-1) > 1
    top = ranks.masked_fill(~ranked, torch.iinfo(ranks.dtype).max).amin(-1, keepdim=True)
    best = ranked & (ranks == top)
    target = (scores * best).sum(-1, keepdim=True) / best.sum(-1, keepdim=True).clamp(min=1)
    left_out = ~ranked & counted[:, None]  # a row of nothing but -inf would have a NaN gradient
    losses = (scores - target).masked_fill(left_out, -torch.inf).logsumexp(-1)
    return _weighted_mean(losses, counted, weights, cu_lengths)


LOSSES = {
    "bt_pairs": bt_pairs,
    "plackett_luce": plackett_luce,
    "rao_kupper": rao_kupper,
    "davidson": davidson,
    "pick_best": pick_best,
}


def center_penalty(rewards: Tensor, cu_lengths: Tensor) -> Tensor:
    """Mean over rankings of (mean_i r_i)^2, which the losses, functions of differences, leave free to drift."""
    rewards = _at_least_float32(rewards)
    return _group_mean(rewards, _groups(cu_lengths), len(cu_lengths) - 1).square().mean()


def l2_penalty(rewards: Tensor) -> Tensor:
    """Mean of r^2 over all answers."""
    return _at_least_float32(rewards).square().mean()


def rao_kupper_log_probs(z: Tensor, eta: Number) -> Tensor:
    """log P of (first better, second better, tie) at score differences z [P], theta = exp(eta): [3, P], nats.

    sigma(z - theta), sigma(-z - theta) and what is left, sigma(theta + z) sigma(theta - z) (1 - exp(-2 theta)):
    as a product the last needs no difference of nearly equal numbers. Rao and Kupper 1967,
    https://doi.org/10.1080/01621459.1967.10482901.
    """
    theta = torch.as_tensor(eta, dtype=z.dtype, device=z.device).exp()
    tie = F.logsigmoid(theta + z) + F.logsigmoid(theta - z) + torch.log(-torch.expm1(-2 * theta))
    return torch.stack([F.logsigmoid(z - theta), F.logsigmoid(-z - theta), tie])


def davidson_log_probs(z: Tensor, eta: Number) -> Tensor:
    """log P of (first better, second better, tie) at score differences z [P], nu = exp(eta): [3, P], nats.

    exp(z / 2), exp(-z / 2) and nu, each over their sum. Davidson 1970, https://doi.org/10.1080/01621459.1970.10481082.
    """
    eta = torch.as_tensor(eta, dtype=z.dtype, device=z.device)
    return torch.stack([z / 2, -z / 2, eta.expand_as(z)]).log_softmax(0)


def pairs(ranks: Tensor, cu_lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Flat indices (first, second) of all pairs of ranked answers, and the ranking each pair is of: three times [P]."""
    index = torch.arange(len(ranks), device=ranks.device)
    group = _groups(cu_lengths)
    partners = cu_lengths[1:].long()[group] - 1 - index  # [sumK] answers that come later in the same ranking
    first = index.repeat_interleave(partners)
    run_starts = (partners.cumsum(0) - partners)[first]
    second = first + 1 + torch.arange(len(first), device=ranks.device) - run_starts
    both = (ranks[first] > 0) & (ranks[second] > 0)
    return first[both], second[both], group[first[both]]


def comparable(ranks: Tensor, cu_lengths: Tensor) -> Tensor:
    """Whether a ranking counts, that is, has two ranked answers or more: [N] bool."""
    return (_padded(ranks, cu_lengths) > 0).sum(-1) > 1


def _tie_model(log_probs, rewards, ranks, cu_lengths, weights, eta):
    rewards = _checked(rewards, ranks, cu_lengths)
    first, second, group = pairs(ranks, cu_lengths)
    tie, second_better = ranks[first] == ranks[second], ranks[first] > ranks[second]
    outcome = second_better + 2 * tie  # [P] row of log_probs
    losses = -log_probs(rewards[first] - rewards[second], eta).gather(0, outcome[None])[0]
    return _mean_over_pairs(losses, group, weights, cu_lengths)


def _efron_shares(ranks, dtype):
    """How much answer j is still there when i is drawn: [N, K, K] at i, j. An unranked i sees only itself."""
    tied = (ranks[:, :, None] == ranks[:, None, :]) & (ranks > 0)[:, :, None]
    tied = tied | torch.eye(ranks.shape[1], dtype=torch.bool, device=ranks.device)
    left = 1 - tied.tril(-1).sum(-1).to(dtype) / tied.sum(-1)  # [N, K] 1 - l / d, the members in turn l = 0 .. d-1
    below = (ranks[:, None, :] > ranks[:, :, None]) & (ranks > 0)[:, :, None]
    return torch.where(tied, left[:, :, None], below.to(dtype))


def _mean_over_pairs(losses, group, weights, cu_lengths):
    num_rankings = len(cu_lengths) - 1
    counts = torch.bincount(group, minlength=num_rankings)
    return _weighted_mean(_group_mean(losses, group, num_rankings), counts > 0, weights, cu_lengths)


def _weighted_mean(losses, counted, weights, cu_lengths):
    weights = _per_ranking("weights", weights, cu_lengths, losses) * counted
    total = weights.sum()
    return (weights * losses).sum() / torch.where(total > 0, total, 1.0)


def _group_mean(values, group, num_groups):
    sums = values.new_zeros(num_groups).index_add(0, group, values)
    return sums / torch.bincount(group, minlength=num_groups).clamp(min=1)


def _groups(cu_lengths):
    """The ranking of each answer: [sumK]."""
    lengths = cu_lengths.long().diff()
    return torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)


def _padded(values, cu_lengths):
    """[sumK] -> [N, K of the longest ranking], zeros behind the shorter ones."""
    lengths = cu_lengths.diff()
    longest = max([1, *lengths.tolist()])  # 1: there is a least rank to look for even in an empty ranking
    real = torch.arange(longest, device=values.device) < lengths[:, None]
    return values.new_zeros(real.shape).masked_scatter(real, values)


def _per_ranking(name, value, cu_lengths, like):
    """A float or an [N] tensor, as [N] in the dtype of `like`."""
    num_rankings = len(cu_lengths) - 1
    value = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    assert value.shape in ((), (num_rankings,)), (
        f"{name} {tuple(value.shape)} must be one number or [N]=[{num_rankings}]"
    )
    return value.expand(num_rankings)


def _checked(rewards, ranks, cu_lengths):
    """The rewards in float32 at least, once the three tensors are found to fit together."""
    assert rewards.dim() == 1, f"rewards must be flat [sumK], not {tuple(rewards.shape)}"
    assert ranks.shape == rewards.shape, f"ranks {tuple(ranks.shape)} must match rewards {tuple(rewards.shape)}"
    assert not ranks.is_floating_point(), f"ranks must be integers (0 = not ranked), not {ranks.dtype}"
    assert cu_lengths.dim() == 1 and len(cu_lengths) > 0, f"cu_lengths must be [N + 1], not {tuple(cu_lengths.shape)}"
    assert cu_lengths[0] == 0 and cu_lengths[-1] == len(rewards), (
        f"cu_lengths must run from 0 to the {len(rewards)} rewards, not {int(cu_lengths[0])} to {int(cu_lengths[-1])}"
    )
    assert (cu_lengths.diff() >= 0).all(), "cu_lengths must not fall"
    assert (ranks >= 0).all(), "ranks must be 1 = best and up, or 0 = not ranked"
    return _at_least_float32(rewards)


def _at_least_float32(x):
    return x.to(torch.promote_types(x.dtype, torch.float32))
