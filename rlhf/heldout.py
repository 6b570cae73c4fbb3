"""How the policy does on held-out prompts while it trains, and which policy was the best one so far."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhf.batches import pad_right
from rlhf.distributed import gather, gather_rows, own_places
from rlhf.experience import Score, join, logprobs_of
from rlhf.models import response_logprobs
from rlhf.rollout.sampling import Sampler
from rlhf.scores import check_scores


@dataclass(frozen=True)
class Answers:
    """Responses to the held-out prompts. texts [B]; scores, kl (nats from the SFT policy), lengths, terminated: [B]."""

    texts: list[str]
    scores: Tensor
    kl: Tensor
    lengths: Tensor
    terminated: Tensor


def answer(
    policy,
    ref_policy,
    score: Score,
    sampler: Sampler,
    ids: list[list[int]],
    messages: list,
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
    kl = (logprobs - ref_logprobs).sum(-1)  # zero where there is no token
    scores = score([messages[i] for i in own], texts)
    numbers = (scores.to(kl), kl, responses.mask.sum(-1), responses.terminated)
    scores, kl, lengths, terminated = (gather_rows(x)[: len(ids)].cpu() for x in numbers)
    texts = [text for part in gather(texts) for text in part][: len(ids)]
    check_scores(scores, texts, "held-out prompts")
    return Answers(texts, scores, kl, lengths, terminated)


def answer_metrics(answers: Answers, baseline: Answers) -> dict[str, float]:
    """eval/* figures of a policy; its win rate is against the SFT policy's answers, a tie is half a win."""
    wins = (answers.scores > baseline.scores).float() + 0.5 * (answers.scores == baseline.scores).float()
    return {
        "eval/scores": answers.scores.mean().item(),
        "eval/kl": answers.kl.mean().item(),
        "eval/length_mean": answers.lengths.float().mean().item(),
        "eval/eos_rate": answers.terminated.float().mean().item(),
        "eval/win_rate": wins.mean().item(),
    }


class Evaluation:
    """Answers the held-out prompts with a policy and compares with the SFT policy's answers to them."""

    def __init__(
        self, ref_policy, score: Score, sampler: Sampler, prompts: list, ids: list[list[int]], micro_batch_size: int
    ):
        self.settings = (ref_policy, score, sampler, ids, [prompt.messages for prompt in prompts], micro_batch_size)
        self.baseline = answer(ref_policy, *self.settings)

    def __call__(self, policy) -> tuple[dict[str, float], list[dict]]:
        """The eval/* figures, and a row per prompt to look at."""
        answers = answer(policy, *self.settings)
        messages = self.settings[4]
        rows = zip(messages, answers.texts, answers.scores.tolist(), self.baseline.texts, strict=True)
        samples = [
            {"prompt": prompt[-1]["content"], "response": text, "score": score, "sft_response": sft_text}
            for prompt, text, score, sft_text in rows
        ]
        return answer_metrics(answers, self.baseline), samples


@dataclass
class BestPolicy:
    """The weights with the best held-out score whose KL is within the budget. At step 0 that is the SFT policy.

    weights: the trainable ones, whole, on rank 0 alone.
    """

    kl_budget: float
    step: int = -1
    score: float = float("-inf")
    kl: float = 0.0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def offer(self, step: int, metrics: dict[str, float], policy) -> None:
        """Keeps a copy of the weights of a policy's engine when they are the best so far."""
        if metrics["eval/kl"] <= self.kl_budget and metrics["eval/scores"] > self.score:
            self.step, self.score, self.kl = step, metrics["eval/scores"], metrics["eval/kl"]
            self.weights = policy.weights()


@torch.no_grad()
def perplexity(policy, examples: list[dict], pad_id: int, batch_size: int) -> float | None:
    """exp of the mean loss per learned token of examples {"input_ids", "labels"}; None where there is none."""
    total, count = 0.0, 0
    for i in range(0, len(examples), batch_size):
        part = examples[i : i + batch_size]
        ids, mask = (x.to(policy.device) for x in pad_right([example["input_ids"] for example in part], pad_id))
        learned = pad_right([[label >= 0 for label in example["labels"]] for example in part], False)[0].bool()
        logprobs, _ = response_logprobs(policy, ids, mask, ids.shape[1] - 1)
        learned = learned[:, 1:].to(policy.device)  # the first token has no prediction
        total, count = total - logprobs[learned].sum().item(), count + int(learned.sum())
    return math.exp(total / count) if count else None
