"""The PPO update: epochs of minibatches over one rollout. Schulman et al. 2017, https://arxiv.org/abs/1707.06347."""

import time
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.errors import NumericsError
from rlhf.experience import Rollout, Sequences
from rlhf.losses import policy_loss, value_loss
from rlhf.models import response_logprobs, response_values
from rlhf.ops import masked_mean, masked_var
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

    def micro_batches(self, size: int):
        """Pairs of (part, share of the tokens): summed with these shares, means over parts are the mean over all."""
        num_tokens = self.sequences.mask.sum()
        for rows in torch.arange(len(self.sequences)).split(size):
            part = self[rows]
            yield part, part.sequences.mask.sum() / num_tokens


class Ppo:
    """The update rule with its options (the `ppo` section of the config)."""

    def __init__(self, options, temperature: float, seed: int, tolerance: float):
        self.options, self.temperature, self.seed, self.tolerance = options, temperature, seed, tolerance

    def update(
        self, policy, critic, rollout: Rollout, advantages: Tensor, returns: Tensor, step: int
    ) -> dict[str, float]:
        """num_epochs passes over the rollout in fresh orders; returns the step's metrics, means over minibatches."""
        batch = Minibatch(rollout.sequences, rollout.logprobs, rollout.values, advantages, returns)
        trains_policy = step >= self.options.critic_warmup_steps
        began = time.perf_counter()
        self._decay_learning_rates(policy, critic, step)
        metrics: dict[str, list[float]] = defaultdict(list)
        for epoch in range(self.options.num_epochs):
            shuffle = generator(self.seed, "minibatches", step, epoch)
            order = torch.randperm(len(batch.sequences), generator=shuffle)
            for rows in order.split(self.options.minibatch_size):
                first = not metrics
                record = self._update_policy(policy, batch[rows], first) if trains_policy else {}
                record |= self._update_critic(critic, batch[rows])
                for name, value in record.items():
                    metrics[name].append(value)
                if self._went_too_far(record):
                    return self._summary(metrics, policy, began)
        return self._summary(metrics, policy, began)

    def _update_policy(self, policy, batch: Minibatch, first: bool) -> dict[str, float]:
        options, record = self.options, defaultdict(float)
        for part, share in batch.micro_batches(options.micro_batch_size):
            seq = part.sequences
            logprobs, entropies = response_logprobs(
                policy, seq.ids, seq.attention_mask, seq.mask.shape[1], self.temperature, options.entropy_coef > 0
            )
            if first:
                check_on_policy(logprobs, part.old_logprobs, seq.mask, self.tolerance)
            loss, clip_fraction = policy_loss(
                logprobs,
                part.old_logprobs,
                part.advantages,
                seq.mask,
                options.clip_range,
                options.clip_range_high,
                options.dual_clip,
            )
            entropy = masked_mean(entropies, seq.mask)
            policy.backward((loss - options.entropy_coef * entropy) * share)
            difference = torch.where(seq.mask, logprobs.detach() - part.old_logprobs, 0)
            ratio = difference.exp()
            record["loss/policy_avg"] += (loss * share).item()
            record["policy/clipfrac_avg"] += (clip_fraction * share).item()
            record["policy/entropy_avg"] += (entropy * share).item()
            record["policy/approxkl_avg"] += (masked_mean(difference**2 / 2, seq.mask) * share).item()
            record["val/ratio"] += (masked_mean(ratio, seq.mask) * share).item()
            record["val/ratio_max"] = max(record["val/ratio_max"], torch.where(seq.mask, ratio, 0).max().item())
        record["policy/grad_norm"] = policy.step()
        return record

    def _update_critic(self, critic, batch: Minibatch) -> dict[str, float]:
        options, record = self.options, defaultdict(float)
        for part, share in batch.micro_batches(options.micro_batch_size):
            seq = part.sequences
            values = response_values(critic, seq.ids, seq.attention_mask, seq.mask.shape[1])
            loss, clip_fraction = value_loss(values, part.old_values, part.returns, seq.mask, options.value_clip_range)
            critic.backward(options.value_coef * loss * share)
            record["loss/value_avg"] += (loss * share).item()
            record["val/clipfrac_avg"] += (clip_fraction * share).item()
        record["critic/grad_norm"] = critic.step()
        return record

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


def check_on_policy(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, tolerance: float) -> None:
    """Raises NumericsError when, before any update of this rollout, the ratio is not 1."""
    difference = torch.where(mask, logprobs.detach() - old_logprobs, 0).abs().max().item()
    if not difference <= tolerance:
        raise NumericsError(
            f"before the first update the policy's log-probabilities differ by {difference:.2e} from those of the "
            f"rollout (at most {tolerance:.0e} is rounding). Likely causes: dropout that is not 0, another "
            "temperature, another dtype, or a shift by one token"
        )


def check_starts_at_reference(rollout: Rollout, tolerance: float) -> None:
    """Raises NumericsError when the policy's first rollout already has a KL from the reference."""
    difference = torch.where(rollout.mask, rollout.logprobs - rollout.ref_logprobs, 0).abs().max().item()
    if not difference <= tolerance:
        raise NumericsError(
            f"before any update the policy's log-probabilities differ by {difference:.2e} from the reference's (at "
            f"most {tolerance:.0e} is rounding), so KL would not start at 0. Likely causes: two different checkpoints, "
            "or dropout that is not 0"
        )


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the true positions; 0 when the returns do not vary. All [B, R]."""
    spread = masked_var(returns, mask)
    return (1 - masked_var(returns - values, mask) / spread).item() if spread > 0 else 0.0
