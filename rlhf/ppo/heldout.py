"""How the policy does on held-out prompts while it trains, and which policy was the best one so far."""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from rlhf.data.load import Prompt
from rlhf.distributed import gather_rows, own_places
from rlhf.kl import token_kl
from rlhf.ppo.experience import join, logprobs_of
from rlhf.ppo.scores import Score, ScoreShaping, score_all
from rlhf.rollout.sampling import Sampler
from rlhf.tracking.meanings import Meaning


@dataclass(frozen=True)
class Answers:
    """Responses to held-out prompts. texts [B]; scores (raw), kl (from the SFT policy), lengths, terminated: [B]."""

    texts: list[str]
    scores: Tensor
    kl: Tensor
    lengths: Tensor
    terminated: Tensor
    term_scores: dict[str, Tensor] = field(default_factory=dict)  # of the reward's terms, where there are several


def answer(
    policy,
    ref_policy,
    score: Score,
    sampler: Sampler,
    ids: list[list[int]],
    prompts: list[Prompt],
    micro_batch_size: int,
    sample: int = 0,
) -> Answers:
    """One response per prompt, with its score and its KL. The same seeds for every policy; another `sample`, others."""
    places = own_places(len(ids))
    own = [min(place, len(ids) - 1) for place in places]  # equally many on every rank
    responses = sampler(policy, [ids[i] for i in own], "heldout", sample, places.start)
    texts = sampler.texts(responses)
    sequences = join([ids[i] for i in own], responses, sampler.tokenizer.pad_token_id)
    logprobs, ref_logprobs = (
        logprobs_of(model, sequences, sampler.temperature, micro_batch_size)[0] for model in (policy, ref_policy)
    )
    kl = token_kl(logprobs, ref_logprobs).sum(-1)  # zero where there is no token
    messages, records = [prompts[i].messages for i in own], [prompts[i].meta for i in own]
    scored, texts = score_all(score, messages, texts, records, kl, "held-out prompts")
    numbers = (kl, responses.mask.sum(-1), responses.terminated)
    kl, lengths, terminated = (gather_rows(x)[: len(ids)].cpu() for x in numbers)
    terms = {name: values[: len(ids)].cpu() for name, values in scored.terms.items()}
    return Answers(texts[: len(ids)], scored.total[: len(ids)].cpu(), kl, lengths, terminated, terms)


def answer_metrics(answers: Answers, baseline: Answers, shaping: ScoreShaping) -> dict[str, float]:
    """eval/* figures of a policy; its win rate is against the SFT policy's answers, a tie is half a win.

    Scores are those that PPO optimises (clipped, without EOS penalised), by the scale of now; raw ones stand apart.
    """
    scores, others = (shaping.frozen(each.scores, each.terminated) for each in (answers, baseline))
    wins = (scores > others).float() + 0.5 * (scores == others).float()
    return {
        "eval/scores": scores.mean().item(),
        "eval/raw_scores": answers.scores.mean().item(),
        "eval/kl": answers.kl.mean().item(),
        "eval/length_mean": answers.lengths.float().mean().item(),
        "eval/eos_rate": answers.terminated.float().mean().item(),
        "eval/win_rate": wins.mean().item(),
    } | {f"eval/scores/{name}": values.mean().item() for name, values in answers.term_scores.items()}


class Evaluation:
    """Answers the held-out prompts with a policy and compares with the SFT policy's answers to them."""

    def __init__(
        self, ref_policy, score: Score, sampler: Sampler, prompts: list, ids: list[list[int]], micro_batch_size: int
    ):
        self.prompts = prompts
        self.answer = partial(
            answer,
            ref_policy=ref_policy,
            score=score,
            sampler=sampler,
            ids=ids,
            prompts=prompts,
            micro_batch_size=micro_batch_size,
        )
        self.baseline = self.answer(ref_policy)

    def __call__(self, policy) -> Answers:
        return self.answer(policy)

    def metrics(self, answers: Answers, shaping: ScoreShaping) -> dict[str, float]:
        """The eval/* figures."""
        return answer_metrics(answers, self.baseline, shaping)

    def samples(self, answers: Answers) -> list[dict]:
        """A row per prompt to look at."""
        shown = [prompt.messages for prompt in self.prompts]
        rows = zip(shown, answers.texts, answers.scores.tolist(), self.baseline.texts, strict=True)
        return [
            {"prompt": list(prompt), "response": text, "score": score, "sft_response": sft_text}
            for prompt, text, score, sft_text in rows
        ]


