"""Training a reward model on whole rankings: K forwards per prompt, one loss per ranking."""

import torch
from torch import Tensor, nn
from transformers import Trainer

from reward.examples import RankingBatch, RankingExample, collate
from reward.losses import LOSSES, center_penalty, l2_penalty
from reward.report import Judged, report_card
from rlhf.config import RewardConfig, RewardLoss
from rlhf.models import ScalarModel
from rlhf.trainer import check_gradient, check_loss

TIE_MODELS = (RewardLoss.rao_kupper, RewardLoss.davidson)


class RankingModel(nn.Module):
    """A reward model with the tie parameter that two of the losses learn beside it (eta, 0 where unused)."""

    def __init__(self, scalar: ScalarModel, learns_ties: bool):
        super().__init__()
        self.scalar = scalar
        self.eta = nn.Parameter(torch.zeros(()), requires_grad=learns_ties)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """One score per answer. ids, mask: [S, T]; returns [S]."""
        return self.scalar.scores(ids, mask)


def ranking_loss(model: RankingModel, batch: RankingBatch, options: RewardConfig) -> Tensor:
    """The configured loss of a batch, with its regularisers."""
    scores = model(batch.ids, batch.mask)  # [S]
    extra = {}
    if options.loss is RewardLoss.bt_pairs:
        extra = {"label_smoothing": options.label_smoothing, "margin": batch.margins + options.margin}
    elif options.loss in TIE_MODELS:
        extra = {"eta": model.eta}
    rankings = (scores[batch.index], batch.ranks, batch.cu_lengths)
    loss = LOSSES[options.loss.value](*rankings, weights=batch.weights, **extra)
    loss = loss + options.center_coef * center_penalty(scores, batch.cu_answers)
    return loss + options.l2_coef * l2_penalty(scores)


class RankingTrainer(Trainer):
    """transformers.Trainer over RankingExamples, validated by pair accuracy."""

    def __init__(self, *, options: RewardConfig, tokenizer, **kwargs):
        self.options, self.tokenizer = options, tokenizer
        super().__init__(data_collator=self._collate, **kwargs)

    def _collate(self, examples: list[RankingExample]) -> dict[str, Tensor]:
        return vars(collate(examples, self.tokenizer.pad_token_id))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = ranking_loss(model, RankingBatch(**inputs), self.options)
        check_loss(loss, self.state.global_step + 1, self.tokenizer, inputs["ids"][0])
        return (loss, {}) if return_outputs else loss

    def training_step(self, model, inputs, *args, **kwargs):
        loss = super().training_step(model, inputs, *args, **kwargs)
        check_gradient(model, self.state.global_step + 1, self.tokenizer, inputs["ids"][0])
        return loss

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Pair accuracy on the validation rankings, as `eval_pair_accuracy`."""
        scores = score_examples(self.model, self.eval_dataset, self.args.eval_batch_size, self.tokenizer)
        card = report_card(judged(self.eval_dataset, scores), num_bootstrap=1)
        metrics = {"eval_pair_accuracy": card["pair_accuracy"]["value"]}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


@torch.no_grad()
def score_examples(
    model: RankingModel, examples: list[RankingExample], batch_size: int, tokenizer
) -> list[list[float]]:
    """The score of every answer of every example. batch_size: prompts per forward."""
    was_training = model.training
    model.eval()
    scores = []
    device = next(model.parameters()).device
    for i in range(0, len(examples), batch_size):
        batch = collate(examples[i : i + batch_size], tokenizer.pad_token_id)
        flat = iter(model(batch.ids.to(device), batch.mask.to(device)).tolist())
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
