"""Training a reward model on whole rankings: K forwards per prompt, one loss per ranking."""

from dataclasses import astuple, dataclass, replace

import torch
from torch import Tensor, nn
from transformers import Trainer

from reward.examples import RankingBatch, RankingExample, collate
from reward.losses import LOSSES, center_penalty, comparable, l2_penalty
from reward.report.card import Judged, report_card
from rlhf import distributed
from rlhf.config.schema import RewardConfig, RewardLoss
from rlhf.models.scalars import ScalarModel
from rlhf.tracking.meanings import Meaning
from rlhf.training.trainer import GlobalSteps

TIE_MODELS = (RewardLoss.rao_kupper, RewardLoss.davidson)


class RankingModel(nn.Module):
    """A reward model with the tie parameter that two of the losses learn beside it (eta, 0 where unused)."""

    def __init__(self, scalar: ScalarModel, learns_ties: bool):
        super().__init__()
        self.scalar = scalar
        self.eta = nn.Parameter(torch.zeros(1), requires_grad=learns_ties)  # DeepSpeed takes no 0-d weights

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """One score per answer, and eta, which ZeRO-3 has whole only in here. ids, mask: [S, T]; returns [S], []."""
        return self.scalar.scores(ids, mask), self.eta.clone().squeeze()


@dataclass(frozen=True)
class Totals:
    """What the means of a loss divide by: the weight of the rankings that count, prompts, answers."""

    weight: float
    num_prompts: int
    num_answers: int


def ranking_loss(model: nn.Module, batch: RankingBatch, options: RewardConfig, totals: Totals | None = None) -> Tensor:
    """A batch's share of the configured loss, with its regularisers, of a step. totals: of that step; None: the batch.

    The shares of a step's batches add up to its weighted mean over rankings, and its means over prompts and answers.
    """
    scores, eta = model(batch.ids, batch.mask)  # [S]
    extra = {}
    if options.loss is RewardLoss.bt_pairs:
        extra = {"label_smoothing": options.label_smoothing, "margin": batch.margins + options.margin}
    elif options.loss in TIE_MODELS:
        extra = {"eta": eta}
    own = count(batch)
    totals = own if totals is None else totals
    rankings = (scores[batch.index], batch.ranks, batch.cu_lengths)
    loss = LOSSES[options.loss.value](*rankings, weights=batch.weights, **extra) * share(own.weight, totals.weight)
    real = batch.cu_answers[: own.num_prompts + 1]  # blank prompts come last
    real_scores = scores[: real[-1]]
    if own.num_prompts > 0:
        center, l2 = center_penalty(real_scores, real), l2_penalty(real_scores)
        loss = loss + options.center_coef * center * share(own.num_prompts, totals.num_prompts)
        loss = loss + options.l2_coef * l2 * share(own.num_answers, totals.num_answers)
    return loss


def count(batch: RankingBatch) -> Totals:
    """Those of one batch; its blank prompts, which no annotation judges, count for nothing."""
    weight = (batch.weights * comparable(batch.ranks, batch.cu_lengths)).double().sum().item()
    num_prompts = int(batch.is_judged.sum())
    return Totals(weight, num_prompts, int(batch.cu_answers[num_prompts]))


def share(own: float, total: float) -> float:
    """own / total, 0 where there is nothing."""
    return own / total if total else 0.0


