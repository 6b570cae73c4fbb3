"""The experience of one PPO step: responses, and what every model says about them.

Shapes: B responses, P prompt tokens, R response tokens, T = P + R.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.batches import pad_left
from rlhf.kl import k1
from rlhf.models import response_logprobs, response_values
from rlhf.rollout.sampling import Sampler
from rlhf.scores import ScoreShaping, check_scores
from rlhf.seeding import generator

Score = Callable[[list, list[str]], Tensor]  # (prompts, response texts) -> one score per response, [B]


@dataclass(frozen=True)
class PromptBatch:
    """The prompts of one step: token ids, messages, and the place each was read from."""

    step: int
    ids: list[list[int]]
    messages: list
    where: list[str]

    def __len__(self) -> int:
        return len(self.ids)


def prompt_batches(
    prompts: list, ids: list[list[int]], batch_size: int, seed: int, first_step: int = 0
) -> Iterator[PromptBatch]:
    """Batches without end, from step first_step on: the prompts, with their ids, in a fresh order every epoch."""
    step, num_prompts = first_step, len(prompts)
    orders: dict[int, list[int]] = {}
    while True:
        chosen = []
        for place in range(step * batch_size, (step + 1) * batch_size):
            epoch = place // num_prompts
            if epoch not in orders:
                orders = {epoch: torch.randperm(num_prompts, generator=generator(seed, "prompts", epoch)).tolist()}
            chosen.append(orders[epoch][place % num_prompts])
        yield PromptBatch(
            step, [ids[i] for i in chosen], [prompts[i].messages for i in chosen], [prompts[i].where for i in chosen]
        )
        step += 1


@dataclass(frozen=True)
class Sequences:
    """Prompts with their responses. ids, attention_mask: [B, T]; mask: [B, R], true on response tokens."""

    ids: Tensor
    attention_mask: Tensor
    mask: Tensor

    def __post_init__(self):
        assert self.ids.shape == self.attention_mask.shape and self.mask.shape[0] == self.ids.shape[0]

    def __len__(self) -> int:
        return self.ids.shape[0]

    def __getitem__(self, rows) -> "Sequences":
        """The chosen rows, without the columns that only the others need. rows: indices or a slice."""
        ids, attention_mask, mask = self.ids[rows], self.attention_mask[rows], self.mask[rows]
        num_prompt = ids.shape[1] - mask.shape[1]
        first = int(attention_mask.any(0).int().argmax())
        num_response = int(mask.any(0).sum())
        columns = slice(first, num_prompt + num_response)
        return Sequences(ids[:, columns], attention_mask[:, columns], mask[:, :num_response])


def join(prompts: list[list[int]], responses, pad_id: int) -> Sequences:
    """Left-padded prompts followed by their right-padded responses."""
    prompt_ids, prompt_mask = (x.to(responses.ids.device) for x in pad_left(prompts, pad_id))
    ids = torch.cat([prompt_ids, responses.ids], dim=1)
    attention_mask = torch.cat([prompt_mask, responses.mask], dim=1)
    return Sequences(ids, attention_mask, responses.mask)


@dataclass(frozen=True)
class Rollout:
    """One step's responses. logprobs, ref_logprobs, values, entropies: [B, R]; scores, raw_scores, terminated: [B]."""

    sequences: Sequences
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    entropies: Tensor
    scores: Tensor
    raw_scores: Tensor
    terminated: Tensor
    texts: list[str]
    seconds: dict[str, float]  # of sampling ("rollout") and of the models' scoring ("score")

    def __post_init__(self):
        shapes = {x.shape for x in (self.logprobs, self.ref_logprobs, self.values, self.entropies, self.mask)}
        assert len(shapes) == 1, f"token tensors disagree: {shapes}"
        assert self.scores.shape == self.raw_scores.shape == self.terminated.shape == self.mask.shape[:1]

    @property
    def mask(self) -> Tensor:
        return self.sequences.mask

    @property
    def lengths(self) -> Tensor:
        """Tokens per response, [B]."""
        return self.mask.sum(-1)

    @property
    def kl(self) -> Tensor:
        """KL from the reference by the k1 estimate, nats per response, [B]."""
        return torch.where(self.mask, k1(self.logprobs, self.ref_logprobs), 0).sum(-1)

    @property
    def mean_kl(self) -> float:
        return self.kl.mean().item()


class Collector:
    """Samples responses and asks every model about them."""

    def __init__(self, sampler: Sampler, shaping: ScoreShaping, micro_batch_size: int):
        self.sampler, self.shaping, self.micro_batch_size = sampler, shaping, micro_batch_size

    def __call__(self, policy, critic, ref_policy, score: Score, batch: PromptBatch) -> Rollout:
        """One rollout. Log-probabilities are the training forward's, not the decoder's: same dtype, same mode."""
        began = time.perf_counter()
        responses = self.sampler(policy, batch.ids, "rollout", batch.step)
        sampled = time.perf_counter()
        texts = self.sampler.texts(responses)
        sequences = join(batch.ids, responses, self.sampler.tokenizer.pad_token_id)
        temperature, size = self.sampler.temperature, self.micro_batch_size
        logprobs, entropies = logprobs_of(policy, sequences, temperature, size)
        ref_logprobs, _ = logprobs_of(ref_policy, sequences, temperature, size)
        raw_scores = score(batch.messages, texts).to(logprobs)
        check_scores(raw_scores, texts, f"step {batch.step}")
        return Rollout(
            sequences=sequences,
            logprobs=logprobs,
            ref_logprobs=ref_logprobs,
            values=values_of(critic, sequences, size),
            entropies=entropies,
            scores=self.shaping(raw_scores, responses.terminated),
            raw_scores=raw_scores,
            terminated=responses.terminated,
            texts=texts,
            seconds={"rollout": sampled - began, "score": time.perf_counter() - sampled},
        )


@torch.no_grad()
def logprobs_of(policy, sequences: Sequences, temperature: float, micro_batch_size: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of the response tokens, [B, R] each, zero where the mask is false."""

    def forward(part: Sequences):
        return response_logprobs(policy, part.ids, part.attention_mask, part.mask.shape[1], temperature)

    return _sweep(forward, sequences, micro_batch_size, num_outputs=2)


@torch.no_grad()
def values_of(critic, sequences: Sequences, micro_batch_size: int) -> Tensor:
    """The critic's value before each response token, [B, R], zero where the mask is false."""

    def forward(part: Sequences):
        return (response_values(critic, part.ids, part.attention_mask, part.mask.shape[1]),)

    return _sweep(forward, sequences, micro_batch_size, num_outputs=1)[0]


def _sweep(forward, sequences: Sequences, micro_batch_size: int, num_outputs: int) -> tuple[Tensor, ...]:
    """forward over micro-batches of similar length, each trimmed to its own tokens; the results in the old order."""
    outputs = tuple(torch.zeros(sequences.mask.shape, device=sequences.ids.device) for _ in range(num_outputs))
    by_length = sequences.attention_mask.sum(-1).argsort()
    for rows in by_length.split(micro_batch_size):
        part = sequences[rows]
        width = part.mask.shape[1]
        for output, result in zip(outputs, forward(part), strict=True):
            output[rows, :width] = torch.where(part.mask, result, 0)
    return outputs
