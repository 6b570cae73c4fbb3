"""The random numbers of responses: each response's own, whatever the batch it is in and what was sampled before."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.seeding import generator


@dataclass(frozen=True)
class Draws:
    """What the responses of B prompts are drawn with. Other streams and steps give other numbers.

    names: one a prompt, a place in its stream or any name of its own.
    """

    seed: int
    stream: str
    step: int
    names: Sequence[int] | Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: slice) -> "Draws":
        """Those of some of the prompts."""
        return Draws(self.seed, self.stream, self.step, self.names[rows])

    def uniforms(self, num_tokens: int) -> Tensor:
        """A row of uniform numbers in [0, 1) per prompt, from (seed, stream, step, name) alone: [B, R] float64."""
        sources = (generator(self.seed, self.stream, self.step, name) for name in self.names)
        return torch.stack([torch.rand(num_tokens, generator=source, dtype=torch.float64) for source in sources])