@dataclass
class BestPolicy:
    """The weights with the best held-out answers, by what PPO optimises, within the KL budget. First: the SFT policy.

    Its answers' raw scores are kept, not their mean: a running normalisation moves the scale on which two policies are
    compared. weights: the trainable ones, whole, on rank 0 alone. num_over_budget: those beyond the budget.
    """

    kl_budget: float
    shaping: ScoreShaping
    step: int = -1
    kl: float = 0.0
    raw_scores: Tensor = field(default_factory=lambda: torch.zeros(0))
    terminated: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    num_over_budget: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """The mean of what PPO optimises, by the scale of now."""
        return self._mean(self.raw_scores, self.terminated) if len(self.raw_scores) else float("-inf")

    @property
    def raw_score(self) -> float:
        return self.raw_scores.mean().item()

    def offer(self, step: int, answers: Answers, policy) -> None:
        """Keeps a copy of the weights of a policy's engine when its answers are the best so far."""
        kl = answers.kl.mean().item()
        if not kl <= self.kl_budget:
            self.num_over_budget += 1
        elif self._mean(answers.scores, answers.terminated) > self.score:
            self.step, self.kl, self.weights = step, kl, policy.weights()
            self.raw_scores, self.terminated = answers.scores, answers.terminated

    def _mean(self, raw: Tensor, terminated: Tensor) -> float:
        return self.shaping.frozen(raw, terminated).mean().item()

    def state(self) -> dict:
        """All but the weights, for a checkpoint."""
        answers = {"raw_scores": self.raw_scores.tolist(), "terminated": self.terminated.tolist()}
        return {"step": self.step, "kl": self.kl, "num_over_budget": self.num_over_budget, **answers}

    def load_state(self, state: dict, weights: dict[str, Tensor]) -> None:
        """Takes what `state` gave.

        Checkpoints of before held the mean raw score alone. Where shaping acts it says nothing of what is optimised:
        then the next policy within the budget is better.
        """
        of_before = [] if self.shaping.acts or "score" not in state else [state["score"]]
        self.step, self.kl, self.weights = state["step"], state["kl"], weights
        self.num_over_budget = state.get("num_over_budget", 0)
        self.raw_scores = torch.tensor(state.get("raw_scores", of_before))
        self.terminated = torch.tensor(state.get("terminated", [True] * len(of_before)), dtype=torch.bool)


MEANINGS = {
    "eval/scores": Meaning(
        "as objective/scores",
        "mean score of the answers to the held-out prompts, by the scale of now",
        "rises with objective/scores; the exported policy is the one with the highest, within ppo.kl_budget. Falling "
        "while objective/scores rises: the prompts are learned by heart; use more of them",
    ),
    "eval/raw_scores": Meaning(
        "as the reward gives it",
        "the same before ppo.score_clip, ppo.running_score_norm and ppo.missing_eos_penalty",
        "as objective/raw_scores",
    ),
    "eval/kl": Meaning(
        "nats per response",
        "KL of the held-out answers from the SFT policy (k1)",
        "near objective/kl and below ppo.kl_budget; a policy beyond it is not exported",
    ),
    "eval/length_mean": Meaning("tokens", "mean length of the held-out answers", "as response/length_mean"),
    "eval/eos_rate": Meaning("share, 0 to 1", "held-out answers that end by themselves", "as response/eos_rate"),
    "eval/win_rate": Meaning(
        "share, 0 to 1",
        "held-out answers with a higher score than the SFT policy's to the same prompt; a tie is half a win",
        "0.5 at step 0, then rises (0.86 in the toy run). By the reward that was optimised: stages.evaluate asks a "
        "judge that was not",
    ),
    "eval/scores/NAME": Meaning(
        "as the term gives it",
        "mean of one term of ppo.rewards over the held-out answers, before its weight; where there are several terms",
        "as objective/scores/NAME",
    ),
}
