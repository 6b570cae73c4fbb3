"""Rankings as training examples: the answers of a prompt once, with everything that annotators said about them."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reward.rankings import Ranking
from rlhf.config.schema import DataConfig
from rlhf.data.load import prompt_key
from rlhf.errors import UserError
from rlhf.text.batches import pad_right
from rlhf.text.encoding import encode_answer, encoded, marked_text
from rlhf.text.prompts import fit_prompt


@dataclass(frozen=True)
class Annotation:
    """One annotator's ranks of an example's answers, in the example's order; 0 = not ranked."""

    ranks: tuple[int, ...]
    annotator: str | None
    weight: float
    margin: float


@dataclass(frozen=True)
class RankingExample:
    """A prompt's answers as token ids (prompt + response each), and their annotations."""

    sequences: tuple[list[int], ...]
    responses: tuple[str, ...]
    lengths: tuple[int, ...]  # tokens of each response
    annotations: tuple[Annotation, ...]
    messages: tuple
    key: str
    meta: dict = field(default_factory=dict)  # of the first ranking: see Ranking


@dataclass(frozen=True)
class RankingBatch:
    """Examples laid flat. ids, mask: [S, T] for S answers; cu_answers [E + 1]: where an example's answers begin.

    Each annotation is one ranking over the answers: index [sumK] says which answer, ranks [sumK] its rank, cu_lengths
    [N + 1] where a ranking begins; weights and margins: [N]. The weights of a prompt's annotations sum to their mean.
    is_judged [E]: whether an example has annotations; those without come last and count for nothing.
    """

    ids: Tensor
    mask: Tensor
    cu_answers: Tensor
    index: Tensor
    ranks: Tensor
    cu_lengths: Tensor
    weights: Tensor
    margins: Tensor
    is_judged: Tensor


def ranking_examples(tokenizer, rankings: list[Ranking], data: DataConfig, split: str, report) -> list[RankingExample]:
    """Examples of all rankings, annotators of the same prompt and answers together.

    An answer over data.max_response_tokens is left out of its ranking, and a ranking is left out when fewer than two
    ranked answers are left in it. Both are counted in the report.
    """
    together: dict[tuple, list[Ranking]] = defaultdict(list)
    passes: Counter[int] = Counter()  # a source's weight repeats its rankings: an example for each pass of an epoch
    for ranking in rankings:
        passes[id(ranking)] += 1
        together[prompt_key(ranking.messages), tuple(sorted(ranking.responses)), passes[id(ranking)]].append(ranking)

    def encode(group: list[Ranking]) -> RankingExample | None:
        return _example(tokenizer, group, data, report)

    places = lambda group: [ranking.where for ranking in group]  # noqa: E731
    kept = [example for _, example in encoded(together.values(), encode, data, report, places)]
    if kept:
        show_first(tokenizer, kept[0], report)
    report.count_tokens("answers", split, [length for example in kept for length in example.lengths])
    return kept


def show_first(tokenizer, example: RankingExample, report) -> None:
    """Puts the first answer of an example into the report, as it is read."""
    ids, length, rank = example.sequences[0], example.lengths[0], example.annotations[0].ranks[0]
    text = marked_text(tokenizer, ids, [False] * (len(ids) - length) + [True] * length)
    report.show("rankings", f"{text} (rank {rank or '-'}, the first of {len(example.sequences)} answers)")


def require_order(examples: list[RankingExample], split: str) -> None:
    """Raises UserError when no annotator put any answer above another, so that there is no pair accuracy."""
    if not any(len(set(annotation.ranks) - {0}) > 1 for example in examples for annotation in example.annotations):
        raise UserError(
            f"data.rankings: the {len(examples)} prompts of the {split} split tie all their answers, so nothing tells "
            f"a better model from a worse one; raise data.{split}_share, or give more rankings with an order"
        )


def collate(examples: list[RankingExample], pad_id: int) -> RankingBatch:
    """One flat batch; nothing is padded with made-up answers."""
    ids, mask = pad_right([row for example in examples for row in example.sequences], pad_id)
    index, ranks, lengths, weights, margins, firsts = [], [], [0], [], [], [0]
    for example in examples:
        answers = range(firsts[-1], firsts[-1] + len(example.sequences))
        firsts.append(answers.stop)
        for annotation in example.annotations:
            index += answers
            ranks += annotation.ranks
            lengths.append(len(answers))
            weights.append(annotation.weight / len(example.annotations))
            margins.append(annotation.margin)
    return RankingBatch(
        ids=ids,
        mask=mask,
        cu_answers=torch.tensor(firsts),
        index=torch.tensor(index, dtype=torch.long),
        ranks=torch.tensor(ranks, dtype=torch.long),
        cu_lengths=torch.tensor(lengths).cumsum(0),
        weights=torch.tensor(weights, dtype=torch.float32),
        margins=torch.tensor(margins, dtype=torch.float32),
        is_judged=torch.tensor([bool(example.annotations) for example in examples]),
    )


def _example(tokenizer, group: list[Ranking], data: DataConfig, report) -> RankingExample | None:
    first = group[0]
    context = fit_prompt(tokenizer, first.messages, data, first.where, report)
    if context is None:
        return None
    answers = [encode_answer(tokenizer, context, response) for response in first.responses]
    report.see_answers(len(answers))
    fits = [i for i, ids in enumerate(answers) if len(ids) <= data.max_response_tokens]
    for i in sorted(set(range(len(answers))) - set(fits)):
        report.over_long(f"{first.where} answer {i + 1}", len(answers[i]), data.max_response_tokens)
    annotations = []
    for ranking in group:
        annotation = _annotation(ranking, first, fits)
        if sum(rank > 0 for rank in annotation.ranks) >= 2:
            annotations.append(annotation)
        else:
            report.find("skipped", ranking.where, "fewer than two ranked answers fit data.max_response_tokens")
    if not annotations:
        return None
    return RankingExample(
        sequences=tuple(context.ids + answers[i] for i in fits),
        responses=tuple(first.responses[i] for i in fits),
        lengths=tuple(len(answers[i]) for i in fits),
        annotations=tuple(annotations),
        messages=first.messages,
        key=first.key,
        meta=first.meta,
    )


def _annotation(ranking: Ranking, first: Ranking, fits: list[int]) -> Annotation:
    """The ranks in the order of the first annotator's answers; equal texts keep their own order."""
    left = list(zip(ranking.responses, ranking.ranks, strict=True))
    ranks = []
    for response in first.responses:
        place = next(i for i, (text, _) in enumerate(left) if text == response)
        ranks.append(left.pop(place)[1] or 0)
    return Annotation(tuple(ranks[i] for i in fits), ranking.annotator, ranking.weight, ranking.margin or 0.0)
