"""The critic: what it says of a rollout, how it learns from it, what is logged of it."""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.distributed import gather_rows, own_places
from rlhf.engines.engine import DeepspeedEngine, TorchEngine
from rlhf.losses import value_loss
from rlhf.models.scalars import response_values
from rlhf.ops import masked_var
from rlhf.ppo.experience import Sequences, sweep
from rlhf.ppo.invariants import FirstStep
from rlhf.ppo.minibatch import Minibatch, of_all_ranks
from rlhf.shapes import check_shapes
from rlhf.tracking.meanings import Meaning


@dataclass(frozen=True)
class CriticLesson(Minibatch):
    """What a critic learns of each token: old_values, what it said of the rollout; returns, what came. [B, R]"""

    old_values: Tensor
    returns: Tensor

    def metrics(self) -> dict[str, float]:
        """How good the critic was before it learned this."""
        return {"val/explained_var": explained_variance(self.old_values, self.returns, self.sequences.mask)}


class Critic:
    """A scalar model that learns to foresee returns. options: the `ppo` section of the config."""

    def __init__(self, engine: TorchEngine | DeepspeedEngine, options):
        self.engine, self.micro_batch_size = engine, options.micro_batch_size
        self.value_coef, self.value_clip_range = options.value_coef, options.value_clip_range
        self.first_step = FirstStep()

    def values(self, sequences: Sequences) -> tuple[Tensor, Tensor]:
        """Of every rank's responses: the value before each token, [B, R], and the one after the last token, [B].

        Each rank asks about its share of them.
        """
        places = own_places(len(sequences))
        own = sequences.rows(slice(places.start, places.stop))
        before, after = values_of(self.engine.module, own, self.micro_batch_size)
        return gather_rows(before), gather_rows(after)

    def update(self, lesson: CriticLesson, rows: Tensor) -> dict[str, float]:
        """One optimizer step on these rows, [minibatch]; returns its metrics."""
        record, before = defaultdict(float), self.engine.num_backwards
        for part, share, is_last in lesson.micro_batches(rows, self.micro_batch_size):
            loss, clip_fraction = self._add_gradient(part, share, is_last)
            record["loss/value_avg"] += (loss * share).item()
            record["val/clipfrac_avg"] += (clip_fraction * share).item()
            record["num_tokens"] += part.sequences.mask.sum().item()
        record["num_backwards"] = self.engine.num_backwards - before
        record = of_all_ranks(record, "sum")
        lesson.check_counts(self.engine.name, record, rows, self.micro_batch_size)
        errors = torch.where(lesson.sequences.mask, lesson.old_values - lesson.returns, 0)[rows]
        return record | {"critic/grad_norm": self.first_step(self.engine, has_signal=bool(errors.any()))}

    def _add_gradient(self, part: CriticLesson, share: Tensor, is_last: bool) -> tuple[Tensor, Tensor]:
        seq = part.sequences
        values = response_values(self.engine, seq.ids, seq.attention_mask, seq.mask.shape[1])
        loss, clip_fraction = value_loss(values, part.old_values, part.returns, seq.mask, self.value_clip_range)
        self.engine.backward(self.value_coef * loss * share, is_last)
        return loss, clip_fraction


@torch.no_grad()
def values_of(critic, sequences: Sequences, micro_batch_size: int) -> tuple[Tensor, Tensor]:
    """The critic's value before each response token, [B, R], zero where the mask is false; after the last one, [B]."""

    def forward(part: Sequences):
        size = part.mask.shape[1]
        values = critic(part.ids, part.attention_mask)[:, -size - 1 :]
        return values[:, :-1], values[:, 1:]

    before, after = sweep(forward, sequences, micro_batch_size, num_outputs=2)
    last = sequences.mask.sum(-1, keepdim=True) - 1
    return before, after.gather(-1, last).squeeze(-1)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the true positions; 0 when the returns do not vary. All [B, R]."""
    check_shapes("B R", values=values, returns=returns, mask=mask)
    spread = masked_var(returns, mask)
    return (1 - masked_var(returns - values, mask) / spread).item() if spread > 0 else 0.0


MEANINGS = {
    "val/explained_var": Meaning(
        "up to 1",
        "1 - Var(returns - values) / Var(returns): how much of the returns the critic foresees, before the update",
        "may begin below 0 and rises (0.7 in the toy run). Staying at 0 or below: more ppo.critic_warmup_steps, a "
        "higher ppo.critic_learning_rate, or a wider ppo.value_clip_range",
    ),
    "loss/value_avg": Meaning(
        "score squared, >= 0",
        "the critic's clipped squared error, halved, before ppo.value_coef",
        "falls in the first steps (0.7 to 0.1 in the toy run). Rising: lower ppo.critic_learning_rate",
    ),
    "val/clipfrac_avg": Meaning(
        "share of tokens, 0 to 1",
        "tokens whose value has left its old one so far that the clip held it",
        "high in the first steps, then near 0. Staying high: widen ppo.value_clip_range",
    ),
    "critic/grad_norm": Meaning(
        "norm, >= 0", "of the critic's gradient, before ppo.max_grad_norm clips it", "falls with loss/value_avg"
    ),
}
