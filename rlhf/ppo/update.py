"""The PPO update: epochs of minibatches over one rollout. Schulman et al. 2017, https://arxiv.org/abs/1707.06347."""

import math
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.kl import k2
from rlhf.losses import policy_loss
from rlhf.models.policies import response_logprobs
from rlhf.ops import masked_mean
from rlhf.ppo.critic import CriticLesson
from rlhf.ppo.experience import Rollout
from rlhf.ppo.invariants import FirstStep, check_equal_counts, check_on_policy
from rlhf.ppo.learner import Learner
from rlhf.ppo.minibatch import Minibatch, num_micro_batches, of_all_ranks
from rlhf.ppo.ptx import PtxMix
from rlhf.seeding import generator
from rlhf.tracking.meanings import Meaning


@dataclass(frozen=True)
class PolicyLesson(Minibatch):
    """What the policy learns of each token: old_logprobs, when it was sampled; advantages, what it was worth. [B, R]"""

    old_logprobs: Tensor
    advantages: Tensor


class Ppo:
    """The update rule with its options (the `ppo` section of the config). ptx: demonstrations to learn from beside."""

    def __init__(self, options, temperature: float, seed: int, tolerance: float, ptx: PtxMix | None = None):
        self.options, self.temperature, self.seed, self.tolerance = options, temperature, seed, tolerance
        self.ptx, self.first_step = ptx, FirstStep()

    def update(
        self, learner: Learner, rollout: Rollout, advantages: Tensor, lesson: CriticLesson | None, step: int
    ) -> dict[str, float]:
        """num_epochs passes over the rollout in fresh orders; returns the step's metrics, means over minibatches.

        lesson: what the critic learns, None where there is no critic.
        """
        assert (lesson is None) == (learner.critic is None), "a lesson belongs to a critic, and a critic needs one"
        policy, critic = learner.policy, learner.critic
        batch = PolicyLesson(rollout.sequences, rollout.logprobs, advantages)
        trains_policy = critic is None or step >= self.options.critic_warmup_steps
        began = time.perf_counter()
        for engine in learner.engines:
            engine.set_learning_rate(1 - step / self.options.num_steps)
        records: list[dict[str, float]] = []
        for number, rows in self._minibatches(len(batch.sequences), step):
            record = self._update_policy(policy, batch, rows, number, not records) if trains_policy else {}
            if critic is not None:
                record |= critic.update(lesson, rows)
            records.append(record)
            if self._went_too_far(record):
                break
        check_equal_counts({name: count for engine in learner.engines for name, count in _counts(engine).items()})
        return self._summary(records, policy, began) | ({} if lesson is None else lesson.metrics())

    def _minibatches(self, num_responses: int, step: int) -> Iterator[tuple[int, Tensor]]:
        """(number since the start of the run, rows) of each optimizer step: every epoch in a fresh order."""
        for epoch in range(self.options.num_epochs):
            shuffle = generator(self.seed, "minibatches", step, epoch)
            parts = torch.randperm(num_responses, generator=shuffle).split(self.options.minibatch_size)
            first = (step * self.options.num_epochs + epoch) * len(parts)
            yield from enumerate(parts, first)

    def _update_policy(self, policy, batch: PolicyLesson, rows: Tensor, number: int, first: bool) -> dict[str, float]:
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
        record, largest = of_all_ranks(record, "sum"), of_all_ranks(largest, "max")
        difference = record.pop("difference")
        if first:
            check_on_policy(difference, self.tolerance)
        num_ptx = num_micro_batches(self.ptx.batch_size, options.micro_batch_size) if self.ptx else 0
        batch.check_counts(policy.name, record, rows, options.micro_batch_size, num_ptx)
        has_signal = bool(batch.advantages[rows].any()) or options.entropy_coef > 0 or self.ptx is not None
        norm = self.first_step(policy, has_signal)
        return record | {"val/ratio_max": largest["ratio"], "policy/grad_norm": norm}

    def _add_policy_gradient(
        self, policy, part: PolicyLesson, share: Tensor, is_last: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Adds a micro-batch's gradient; returns the means over its tokens that are logged, and the greatest values."""
        options, seq = self.options, part.sequences
        logprobs, entropies = response_logprobs(
            policy, seq.ids, seq.attention_mask, seq.mask.shape[1], self.temperature, options.entropy_coef > 0
        )
        loss, clip_fraction = policy_loss(
            logprobs,
            part.old_logprobs,
            part.advantages,
            seq.mask,
            clip_range=options.clip_range,
            clip_range_high=options.clip_range_high,
            dual_clip=options.dual_clip,
        )
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

    def _went_too_far(self, record: dict[str, float]) -> bool:
        limit = self.options.target_kl
        return limit is not None and record.get("policy/approxkl_avg", 0.0) > limit

    def _summary(self, records: list[dict[str, float]], policy, began: float) -> dict[str, float]:
        means = {name: sum(record[name] for record in records) / len(records) for name in records[0]}
        if "val/ratio_max" in means:
            means["val/ratio_max"] = max(record["val/ratio_max"] for record in records)
        means["val/num_updates"] = len(records)
        return means | {"lr": policy.learning_rate, "time/update": time.perf_counter() - began}


def _counts(engine) -> dict[str, int]:
    return {
        f"forwards of the {engine.name}": engine.num_forwards,
        f"backward passes of the {engine.name}": engine.num_backwards,
    }


MEANINGS = {
    "loss/policy_avg": Meaning(
        "score",
        "the clipped surrogate loss",
        "near 0; its size says nothing of progress",
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
        "of each model that learns in this step",
        "ppo.num_epochs * ppo.batch_size / ppo.minibatch_size; fewer where ppo.target_kl ended the epochs",
    ),
    "lr": Meaning("", "the policy's learning rate in this step", "falls linearly from ppo.learning_rate towards 0"),
    "time/update": Meaning("seconds", "the optimizer steps of all that learns", "steady"),
}
