"""Responses sampled token by token from a policy, on preallocated random numbers.

A response depends on the seed, the step and the index of its prompt alone: not on the batch it is in, nor on what was
sampled before. So a resumed run, and any other split into batches, samples the same responses.
Shapes: B responses, P prompt tokens, R response tokens, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from rlhf.batches import pad_left
from rlhf.distributed import any_rank
from rlhf.encoding import decode_response
from rlhf.errors import NumericsError
from rlhf.ops import position_ids, token_logprobs
from rlhf.seeding import generator
from rlhf.zero import for_generation


@dataclass(frozen=True)
class Responses:
    """Sampled token ids [B, R], right-padded; mask [B, R], true up to and including the stop token; terminated [B].

    logprobs: of each token where it was drawn, in nats, [B, R]; zero where the mask is false.
    """

    ids: Tensor
    mask: Tensor
    terminated: Tensor
    logprobs: Tensor

    def __post_init__(self):
        assert self.ids.shape == self.mask.shape == self.logprobs.shape
        assert self.terminated.shape == self.ids.shape[:1]

    def rows(self) -> list[list[int]]:
        """The ids of each response, stop token included."""
        return [ids[mask].tolist() for ids, mask in zip(self.ids, self.mask, strict=True)]


def uniforms(seed: int, stream: str, step: int, indices: list[int] | list[str], num_tokens: int) -> Tensor:
    """A row of uniform numbers in [0, 1) per prompt index, from (seed, stream, step, index) alone: [B, R] float64."""
    sources = (generator(seed, stream, step, index) for index in indices)
    return torch.stack([torch.rand(num_tokens, generator=source, dtype=torch.float64) for source in sources])


def inverse_cdf(logits: Tensor, uniform: Tensor) -> Tensor:
    """The token at which the cumulative probability passes uniform. logits: [B, V], uniform: [B]; returns [B].

    Distributed as torch.multinomial's draw, many times faster on a CPU, and decided by one number per token.
    """
    cumulative = logits.softmax(-1).cumsum(-1)
    total = cumulative[:, -1:]
    if not torch.isfinite(total).all():
        raise NumericsError("the policy's logits are not finite while sampling; its weights have diverged")
    below_total = torch.nextafter(total, torch.zeros_like(total))  # or rounding could pick a token of probability 0
    target = torch.minimum(uniform.unsqueeze(-1).to(total) * total, below_total)
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)


@torch.no_grad()
def sample(
    policy,
    prompts: list[list[int]],
    uniform: Tensor,
    temperature: float,
    stop_ids: list[int],
    pad_id: int,
    in_step: bool = False,
) -> Responses:
    """One response per prompt from softmax(logits / temperature), nothing else: no top-k, no penalty, no minimum.

    prompts: token ids of B prompts; uniform: [B, R], R being the token limit. Finished rows leave the batch.
    in_step: all ranks make as many forwards, those that have finished with one row whose tokens nobody reads.
    """
    device = policy.device
    prompt_ids, mask = (x.to(device) for x in pad_left(prompts, pad_id))
    num_rows, limit = uniform.shape
    ids = torch.full((num_rows, limit), pad_id, device=device)
    logprobs = torch.zeros(num_rows, limit, device=device)
    lengths = torch.full((num_rows,), limit, device=device)
    stops = torch.tensor(stop_ids, device=device)
    terminated = torch.zeros(num_rows, dtype=torch.bool, device=device)
    rows = torch.arange(num_rows, device=device)  # of the responses still growing
    uniform = uniform.to(device)
    finished = False
    cache = DynamicCache(config=policy.config)
    tokens, positions = prompt_ids, position_ids(mask)
    for t in range(limit):
        logits = policy(
            input_ids=tokens,
            attention_mask=mask.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        logits = logits.float() / temperature  # float32: as they are scored
        token = inverse_cdf(logits, uniform[rows, t])
        stopped = torch.isin(token, stops)
        if not finished:
            ids[rows, t] = token
            logprobs[rows, t] = token_logprobs(logits, token)
            terminated[rows[stopped]] = True
            lengths[rows[stopped]] = t + 1
            finished = bool(stopped.all())
        everyone_finished = not any_rank(not finished) if in_step else finished
        if everyone_finished:
            break
        token, positions, mask = (
            token.unsqueeze(-1),
            positions[:, -1:] + 1,
            torch.nn.functional.pad(mask, (0, 1), value=True),
        )
        if stopped.any():
            growing = rows.new_zeros(1) if finished else (~stopped).nonzero().squeeze(-1)
            cache.reorder_cache(growing)  # unlike batch_select_indices, layers without keys and values have it
            rows, token, positions, mask = rows[growing], token[growing], positions[growing], mask[growing]
        tokens = token
    response_mask = torch.arange(limit, device=device) < lengths.unsqueeze(-1)
    return Responses(ids, response_mask, terminated, logprobs)


class Sampler:
    """How responses are sampled in this run: temperature, limits, control tokens and the seed."""

    def __init__(
        self,
        tokenizer,
        stop_ids: list[int],
        temperature: float,
        max_tokens: int,
        batch_size: int,
        seed: int,
        gather_share: float = 0.5,
    ):
        self.tokenizer, self.stop_ids, self.temperature = tokenizer, stop_ids, temperature
        self.max_tokens, self.batch_size, self.seed = max_tokens, batch_size, seed
        self.gather_share = gather_share  # see rlhf.zero.for_generation
        self.after_batch: Callable[[int], None] = lambda num_responses: None  # e.g. to show progress

    def __call__(
        self,
        policy,
        prompts: list[list[int]],
        stream: str,
        step: int = 0,
        first: int = 0,
        names: list[str] | None = None,
    ) -> Responses:
        """One response per prompt (token ids). Other streams and steps give other random numbers.

        first: the place of these prompts among those of all ranks, which decides on their random numbers. names: where
        a name of the prompt does, whatever its place.
        """
        places = names or list(range(first, first + len(prompts)))
        uniform = uniforms(self.seed, stream, step, places, self.max_tokens)
        settings = (self.temperature, self.stop_ids, self.tokenizer.pad_token_id)
        batches = [slice(i, i + self.batch_size) for i in range(0, len(prompts), self.batch_size)]
        with for_generation(policy, self.gather_share) as (model, in_step):
            parts = []
            for rows in batches:
                parts.append(sample(model, prompts[rows], uniform[rows], *settings, in_step))
                self.after_batch(len(prompts[rows]))
        fields = ("ids", "mask", "terminated", "logprobs")
        return Responses(*(torch.cat([getattr(p, field) for p in parts]) for field in fields))

    def texts(self, responses: Responses) -> list[str]:
        """The responses as text, without the token that ended them. A control token within one is there to be seen."""
        ended = zip(responses.rows(), responses.terminated.tolist(), strict=True)
        return [decode_response(self.tokenizer, row[:-1] if is_ended else row) for row, is_ended in ended]
