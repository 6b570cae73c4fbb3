"""What a gradient is made of: rows of a rollout, split over ranks and micro-batches, and the proof that all counted."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from rlhf.distributed import over_ranks, own_places, world_size
from rlhf.ppo.experience import Sequences
from rlhf.ppo.invariants import check_all_counted
from rlhf.shapes import check_shapes


@dataclass(frozen=True)
class Minibatch:
    """Rows of a rollout. A subclass adds what its loss needs of each token, tensors [B, R] as the mask is."""

    sequences: Sequences

    def __post_init__(self):
        check_shapes("B R", mask=self.sequences.mask, **self._tokens())

    def __getitem__(self, rows: Tensor) -> Self:
        sequences = self.sequences[rows]
        width = sequences.mask.shape[1]
        return type(self)(sequences, **{name: x[rows, :width] for name, x in self._tokens().items()})

    def micro_batches(self, rows: Tensor, size: int) -> Iterator[tuple[Self, Tensor, bool]]:
        """This rank's part of a minibatch: (micro-batch, its share of the minibatch's tokens, whether it is the last).

        Summed with these shares over all micro-batches of all ranks, means are the mean over the minibatch. rows: [B].
        """
        num_tokens = self.sequences.mask[rows].sum()
        own = rows[list(own_places(len(rows)))]
        for first in range(0, len(own), size):
            part = self[own[first : first + size]]
            yield part, part.sequences.mask.sum() / num_tokens, first + size >= len(own)

    def check_counts(self, name: str, record: dict[str, float], rows: Tensor, size: int, num_others: int = 0) -> None:
        """Takes the counts of all ranks out of the record and compares them with those of these rows.

        name: of the engine. size: of a micro-batch. num_others: backward passes of what is learned beside the rollout.
        """
        found = int(record.pop("num_tokens")), int(record.pop("num_backwards"))
        num_backwards = num_micro_batches(len(rows), size) + num_others
        check_all_counted(name, found, (int(self.sequences.mask[rows].sum()), num_backwards))

    def _tokens(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "sequences"}


def num_micro_batches(num_rows: int, size: int) -> int:
    """Of all ranks together."""
    return world_size() * math.ceil(len(own_places(num_rows)) / size)


def of_all_ranks(record: dict[str, float], how: str) -> dict[str, float]:
    """The sum ("sum") or the maximum ("max") of what the ranks recorded."""
    values = over_ranks(torch.tensor(list(record.values()), dtype=torch.float64), how)
    return dict(zip(record, values.tolist(), strict=True))
