"""The experience of one PPO step: responses, their scores, and what policy and reference say about them.

Shapes: B responses, P prompt tokens, R response tokens, T = P + R.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.data.load import Prompt
from rlhf.distributed import gather_rows, own_places
from rlhf.kl import token_kl
from rlhf.models.policies import response_logprobs
from rlhf.ppo.scores import Score, ScoreShaping, score_all
from rlhf.rollout.responses import Responses
from rlhf.rollout.sampling import Sampler
from rlhf.seeding import generator
from rlhf.shapes import check_shapes
from rlhf.text.batches import pad_left


@dataclass(frozen=True)
class PromptBatch:
    """The prompts of one step: token ids, messages, the place each was read from, its record's other fields."""

    step: int
    ids: list[list[int]]
    messages: list
    where: list[str]
    records: list[dict]

    @classmethod
    def of(cls, step: int, prompts: list[Prompt], ids: list[list[int]]) -> "PromptBatch":
        return cls(
            step=step,
            ids=ids,
            messages=[prompt.messages for prompt in prompts],
            where=[prompt.where for prompt in prompts],
            records=[prompt.meta for prompt in prompts],
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def named(self) -> str:
        """Where they were read, for an error message."""
        return f"prompts {self.where[0]} and {len(self) - 1} more"

    def __getitem__(self, places: range) -> "PromptBatch":
        """The prompts at these places."""
        return PromptBatch(
            step=self.step,
            ids=[self.ids[i] for i in places],
            messages=[self.messages[i] for i in places],
            where=[self.where[i] for i in places],
            records=[self.records[i] for i in places],
        )


def shuffled(stream: str, seed: int, num_records: int, places: range) -> list[int]:
    """The records at these places of an endless row: all of them once an epoch, in a fresh order each time."""
    chosen, orders = [], {}
    for place in places:
        epoch = place // num_records
        if epoch not in orders:
            orders[epoch] = torch.randperm(num_records, generator=generator(seed, stream, epoch)).tolist()
        chosen.append(orders[epoch][place % num_records])
    return chosen


def prompt_batches(
    prompts: list,
    ids: list[list[int]],
    batch_size: int,
    seed: int,
    first_step: int = 0,
    responses_per_prompt: int = 1,
) -> Iterator[PromptBatch]:
    """Batches without end, from step first_step on: the prompts, with their ids, in a fresh order every epoch.

    batch_size counts responses: each prompt comes responses_per_prompt times, side by side.
    """
    step, size = first_step, batch_size // responses_per_prompt  # prompts per step
    while True:
        places = range(step * size, (step + 1) * size)
        chosen = [i for i in shuffled("prompts", seed, len(prompts), places) for _ in range(responses_per_prompt)]
        yield PromptBatch.of(step, [prompts[i] for i in chosen], [ids[i] for i in chosen])
        step += 1


@dataclass(frozen=True)
class Sequences:
    """Prompts with their responses. ids, attention_mask: [B, T]; mask: [B, R], true on response tokens."""

    ids: Tensor
    attention_mask: Tensor
    mask: Tensor

    def __post_init__(self):
        check_shapes("B T", ids=self.ids, attention_mask=self.attention_mask)
        check_shapes("B", first_ids=self.ids[:, 0], first_of_responses=self.mask[:, 0])

    def __len__(self) -> int:
        return self.ids.shape[0]

    def rows(self, rows) -> "Sequences":
        """The chosen rows, with all columns. rows: indices or a slice."""
        return Sequences(self.ids[rows], self.attention_mask[rows], self.mask[rows])

    def __getitem__(self, rows) -> "Sequences":
        """The chosen rows, without the columns that only the others need. rows: indices or a slice."""
        chosen = self.rows(rows)
        num_prompt = chosen.ids.shape[1] - chosen.mask.shape[1]
        first = int(chosen.attention_mask.any(0).int().argmax())
        num_response = int(chosen.mask.any(0).sum())
        columns = slice(first, num_prompt + num_response)
        return Sequences(chosen.ids[:, columns], chosen.attention_mask[:, columns], chosen.mask[:, :num_response])


def join(prompts: list[list[int]], responses, pad_id: int) -> Sequences:
    """Left-padded prompts followed by their right-padded responses."""
    prompt_ids, prompt_mask = (x.to(responses.ids.device) for x in pad_left(prompts, pad_id))
    ids = torch.cat([prompt_ids, responses.ids], dim=1)
    attention_mask = torch.cat([prompt_mask, responses.mask], dim=1)
    return Sequences(ids, attention_mask, responses.mask)


@dataclass(frozen=True)
class Rollout:
    """One step's responses, their scores, and what policy and reference say: [B, R] about tokens, [B] about responses.

    logprobs: the training forward's; sampled_logprobs: the decoder's.
    """

    sequences: Sequences
    logprobs: Tensor
    sampled_logprobs: Tensor
    ref_logprobs: Tensor
    entropies: Tensor
    scores: Tensor
    raw_scores: Tensor
    term_scores: dict[str, Tensor]  # of the terms that raw_scores sums, where there are several
    terminated: Tensor
    texts: list[str]
    seconds: dict[str, float]  # of sampling ("rollout") and of the models' scoring ("score")

    def __post_init__(self):
        tokens = ("logprobs", "sampled_logprobs", "ref_logprobs", "entropies", "mask")
        responses = ("scores", "raw_scores", "terminated")
        check_shapes("B R", **{name: getattr(self, name) for name in tokens})
        check_shapes("B", **{name: getattr(self, name) for name in responses}, **self.term_scores, lengths=self.lengths)

    @property
    def mask(self) -> Tensor:
        return self.sequences.mask

    @property
    def lengths(self) -> Tensor:
        """Tokens per response, [B]."""
        return self.mask.sum(-1)

    @property
    def sampling_difference(self) -> Tensor:
        """How far the decoder's log-probabilities are from the training forward's, nats per token, [B, R]."""
        return torch.where(self.mask, self.logprobs - self.sampled_logprobs, 0).abs()

    @property
    def kl(self) -> Tensor:
        """The estimate of KL from the reference, nats per response, [B]."""
        return torch.where(self.mask, token_kl(self.logprobs, self.ref_logprobs), 0).sum(-1)

    @property
    def mean_kl(self) -> float:
        return self.kl.mean().item()


class Collector:
    """Samples responses, asks reward, policy and reference: each rank about its share, then all know all."""

    def __init__(self, sampler: Sampler, shaping: ScoreShaping, micro_batch_size: int):
        self.sampler, self.shaping, self.micro_batch_size = sampler, shaping, micro_batch_size

    def __call__(self, policy, ref_policy, score: Score, batch: PromptBatch) -> Rollout:
        """One rollout. Log-probabilities are the training forward's, not the decoder's: same dtype, same mode."""
        began = time.perf_counter()
        places, pad_id = own_places(len(batch)), self.sampler.tokenizer.pad_token_id
        own = batch[places]
        responses = self.sampler(policy, own.ids, "rollout", batch.step, places.start)
        sampled = time.perf_counter()
        texts = self.sampler.texts(responses)
        sequences = join(own.ids, responses, pad_id)
        temperature, size = self.sampler.temperature, self.micro_batch_size
        logprobs, entropies = logprobs_of(policy, sequences, temperature, size)
        ref_logprobs, _ = logprobs_of(ref_policy, sequences, temperature, size)
        scored, texts = score_all(score, own.messages, texts, own.records, logprobs)
        parts = (responses.ids, responses.mask, responses.terminated, responses.logprobs)
        responses = Responses(*map(gather_rows, parts))
        logprobs, ref_logprobs, entropies = map(gather_rows, (logprobs, ref_logprobs, entropies))
        return Rollout(
            sequences=join(batch.ids, responses, pad_id),
            logprobs=logprobs,
            sampled_logprobs=responses.logprobs,
            ref_logprobs=ref_logprobs,
            entropies=entropies,
            scores=self.shaping(scored.total, responses.terminated),
            raw_scores=scored.total,
            term_scores=scored.terms,
            terminated=responses.terminated,
            texts=texts,
            seconds={"rollout": sampled - began, "score": time.perf_counter() - sampled},
        )


@torch.no_grad()
def logprobs_of(policy, sequences: Sequences, temperature: float, micro_batch_size: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of the response tokens, [B, R] each, zero where the mask is false."""

    def forward(part: Sequences):
        return response_logprobs(policy, part.ids, part.attention_mask, part.mask.shape[1], temperature)

    return sweep(forward, sequences, micro_batch_size, num_outputs=2)


def sweep(forward, sequences: Sequences, micro_batch_size: int, num_outputs: int) -> tuple[Tensor, ...]:
    """forward over micro-batches of similar length, each trimmed to its own tokens; the results in the old order."""
    outputs = tuple(torch.zeros(sequences.mask.shape, device=sequences.ids.device) for _ in range(num_outputs))
    by_length = sequences.attention_mask.sum(-1).argsort()
    for rows in by_length.split(micro_batch_size):
        part = sequences[rows]
        width = part.mask.shape[1]
        for output, result in zip(outputs, forward(part), strict=True):
            output[rows, :width] = torch.where(part.mask, result, 0)
    return outputs
