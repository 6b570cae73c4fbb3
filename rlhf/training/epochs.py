"""The order of the training examples: which ones each rank takes in each micro-batch of each optimizer step.

It is a function of the seed, the epoch and the batch size alone. So an optimizer step sees the same examples whatever
the number of ranks and the micro-batch size, and a run that goes on needs nothing but its step to know where it was.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from rlhf import distributed
from rlhf.errors import UserError
from rlhf.seeding import generator


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Optimizer steps that see every example once; the last one may have fewer."""
    return math.ceil(num_examples / batch_size)


def require_batch(num_examples: int, batch_size: int, key: str, what: str) -> None:
    """Raises UserError when there is less data than one batch."""
    if num_examples == 0:
        raise UserError(
            f"no {what} are left; the data report above says what was left out and why. Raise data.max_prompt_tokens "
            "or data.max_response_tokens where it is too long; mend it otherwise"
        )
    if num_examples < batch_size:
        raise UserError(
            f"{key}={batch_size} is more than the {num_examples} {what} there are; lower it or give more data"
        )


def plan(num_steps: int, num_examples: int, section) -> str:
    """What a trainer will do, in words. section: `sft` or `reward` of the config."""
    return (
        f"training: {num_steps} steps of {section.batch_size}, {section.num_epochs:g} passes over {num_examples}; "
        f"every {section.eval_steps} steps a validation and a checkpoint, until {section.patience} bring nothing better"
    )


class EpochBatches:
    """The micro-batches of one epoch for this rank, as lists of indices: what a DataLoader calls a batch sampler.

    Every rank gets equally many, equally long. The last step of an epoch is filled up with indices i < 0, which stand
    for example ~i made blank. step: called at the start of an epoch, gives the optimizer steps that were done.
    """

    def __init__(self, num_examples: int, batch_size: int, micro_batch_size: int, seed: int, step: Callable[[], int]):
        self.num_examples, self.batch_size, self.micro_batch_size = num_examples, batch_size, micro_batch_size
        self.seed, self.step = seed, step

    def __len__(self) -> int:
        num_steps = steps_per_epoch(self.num_examples, self.batch_size)
        return num_steps * self.batch_size // (self.micro_batch_size * distributed.world_size())

    def __iter__(self) -> Iterator[list[int]]:
        epoch = self.step() // steps_per_epoch(self.num_examples, self.batch_size)
        order = torch.randperm(self.num_examples, generator=generator(self.seed, "epoch", epoch)).tolist()
        order += [~order[0]] * (-len(order) % self.batch_size)
        micro_batches = [order[i : i + self.micro_batch_size] for i in range(0, len(order), self.micro_batch_size)]
        return iter(micro_batches[distributed.rank() :: distributed.world_size()])


class WithBlanks(torch.utils.data.Dataset):
    """Examples, where index i < 0 gives example ~i made blank: it goes through the model and counts for nothing."""

    def __init__(self, examples: Sequence, blank: Callable[[Any], Any]):
        self.examples, self.blank = examples, blank

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Any:
        return self.blank(self.examples[~index]) if index < 0 else self.examples[index]
