"""Scores of responses: from a reward artifact, from a function named in the config, or a weighted sum of these."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from reward.asking import Asking, ask
from reward.rules import load_rule
from rlhf.artifacts.manifest import verify
from rlhf.config.schema import RewardTerm
from rlhf.distributed import failing_together
from rlhf.models.opening import open_scalar
from rlhf.models.reading import Reading
from rlhf.models.scalars import Scalar
from rlhf.ppo.scores import Score, Scored
from rlhf.text.batches import pad_right
from rlhf.text.encoding import encode_sample
from rlhf.text.prompts import within
from rlhf.text.tokenizer import load_tokenizer

Scorer = Callable[..., Tensor]  # (prompts, responses, records=None) -> one score per response, float32 [B]


class RewardScorer:
    """A reward model's score of (prompt, response), in its own template and tokens, read at the closing EOS."""

    def __init__(self, model: Scalar, tokenizer, max_prompt_tokens: int, batch_size: int):
        self.model, self.tokenizer = model, tokenizer
        self.max_prompt_tokens, self.batch_size = max_prompt_tokens, batch_size

    @torch.no_grad()
    def __call__(self, prompts: list, responses: list[str], records: list[dict] | None = None) -> Tensor:
        """prompts: messages, or strings for a single user turn; returns float32 [B]. It has no use for records."""
        rows = [self._encode(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        scores = torch.zeros(len(rows))
        for start in range(0, len(rows), self.batch_size):
            part = by_length[start : start + self.batch_size]
            ids, mask = (
                x.to(self.model.device) for x in pad_right([rows[i] for i in part], self.tokenizer.pad_token_id)
            )
            scores[part] = self.model.scores(ids, mask).cpu()
        return scores

    def _encode(self, prompt, response: str) -> list[int]:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        context = within(self.tokenizer, messages, self.max_prompt_tokens)
        return context.ids + encode_sample(self.tokenizer, context, response)


def load_scorer(
    path: str | Path,
    normalised: bool = False,
    batch_size: int = 64,
    prepare: Callable[[Scalar], Scalar] = lambda model: model,
    trust_remote_code: bool = False,
) -> RewardScorer:
    """The scorer of a reward artifact, after its files were verified. Raises ArtifactError.

    normalised: (score - mean) / std with the mean and std that the reward stage measured on SFT samples. prepare: what
    the model goes through once it is loaded; a whole one is on the CPU then, an adapter on a base where models live.
    """
    path, manifest = Path(path), verify(path)
    norm = manifest["reward_norm"] if normalised else {"mean": 0.0, "std": 1.0}
    tokenizer = load_tokenizer(str(path / "model"), trust_remote_code=trust_remote_code)
    how = Reading.of_artifact(manifest, trust_remote_code)
    model = prepare(open_scalar(path, manifest, tokenizer, how, mean=norm["mean"], std=norm["std"]))
    return RewardScorer(model, tokenizer, manifest["config"]["data.max_prompt_tokens"], batch_size)


def rule_score(name: str, how: Asking = Asking()) -> Scorer:  # noqa: B008, it is frozen
    """A rule (`module:function`) as a score. Where it fails on one rank, it fails on all."""
    rule = load_rule(name)

    def score(prompts: list, responses: list[str], records: list[dict] | None = None) -> Tensor:
        with failing_together():
            scores = ask(rule, name, how, prompts, responses, records or [{}] * len(responses))
        return torch.tensor(scores, dtype=torch.float32)

    return score


@dataclass(frozen=True)
class Term:
    """One summand of the reward: scale * score, within +- clip, then times the weight."""

    name: str
    score: Scorer
    weight: float = 1.0
    scale: float = 1.0
    clip: float | None = None

    def __call__(self, prompts: list, responses: list[str], records: list[dict]) -> Tensor:
        """What it says before its weight, [B]."""
        scores = self.scale * self.score(prompts, responses, records)
        return scores if self.clip is None else scores.clamp(-self.clip, self.clip)


def load_reward(
    terms: list[RewardTerm],
    reward_path: str,
    batch_size: int,
    prepare: Callable[[Scalar], Scalar] = lambda model: model,
    trust_remote_code: bool = False,
    scorer: RewardScorer | None = None,
    how: Asking = Asking(),  # noqa: B008, it is frozen
) -> Score:
    """The reward that PPO optimises: the weighted sum of terms, reward models normalised.

    prepare: as in load_scorer. scorer: that of the artifact at reward_path, where it was loaded before. how: rules are
    asked. A term's source: "reward" for the artifact at reward_path, another artifact's path, or `module:function`.
    """

    def load(source: str) -> Scorer:
        if ":" in source:
            return rule_score(source, how)
        if source == "reward" and scorer is not None:
            return scorer
        path = reward_path if source == "reward" else source
        return load_scorer(path, True, batch_size, prepare, trust_remote_code)

    names = term_names([term.source for term in terms])
    return weighted_sum(
        [
            Term(name, load(term.source), term.weight, term.scale, term.clip)
            for name, term in zip(names, terms, strict=True)
        ]
    )


def term_names(sources: list[str]) -> list[str]:
    """A short name of each source, no two the same: `brief` of my_rules:brief, the last folders of a path."""
    short = [source.split(":")[-1] if ":" in source else "/".join(Path(source).parts[-2:]) for source in sources]
    return [name if short.count(name) == 1 else f"{name}_{i + 1}" for i, name in enumerate(short)]


def weighted_sum(terms: list[Term]) -> Score:
    """sum of weight * score over the terms, and what each says where there are several."""

    def score(prompts: list, responses: list[str], records: list[dict]) -> Scored:
        said = {term.name: term(prompts, responses, records) for term in terms}
        total = sum(term.weight * said[term.name] for term in terms)
        return Scored(total, said if len(terms) > 1 else {})

    return score
