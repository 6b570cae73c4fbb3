"""The least time that an iteration of PPO could take on this machine: its work, by what the machine was seen to do.

Counted are real tokens alone, a rollout with a cache, the head where a response token follows, one forward of the
reference and one of the reward, the epochs forward and backward of policy and critic, and Adam's traffic of memory.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from rlhf.models.policies import device
from rlhf.preflight.memory import on_gpu

ADAM_BYTES = 28  # of a weight in a step: float32 weight, gradient and two moments read, weight and moments written
ATTEMPTS = 5


@dataclass(frozen=True)
class Ceilings:
    """What the machine does: flops of a large matrix product and bytes of a copy (read and written), per second."""

    flops: float
    bandwidth: float

    @classmethod
    def measured(cls, dtype: torch.dtype) -> "Ceilings":
        """The best of a few attempts, each a fraction of a second."""
        width, size = (8192, 2**30) if on_gpu() else (1536, 2**28)
        a, b = torch.randn(2, width, width, device=device()).to(dtype)
        source = torch.ones(size, dtype=torch.uint8, device=device())
        target = torch.ones_like(source)
        return cls(2 * width**3 / best_seconds(lambda: a @ b), 2 * size / best_seconds(lambda: target.copy_(source)))


def best_seconds(call: Callable) -> float:
    """Of ATTEMPTS, after one that is not counted."""
    return min([seconds_of(call) for _ in range(ATTEMPTS + 1)][1:])


def seconds_of(call: Callable) -> float:
    synchronize()
    began = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - began


def synchronize() -> None:
    """Waits until a GPU has done what it was told to."""
    if on_gpu():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Model:
    """What a policy's work depends on. linear: weights of the layers; adapter: weights that train beside them, 0 where
    all train; stored: all weights that train; attention, cache: numbers per token and layer of queries, of keys and
    values; width: bytes of a weight."""

    linear: int
    adapter: int
    head: int
    stored: int
    layers: int
    attention: int
    cache: int
    width: int

    @classmethod
    def of(cls, config, num_trained: int, has_adapter: bool, width: int) -> "Model":
        """config: a Llama's. num_trained: weights of the policy that train."""
        size, dim = config.hidden_size, config.head_dim
        queries, keys = config.num_attention_heads * dim, config.num_key_value_heads * dim
        layer = 2 * size * (queries + keys) + 3 * size * config.intermediate_size
        return cls(
            linear=layer * config.num_hidden_layers,
            adapter=num_trained if has_adapter else 0,
            head=size * config.vocab_size,
            stored=num_trained,
            layers=config.num_hidden_layers,
            attention=queries,
            cache=2 * keys,
            width=width,
        )

    def forward(self, tokens: int, pairs: int, logits: int) -> int:
        """Flops. pairs: of a token and one that it attends to; logits: tokens at which the head is needed."""
        attention = 4 * self.attention * self.layers * pairs
        return 2 * (self.linear + self.adapter) * tokens + attention + 2 * self.head * logits

    def training(self, tokens: int, pairs: int, logits: int) -> int:
        """Flops forward and backward: three times the forward's, less the gradients of weights that do not train."""
        frozen = self.linear * tokens + self.head * logits if self.adapter else 0
        return 3 * self.forward(tokens, pairs, logits) - 2 * frozen


@dataclass(frozen=True)
class Lengths:
    """Tokens of the prompts and the responses of an iteration, one each for a response."""

    prompts: list[int]
    responses: list[int]

    @property
    def fed(self) -> list[int]:
        """What a model reads of each: after the last token nothing is asked."""
        return [prompt + response - 1 for prompt, response in zip(self.prompts, self.responses, strict=True)]


def pairs(lengths: list[int]) -> int:
    """Of a token and one that it attends to, itself or before it."""
    return sum(length * (length + 1) // 2 for length in lengths)


def least_seconds(model: Model, lengths: Lengths, epochs: int, steps: int, ceilings: Ceilings) -> dict[str, float]:
    """By phase. steps: optimizer steps of each of the two models that train."""
    fed, logits = lengths.fed, sum(lengths.responses)
    reading = sum(fed), pairs(fed)
    score = model.forward(*reading, logits) + model.forward(*reading, 0)
    update = epochs * (model.training(*reading, logits) + model.training(*reading, 0))
    return {
        "rollout": rollout_seconds(model, lengths, ceilings),
        "score": score / ceilings.flops,
        "update": update / ceilings.flops + 2 * steps * model.stored * ADAM_BYTES / ceilings.bandwidth,
    }


def rollout_seconds(model: Model, lengths: Lengths, ceilings: Ceilings) -> float:
    """Prompts at once; then token by token, as fast as products are made, or weights and cache are read."""
    prompt = model.forward(sum(lengths.prompts), pairs(lengths.prompts), len(lengths.prompts))
    whole = model.forward(sum(lengths.fed), pairs(lengths.fed), sum(lengths.responses))
    cached = (pairs(lengths.fed) - pairs(lengths.prompts)) * model.cache * model.layers
    weights = (max(lengths.responses) - 1) * (model.linear + model.head)
    read = model.width * (weights + cached)
    return prompt / ceilings.flops + max((whole - prompt) / ceilings.flops, read / ceilings.bandwidth)
