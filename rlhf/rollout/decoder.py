"""Responses sampled token by token from a policy, on preallocated random numbers. Knows nothing of texts.

Shapes: B responses, P prompt tokens, R response tokens, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from rlhf.engines.zero import bare, for_generation
from rlhf.errors import NumericsError
from rlhf.models.trunk import all_weights
from rlhf.ops import position_ids, token_logprobs
from rlhf.rollout.draws import Draws
from rlhf.rollout.responses import Responses
from rlhf.text.batches import pad_left


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
) -> Responses:
    """One response per prompt from softmax(logits / temperature), nothing else: no top-k, no penalty, no minimum.

    prompts: token ids of B prompts; uniform: [B, R], R being the token limit. Finished rows leave the batch.
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
        ids[rows, t] = token
        logprobs[rows, t] = token_logprobs(logits, token)
        terminated[rows[stopped]] = True
        lengths[rows[stopped]] = t + 1
        if stopped.all():
            break
        token, positions, mask = (
            token.unsqueeze(-1),
            positions[:, -1:] + 1,
            torch.nn.functional.pad(mask, (0, 1), value=True),
        )
        if stopped.any():
            growing = (~stopped).nonzero().squeeze(-1)
            cache.reorder_cache(growing)  # unlike batch_select_indices, layers without keys and values have it
            rows, token, positions, mask = rows[growing], token[growing], positions[growing], mask[growing]
        tokens = token
    response_mask = torch.arange(limit, device=device) < lengths.unsqueeze(-1)
    return Responses(ids, response_mask, terminated, logprobs)


@dataclass(frozen=True)
class Decoder:
    """The plain rollout engine: batches of prompts, token by token, on the device where the policy is.

    max_tokens: of a response. batch_size: responses that grow at once. gather_share: see engines.zero.for_generation.
    """

    stop_ids: list[int]
    pad_id: int
    temperature: float
    max_tokens: int
    batch_size: int
    gather_share: float = 0.5

    def __call__(self, policy, prompts: list[list[int]], draws: Draws, after_batch: Callable[[int], None]) -> Responses:
        """One response per prompt. after_batch: is told how many are done, batch by batch."""
        uniform = draws.uniforms(self.max_tokens)
        parts = []
        policy = bare(policy)
        with for_generation(policy, all_weights(policy), self.gather_share) as model:
            for first in range(0, len(prompts), self.batch_size):
                rows = slice(first, first + self.batch_size)
                parts.append(sample(model, prompts[rows], uniform[rows], self.temperature, self.stop_ids, self.pad_id))
                after_batch(len(prompts[rows]))
        return Responses.joined(parts)
