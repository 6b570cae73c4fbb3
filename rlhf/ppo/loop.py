"""The PPO loop. Ziegler et al. 2019, https://arxiv.org/abs/1909.08593; Ouyang et al. 2022, section 3.5."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rlhf.advantages import kl_penalised_rewards
from rlhf.errors import NumericsError
from rlhf.ops import whiten
from rlhf.ppo.estimates import Estimate
from rlhf.ppo.experience import PromptBatch, Rollout
from rlhf.ppo.invariants import check_sampled_is_scored, check_starts_at_reference
from rlhf.ppo.learner import Learner
from rlhf.ppo.metrics import rollout_metrics
from rlhf.ppo.scores import Score
from rlhf.ppo.update import Ppo


def ppo_steps(
    learner: Learner,
    ref_policy,
    score: Score,
    collect: Callable[..., Rollout],
    estimate: Estimate,
    ppo: Ppo,
    prompts: Iterator[PromptBatch],
    first_step: int,
    sampling_tolerance: float,
) -> Iterator[tuple[int, dict[str, float]]]:
    """Trains the learner step by step, from first_step on; after each, (number of steps done, its metrics).

    collect: a Collector. estimate: gae_of the critic, or one that needs no critic. prompts: from first_step on.
    sampling_tolerance: how far the decoder's log-probabilities may be from the training forward's, in nats, the mean
    over tokens.
    """
    policy, kl, options = learner.policy, learner.kl, ppo.options
    for step in range(first_step, options.num_steps):
        batch = next(prompts)  # B prompts
        rollout = collect(policy.module, ref_policy, score, batch)
        with numerics_at(step, batch):
            if step == 0 and options.start_from is None:
                check_starts_at_reference(rollout, ppo.tolerance)
            check_sampled_is_scored(rollout, sampling_tolerance)
            rewards = kl_penalised_rewards(
                rollout.scores, rollout.logprobs, rollout.ref_logprobs, rollout.mask, kl.coef
            )
            began = time.perf_counter()
            advantages, lesson = estimate(rollout, rewards)  # lesson: what the critic learns, if there is one
            seconds = time.perf_counter() - began
            if options.whiten_advantages:
                advantages = whiten(advantages, rollout.mask)
            stats = ppo.update(learner, rollout, advantages, lesson, step)
        metrics = rollout_metrics(rollout, kl.coef) | stats | {"time/advantages": seconds}
        kl.update(rollout.mean_kl, len(batch))
        if learner.ema is not None:
            learner.ema.update(policy)
        yield step + 1, metrics


@contextmanager
def numerics_at(step: int, batch: PromptBatch) -> Iterator[None]:
    """Says in which step, and on which prompts, a number went wrong."""
    try:
        yield
    except NumericsError as error:
        raise NumericsError(f"step {step} ({batch.named}): {error}. The last checkpoint is kept") from error