class RankingTrainer(GlobalSteps, Trainer):
    """transformers.Trainer over RankingExamples, validated by pair accuracy."""

    def __init__(self, *, options: RewardConfig, tokenizer, **kwargs):
        self.options, self.tokenizer = options, tokenizer
        super().__init__(data_collator=self._collate, processing_class=tokenizer, **kwargs)
        self.model_accepts_loss_kwargs = True  # the loss is a share already; the Trainer is not to divide it again

    def _collate(self, examples: list[RankingExample]) -> dict[str, Tensor]:
        return vars(collate(examples, self.tokenizer.pad_token_id))

    def blank(self, example: RankingExample) -> RankingExample:
        return replace(example, sequences=example.sequences[:1], annotations=())

    def first_ids(self, inputs: dict) -> Tensor:
        return inputs["ids"][0]

    def get_decay_parameter_names(self, model) -> list[str]:
        """All weights that weight decay acts on, eta not among them: at 0 it is a threshold like any other."""
        return [name for name in super().get_decay_parameter_names(model) if name != "eta"]

    def get_batch_samples(self, *args, **kwargs):
        """The micro-batches of a step, and its Totals over all ranks."""
        batches, _ = super().get_batch_samples(*args, **kwargs)
        if not batches:
            return [], None
        own = [astuple(count(RankingBatch(**inputs))) for inputs in batches]
        weight, num_prompts, num_answers = distributed.over_ranks(
            torch.tensor(own, dtype=torch.float64).sum(0)
        ).tolist()
        return batches, Totals(weight, round(num_prompts), round(num_answers))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = ranking_loss(model, RankingBatch(**inputs), self.options, num_items_in_batch)
        self.check_loss(loss, inputs)
        loss = loss * distributed.world_size()
        return (loss, {}) if return_outputs else loss

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Pair accuracy on the validation rankings, as `eval_pair_accuracy`."""
        batch_size = self.args.per_device_eval_batch_size
        scores = scores_over_ranks(self.model_wrapped, self.eval_dataset, batch_size, self.tokenizer)
        card = report_card(judged(self.eval_dataset, scores), num_bootstrap=1)
        metrics = {"eval_pair_accuracy": card["pair_accuracy"]["value"]}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def scores_over_ranks(model, examples: list[RankingExample], batch_size: int, tokenizer) -> list[list[float]]:
    """The score of every answer of every example, on every rank; the ranks share out the examples.

    They make equally many forwards, as ZeRO-3 needs.
    """
    own = distributed.own_places(len(examples))
    mine = [examples[min(place, len(examples) - 1)] for place in own]
    scores = score_examples(model, mine, batch_size, tokenizer)
    return [example for part in distributed.gather(scores) for example in part][: len(examples)]


@torch.no_grad()
def score_examples(model: nn.Module, examples: list[RankingExample], batch_size: int, tokenizer) -> list[list[float]]:
    """The score of every answer of every example. batch_size: prompts per forward."""
    was_training = model.training
    model.eval()
    scores = []
    device = next(model.parameters()).device
    for i in range(0, len(examples), batch_size):
        batch = collate(examples[i : i + batch_size], tokenizer.pad_token_id)
        flat = iter(model(batch.ids.to(device), batch.mask.to(device))[0].tolist())
        scores += [[next(flat) for _ in example.sequences] for example in examples[i : i + batch_size]]
    model.train(was_training)
    return scores


def judged(examples: list[RankingExample], scores: list[list[float]]) -> list[Judged]:
    """Scores beside each annotator's ranks, as the report card takes them."""
    return [
        Judged(
            scores=own,
            ranks=[rank or None for rank in annotation.ranks],
            lengths=example.lengths,
            responses=example.responses,
            key=example.key,
            annotator=annotation.annotator,
        )
        for example, own in zip(examples, scores, strict=True)
        for annotation in example.annotations
    ]


MEANINGS = {
    "train/loss": Meaning(
        "nats per comparison, >= 0",
        "reward.loss with its regularisers, mean over rankings and over the steps since the last line",
        "bt_pairs begins near 0.69 (ln 2, a coin's) and falls (0.2 at the toy run's end). Near 0 after several epochs: "
        "the rankings are learned by heart; fewer reward.num_epochs",
    ),
    "eval/pair_accuracy": Meaning(
        "share of pairs, 0 to 1",
        "pairs of the validation split that the reward model orders as the annotators did; ties of theirs left out",
        "above 0.5 at once, then rises to what annotators agree on (0.88 in the toy run); the best checkpoint is kept. "
        "No better than preferring the longer answer (the report card says): more or better rankings",
    ),
}
