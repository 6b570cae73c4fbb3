"""The PPO update: epochs of minibatches over one rollout. Schulman et al. 2017, https://arxiv.org/abs/1707.06347."""

import math
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.distributed import over_ranks, own_places, world_size
from rlhf.experience import Rollout, Sequences
from rlhf.invariants import FirstSteps, check_all_counted, check_equal_counts, check_on_policy
from rlhf.kl import k2
from rlhf.losses import policy_loss, value_loss
from rlhf.meanings import Meaning
from rlhf.models import response_logprobs
from rlhf.ops import masked_mean, masked_var
from rlhf.ptx import PtxMix
from rlhf.scalars import response_values
from rlhf.seeding import generator


@dataclass(frozen=True)
class Minibatch:
    """Rows of a rollout with what the two losses need. mask and the rest of the token tensors: [B, R]."""

    sequences: Sequences
    old_logprobs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor

    def __getitem__(self, rows: Tensor) -> "Minibatch":
        sequences = self.sequences[rows]
        width = sequences.mask.shape[1]
        tokens = (x[rows, :width] for x in (self.old_logprobs, self.old_values, self.advantages, self.returns))
        return Minibatch(sequences, *tokens)

    def micro_batches(self, rows: Tensor, size: int):
        """This rank's part of a minibatch: (micro-batch, its share of the minibatch's tokens, whether it is the last).

        Summed with these shares over all micro-batches of all ranks, means are the mean over the minibatch. rows: [B].
        """
        num_tokens = self.sequences.mask[rows].sum()
        own = rows[list(own_places(len(rows)))]
        for first in range(0, len(own), size):
            part = self[own[first : first + size]]
            yield part, part.sequences.mask.sum() / num_tokens, first + size >= len(own)


