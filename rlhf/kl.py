"""The price of leaving the SFT policy: estimators of KL, and what sets its coefficient."""

from torch import Tensor

from rlhf.shapes import check_shapes

BELOW_ZERO = -1e-3  # nats per response, by which an estimate must be under 0 to be told; less is rounding
NEGATIVE = (
    "a KL below 0 is no error but a mean of log-ratios over samples (k1, right on average), which falls below 0 by "
    "chance while the KL is small. objective/kl_k3 estimates the same and is never negative"
)


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Unbiased estimate of KL(policy || reference) per token: logprob - ref_logprob. http://joschu.net/blog/kl-approx.html"""
    check_shapes("...", logprobs=logprobs, ref_logprobs=ref_logprobs)
    return logprobs - ref_logprobs


def token_kl(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """The estimate that every token pays, and that is logged and held to ppo.kl_budget: k1."""
    return k1(logprobs, ref_logprobs)


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Low-variance, biased estimate: k1^2 / 2."""
    return k1(logprobs, ref_logprobs) ** 2 / 2


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Unbiased estimate that is never negative: exp(-k1) - 1 + k1."""
    difference = k1(logprobs, ref_logprobs)
    return (-difference).exp() - 1 + difference


class FixedKL:
    """A coefficient that stays as it is."""

    def __init__(self, coef: float):
        self.coef = coef

    def update(self, mean_kl: float, num_responses: int) -> None:
        """Nothing to learn from a rollout."""


class AdaptiveKL:
    """A coefficient that follows a target KL (nats per response). Ziegler et al. 2019, section 2.2."""

    def __init__(self, coef: float, target: float, horizon: int):
        self.coef, self.target, self.horizon = coef, target, horizon

    def update(self, mean_kl: float, num_responses: int) -> None:
        """kl_coef *= 1 + clip(kl / target - 1, -0.2, 0.2) * num_responses / horizon."""
        error = min(max(mean_kl / self.target - 1, -0.2), 0.2)
        self.coef *= 1 + error * num_responses / self.horizon
