"""What is done to the scores of a rollout before they become rewards."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhf.distributed import gather, gather_rows
from rlhf.errors import NumericsError


@dataclass(frozen=True)
class Scored:
    """What a reward says of B responses. total: [B]; terms: of each where there are several, before its weight, [B]."""

    total: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


# (prompts: messages, response texts, the prompts' records) -> Scored
Score = Callable[[list, list[str], list[dict]], Scored]


def score_all(
    score: Score, prompts: list, texts: list[str], records: list[dict], like: Tensor, where: str = ""
) -> tuple[Scored, list[str]]:
    """The scores of every rank's responses, and their texts, on every rank. like: of the device and dtype wanted.

    Raises NumericsError naming the first response whose score is not finite.
    """
    own = score(prompts, texts, records)
    total, *terms = (gather_rows(values.to(like)) for values in (own.total, *own.terms.values()))
    texts = [text for part in gather(texts) for text in part]
    check_scores(total, texts, where)
    return Scored(total, dict(zip(own.terms, terms, strict=True))), texts


class RunningStd:
    """Standard deviation of all numbers seen so far. Chan et al. 1979's update, in float64."""

    def __init__(self):
        self.count, self.mean, self.sum_squares = 0, 0.0, 0.0

    def update(self, x: Tensor) -> None:
        """Takes in the numbers of x, [B]."""
        x = x.double()
        total = self.count + x.numel()
        shift = x.mean().item() - self.mean
        self.sum_squares += ((x - x.mean()) ** 2).sum().item() + shift**2 * self.count * x.numel() / total
        self.mean += shift * x.numel() / total
        self.count = total

    @property
    def std(self) -> float:
        """0 before the first number."""
        return (self.sum_squares / self.count) ** 0.5 if self.count else 0.0


class ScoreShaping:
    """Raw scores to the scores that are optimised: running normalisation, clipping, price of a missing EOS.

    Each is off unless asked for. Its state (`moments`) belongs in the checkpoint.
    """

    def __init__(self, running_norm: bool, clip: float | None, missing_eos_penalty: float):
        self.running_norm, self.clip, self.missing_eos_penalty = running_norm, clip, missing_eos_penalty
        self.moments = RunningStd()

    @property
    def acts(self) -> bool:
        """Whether any option is on."""
        return self.running_norm or self.clip is not None or self.missing_eos_penalty > 0

    def __call__(self, raw: Tensor, terminated: Tensor) -> Tensor:
        """The scores of a rollout, whose raw ones count in the scale from now on. raw, terminated: [B]; returns [B]."""
        if self.running_norm:
            self.moments.update(raw)
        return self.frozen(raw, terminated)

    def frozen(self, raw: Tensor, terminated: Tensor) -> Tensor:
        """The same by the scale as it is now, which stays: how held-out answers are judged. [B], [B] -> [B]"""
        scores, std = raw, self.moments.std
        if self.running_norm and std > 1e-8:  # else all scores so far are equal: there is no scale yet
            scores = raw / std
        if self.clip is not None:
            scores = scores.clamp(-self.clip, self.clip)
        return torch.where(terminated, scores, scores - self.missing_eos_penalty)


def check_scores(scores: Tensor, texts: list[str], where: str = "") -> None:
    """Raises NumericsError naming the first response whose score is not a finite number. scores: [B]."""
    bad = (~torch.isfinite(scores)).nonzero().flatten().tolist()
    if bad:
        raise NumericsError(
            f"{where and where + ': '}the reward of {len(bad)} of {len(texts)} responses is not finite "
            f"(first: response {bad[0]}, {scores[bad[0]].item()}, {texts[bad[0]][:80]!r})"
        )