class Ppo:
    """The update rule with its options (the `ppo` section of the config). ptx: demonstrations to learn from beside."""

    def __init__(self, options, temperature: float, seed: int, tolerance: float, ptx: PtxMix | None = None):
        self.options, self.temperature, self.seed, self.tolerance = options, temperature, seed, tolerance
        self.ptx, self.first_steps = ptx, FirstSteps()

    def update(
        self, policy, critic, rollout: Rollout, advantages: Tensor, returns: Tensor, step: int
    ) -> dict[str, float]:
        """num_epochs passes over the rollout in fresh orders; returns the step's metrics, means over minibatches."""
        batch = Minibatch(rollout.sequences, rollout.logprobs, rollout.values, advantages, returns)
        trains_policy = step >= self.options.critic_warmup_steps
        began = time.perf_counter()
        self._decay_learning_rates(policy, critic, step)
        metrics: dict[str, list[float]] = defaultdict(list)
        for number, rows in self._minibatches(len(batch.sequences), step):
            first = not metrics
            record = self._update_policy(policy, batch, rows, number, first) if trains_policy else {}
            record |= self._update_critic(critic, batch, rows)
            for name, value in record.items():
                metrics[name].append(value)
            if self._went_too_far(record):
                break
        check_equal_counts(_counts(policy) | _counts(critic))
        return self._summary(metrics, policy, began)

    def _minibatches(self, num_responses: int, step: int) -> Iterator[tuple[int, Tensor]]:
        """(number since the start of the run, rows) of each optimizer step: every epoch in a fresh order."""
        for epoch in range(self.options.num_epochs):
            shuffle = generator(self.seed, "minibatches", step, epoch)
            parts = torch.randperm(num_responses, generator=shuffle).split(self.options.minibatch_size)
            first = (step * self.options.num_epochs + epoch) * len(parts)
            yield from enumerate(parts, first)

    def _update_policy(self, policy, batch: Minibatch, rows: Tensor, number: int, first: bool) -> dict[str, float]:
        options, record, largest = self.options, defaultdict(float), defaultdict(float)
        before = policy.num_backwards
        if self.ptx is not None:
            record["loss/ptx_avg"] = self._add_ptx(policy, number)
        for part, share, is_last in batch.micro_batches(rows, options.micro_batch_size):
            means, maxima = self._add_policy_gradient(policy, part, share, is_last)
            for name, value in means.items():
                record[name] += (value * share).item()
            for name, value in maxima.items():
                largest[name] = max(largest[name], value.nan_to_num(nan=math.inf, posinf=math.inf).item())
            record["num_tokens"] += part.sequences.mask.sum().item()
        record["num_backwards"] = policy.num_backwards - before
        record, largest = _of_all_ranks(record, "sum"), _of_all_ranks(largest, "max")
        difference = record.pop("difference")
        if first:
            check_on_policy(difference, self.tolerance)
        num_ptx = _num_micro_batches(self.ptx.batch_size, options.micro_batch_size) if self.ptx else 0
        self._check_counts(policy, record, batch, rows, num_ptx)
        has_signal = bool(batch.advantages[rows].any()) or options.entropy_coef > 0 or self.ptx is not None
        norm = self.first_steps.step(policy, has_signal)
        return record | {"val/ratio_max": largest["ratio"], "policy/grad_norm": norm}

    def _add_policy_gradient(
        self, policy, part: Minibatch, share: Tensor, is_last: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Adds a micro-batch's gradient; returns the means over its tokens that are logged, and the greatest values."""
        options, seq = self.options, part.sequences
        logprobs, entropies = response_logprobs(
            policy, seq.ids, seq.attention_mask, seq.mask.shape[1], self.temperature, options.entropy_coef > 0
        )
        clips = (options.clip_range, options.clip_range_high, options.dual_clip)
        loss, clip_fraction = policy_loss(logprobs, part.old_logprobs, part.advantages, seq.mask, *clips)
        entropy = masked_mean(entropies, seq.mask)
        policy.backward((loss - options.entropy_coef * entropy) * share, is_last)
        difference = torch.where(seq.mask, logprobs.detach() - part.old_logprobs, 0)
        ratio = difference.exp()
        means = {
            "loss/policy_avg": loss,
            "policy/clipfrac_avg": clip_fraction,
            "policy/entropy_avg": entropy,
            "policy/approxkl_avg": masked_mean(k2(logprobs.detach(), part.old_logprobs), seq.mask),
            "val/ratio": masked_mean(ratio, seq.mask),
            "difference": masked_mean(difference.abs(), seq.mask),
        }
        return means, {"ratio": torch.where(seq.mask, ratio, 0).max()}

    def _add_ptx(self, policy, number: int) -> float:
        """Adds the gradient of the PTX loss; returns this rank's share of the loss."""
        total = 0.0
        for loss in self.ptx.losses(policy, number):
            policy.backward(self.ptx.coef * loss, is_last=False)  # those of the rollout follow
            total += loss.item()
        return total

    def _update_critic(self, critic, batch: Minibatch, rows: Tensor) -> dict[str, float]:
        options, record, before = self.options, defaultdict(float), critic.num_backwards
        for part, share, is_last in batch.micro_batches(rows, options.micro_batch_size):
            seq = part.sequences
            values = response_values(critic, seq.ids, seq.attention_mask, seq.mask.shape[1])
            loss, clip_fraction = value_loss(values, part.old_values, part.returns, seq.mask, options.value_clip_range)
            critic.backward(options.value_coef * loss * share, is_last)
            record["loss/value_avg"] += (loss * share).item()
            record["val/clipfrac_avg"] += (clip_fraction * share).item()
            record["num_tokens"] += seq.mask.sum().item()
        record["num_backwards"] = critic.num_backwards - before
        record = _of_all_ranks(record, "sum")
        self._check_counts(critic, record, batch, rows)
        errors = torch.where(batch.sequences.mask, batch.old_values - batch.returns, 0)[rows]
        return record | {"critic/grad_norm": self.first_steps.step(critic, has_signal=bool(errors.any()))}

    def _check_counts(self, engine, record: dict[str, float], batch: Minibatch, rows: Tensor, num_others: int = 0):
        """Takes the counts of all ranks out of the record and compares them with the minibatch's."""
        found = int(record.pop("num_tokens")), int(record.pop("num_backwards"))
        wanted = int(batch.sequences.mask[rows].sum()), _num_micro_batches(len(rows), self.options.micro_batch_size)
        check_all_counted(engine.name, found, (wanted[0], wanted[1] + num_others))

    def _decay_learning_rates(self, policy, critic, step: int) -> None:
        for engine in (policy, critic):
            engine.set_learning_rate(1 - step / self.options.num_steps)

    def _went_too_far(self, record: dict[str, float]) -> bool:
        limit = self.options.target_kl
        return limit is not None and record.get("policy/approxkl_avg", 0.0) > limit

    def _summary(self, metrics: dict[str, list[float]], policy, began: float) -> dict[str, float]:
        means = {name: sum(values) / len(values) for name, values in metrics.items() if name != "val/ratio_max"}
        if "val/ratio_max" in metrics:
            means["val/ratio_max"] = max(metrics["val/ratio_max"])
        means["val/num_updates"] = len(metrics["loss/value_avg"])
        return means | {"lr": policy.learning_rate, "time/update": time.perf_counter() - began}


def _num_micro_batches(num_rows: int, size: int) -> int:
    """Of all ranks together."""
    return world_size() * math.ceil(len(own_places(num_rows)) / size)


def _counts(engine) -> dict[str, int]:
    return {
        f"forwards of the {engine.name}": engine.num_forwards,
        f"backward passes of the {engine.name}": engine.num_backwards,
    }


def _of_all_ranks(record: dict[str, float], how: str) -> dict[str, float]:
    """The sum or the maximum of what the ranks recorded."""
    values = over_ranks(torch.tensor(list(record.values()), dtype=torch.float64), how)
    return dict(zip(record, values.tolist(), strict=True))


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the true positions; 0 when the returns do not vary. All [B, R]."""
    spread = masked_var(returns, mask)
    return (1 - masked_var(returns - values, mask) / spread).item() if spread > 0 else 0.0


MEANINGS = {
    "loss/policy_avg": Meaning(
        "score",
        "the clipped surrogate loss",
        "near 0; its size says nothing of progress",
    ),
    "loss/value_avg": Meaning(
        "score squared, >= 0",
        "the critic's clipped squared error, halved, before ppo.value_coef",
        "falls in the first steps (0.7 to 0.1 in the toy run). Rising: lower ppo.critic_learning_rate",
    ),
    "loss/ptx_avg": Meaning(
        "nats per learned token, >= 0",
        "loss on the demonstrations that ppo.ptx_coef mixes in, before the coefficient",
        "near the SFT policy's loss. Rising: the policy forgets; raise ppo.ptx_coef or ppo.kl_coef",
    ),
    "policy/approxkl_avg": Meaning(
        "nats per token, >= 0",
        "how far an update takes the policy from the one that sampled: mean of (logprob - old_logprob)^2 / 2 (k2)",
        "below 0.03. Above: lower ppo.learning_rate or ppo.num_epochs, or set ppo.target_kl",
    ),
    "policy/clipfrac_avg": Meaning(
        "share of tokens, 0 to 1",
        "tokens whose ratio has left 1 so far that the clip stopped their gradient",
        "0.01 to 0.2. Near 0: the steps are small, ppo.learning_rate may be higher; above: as policy/approxkl_avg",
    ),
    "policy/entropy_avg": Meaning(
        "nats per token",
        "entropy of the next-token distribution at rollout.temperature",
        "as objective/entropy; it does not grow with length",
    ),
    "policy/grad_norm": Meaning(
        "norm, >= 0",
        "of the policy's gradient, before ppo.max_grad_norm clips it",
        "steady (0.3 to 1.6 in the toy run); single peaks are what the clip is for. Growing: lower ppo.learning_rate",
    ),
    "critic/grad_norm": Meaning("norm, >= 0", "the same of the critic's gradient", "falls with loss/value_avg"),
    "val/clipfrac_avg": Meaning(
        "share of tokens, 0 to 1",
        "tokens whose value has left its old one so far that the clip held it",
        "high in the first steps, then near 0. Staying high: widen ppo.value_clip_range",
    ),
    "val/ratio": Meaning(
        "1 is no change",
        "probability of the sampled tokens by the policy now, as a multiple of the one they were sampled with",
        "within a few hundredths of 1",
    ),
    "val/ratio_max": Meaning(
        "1 is no change",
        "the greatest such ratio of a token in the step",
        "a few units; the clip takes its effect away. Often above 10: as policy/approxkl_avg",
    ),
    "val/num_updates": Meaning(
        "optimizer steps",
        "of the critic in this step",
        "ppo.num_epochs * ppo.batch_size / ppo.minibatch_size; fewer where ppo.target_kl ended the epochs",
    ),
    "lr": Meaning("", "the policy's learning rate in this step", "falls linearly from ppo.learning_rate towards 0"),
    "time/update": Meaning("seconds", "the optimizer steps of policy and critic", "steady"),
}
