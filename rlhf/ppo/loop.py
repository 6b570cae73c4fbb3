"""The PPO loop. Ziegler et al. 2019, https://arxiv.org/abs/1909.08593; Ouyang et al. 2022, section 3.5."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rlhf.advantages import gae, kl_penalised_rewards
from rlhf.errors import NumericsError
from rlhf.experience import PromptBatch, Rollout
from rlhf.invariants import check_sampled_is_scored, check_starts_at_reference
from rlhf.learner import Learner
from rlhf.metrics import rollout_metrics
from rlhf.ops import whiten
from rlhf.ppo.update import Ppo
from rlhf.scores import Score


def ppo_steps(
    learner: Learner,
    ref_policy,
    score: Score,
    collect: Callable[..., Rollout],
    ppo: Ppo,
    prompts: Iterator[PromptBatch],
    first_step: int,
    sampling_tolerance: float,
) -> Iterator[tuple[int, dict[str, float]]]:
    """Trains the learner step by step, from first_step on; after each, (number of steps done, its metrics).

    collect: a Collector. prompts: from first_step on. sampling_tolerance: how far the decoder's log-probabilities may
    be from the training forward's, in nats, the mean over tokens.
    """
    policy, critic, kl, options = learner.policy, learner.critic, learner.kl, ppo.options
    for step in range(first_step, options.num_steps):
        batch = next(prompts)  # B prompts
        rollout = collect(policy.module, critic.module, ref_policy, score, batch)
        with numerics_at(step, batch):
            if step == 0 and options.start_from is None:
                check_starts_at_reference(rollout, ppo.tolerance)
            check_sampled_is_scored(rollout, sampling_tolerance)
            rewards = kl_penalised_rewards(
                rollout.scores, rollout.logprobs, rollout.ref_logprobs, rollout.mask, kl.coef
            )
            final_values = rollout.cut_values if options.bootstrap_cut else None
            advantages, returns = gae(rewards, rollout.values, rollout.mask, options.gamma, options.lam, final_values)
            if options.whiten_advantages:
                advantages = whiten(advantages, rollout.mask)
            stats = ppo.update(policy, critic, rollout, advantages, returns, step)
        metrics = rollout_metrics(rollout, returns, kl.coef) | stats
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
