"""What every rollout engine gives. Shapes: B responses, R response tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor


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

    @classmethod
    def joined(cls, parts: list["Responses"]) -> "Responses":
        """Responses of as many columns, one part below the other."""
        return cls(
            ids=torch.cat([part.ids for part in parts]),
            mask=torch.cat([part.mask for part in parts]),
            terminated=torch.cat([part.terminated for part in parts]),
            logprobs=torch.cat([part.logprobs for part in parts]),
        )

    def rows(self) -> list[list[int]]:
        """The ids of each response, stop token included."""
        return [ids[mask].tolist() for ids, mask in zip(self.ids, self.mask, strict=True)]
