"""Training on rankings: the loss of a batch, the learned tie parameter, the scores of training and of scoring."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, TrainingArguments

from reward.examples import Annotation, RankingExample, collate
from reward.scorer import RewardScorer
from reward.trainer import RankingModel, RankingTrainer, judged, ranking_loss, score_examples
from rlhf.config.schema import RewardConfig, RewardLoss
from rlhf.engines import adam
from rlhf.errors import NumericsError
from rlhf.run.stopping import StopRequest
from rlhf.text.encoding import context_of, encode_answer
from rlhf.training.trainer import StopCallback, train, training_arguments

pytestmark = pytest.mark.slow


def options(loss="bt_pairs", **changes):
    sizes = {"num_epochs": 1, "batch_size": 4, "micro_batch_size": 4, "eval_steps": 1000, "patience": 3}
    adam = {"learning_rate": 2e-3, "warmup_share": 0.0, "weight_decay": 0.0, "max_grad_norm": 1e9}
    penalties = {"label_smoothing": 0.0, "margin": 0.0, "center_coef": 0.0, "l2_coef": 0.0}
    return RewardConfig(**{"loss": RewardLoss(loss), **sizes, **adam, **penalties, **changes})


class ReadsScores(nn.Module):
    """A reward model by hand: a sequence is one token, and its score the token's id over 10."""

    def scores(self, ids, mask):
        return ids[:, 0] / 10


def annotation(*ranks, weight=1.0, margin=0.0):
    return Annotation(ranks, None, weight, margin)


def by_hand(scores, *annotations):
    ids = tuple([round(10 * score)] for score in scores)
    return RankingExample(ids, tuple(map(str, scores)), (1,) * len(scores), annotations, (), str(scores))


def loss_of(examples, loss="bt_pairs", **changes):
    model = RankingModel(ReadsScores(), learns_ties=False)
    return ranking_loss(model, collate(examples, pad_id=0), options(loss, **changes)).item()


def cost(z, p=1.0):
    """-[p log sigma(z) + (1 - p) log sigma(-z)]"""
    return p * math.log1p(math.exp(-z)) + (1 - p) * math.log1p(math.exp(z))


def test_the_loss_is_the_mean_over_a_prompts_pairs_then_over_prompts():
    three = (cost(1.0) + cost(3.0) + cost(2.0)) / 3
    found = loss_of([by_hand([3.0, 2.0, 0.0], annotation(1, 2, 3)), by_hand([1.0, 5.0], annotation(1, 2))])
    assert found == pytest.approx((three + cost(-4.0)) / 2, rel=1e-6)


def test_two_annotators_give_the_loss_of_their_votes_fractions():
    """Both prefer the first to the last; of the other two pairs one annotator says so and the other the contrary."""
    scores = [3.0, 2.0, 0.0]
    found = loss_of([by_hand(scores, annotation(1, 2, 3), annotation(2, 3, 1)), by_hand([1.0, 0.0], annotation(1, 2))])
    first = (cost(1.0, p=1.0) + cost(3.0, p=0.5) + cost(2.0, p=0.5)) / 3
    assert found == pytest.approx((first + cost(1.0)) / 2, rel=1e-6)


def test_the_weights_of_annotators_weigh_their_votes():
    found = loss_of([by_hand([2.0, 0.0], annotation(1, 2, weight=3.0), annotation(2, 1, weight=1.0))])
    assert found == pytest.approx(cost(2.0, p=0.75), rel=1e-6)


def test_a_records_margin_and_the_configured_one_add_up():
    assert loss_of([by_hand([2.0, 0.0], annotation(1, 2, margin=0.5))], margin=0.25) == pytest.approx(cost(1.25))


def test_label_smoothing_by_hand():
    assert loss_of([by_hand([2.0, 0.0], annotation(1, 2))], label_smoothing=0.2) == pytest.approx(cost(2.0, p=0.9))


TWO_PROMPTS = [
    by_hand([3.0, 1.0, 2.0], annotation(1, 2, 3), annotation(3, 2, 1)),
    by_hand([6.0, 0.0], annotation(1, 2)),
]


def test_the_centre_penalty_is_the_mean_square_of_each_prompts_mean_score():
    added = loss_of(TWO_PROMPTS, center_coef=0.1) - loss_of(TWO_PROMPTS)
    assert added == pytest.approx(0.1 * (2.0**2 + 3.0**2) / 2, rel=1e-4)


def test_the_l2_penalty_is_the_mean_square_of_all_scores():
    added = loss_of(TWO_PROMPTS, l2_coef=0.1) - loss_of(TWO_PROMPTS)
    assert added == pytest.approx(0.1 * (9 + 1 + 4 + 36 + 0) / 5, rel=1e-4)


def test_the_configured_loss_is_the_one_that_is_used():
    examples = [by_hand([2.0, 1.0, 0.0], annotation(1, 1, 2))]
    expected = {
        "bt_pairs": (cost(1.0, p=0.5) + cost(2.0) + cost(1.0)) / 3,
        "pick_best": math.log(math.exp(2) + math.exp(1) + 1) - (2.0 + 1.0) / 2,
        "davidson": sum(  # nu = exp(eta) = 1
            math.log(math.exp(z / 2) + math.exp(-z / 2) + 1) - won for z, won in ((1.0, 0.0), (2.0, 1.0), (1.0, 0.5))
        )
        / 3,
    }
    for name, value in expected.items():
        assert loss_of(examples, name) == pytest.approx(value, rel=1e-6), name


@pytest.mark.parametrize("loss", [loss.value for loss in RewardLoss])
def test_the_tie_parameter_learns_with_the_tie_models_only(make_scalar, loss):
    learns = loss in ("rao_kupper", "davidson")
    model = RankingModel(make_scalar(3), learns_ties=learns)
    examples = [by_hand([1.0, 2.0, 3.0], annotation(1, 1, 2))]
    ranking_loss(model, collate(examples, pad_id=0), options(loss)).backward()
    assert (model.eta.grad is not None and model.eta.grad.abs() > 0) == learns
    assert all(p.grad is not None for p in model.scalar.model.score.parameters())


# ---- real sequences


ANSWERS = ["yes", " yes", "no", "", "what is\n\nthe time?", "Ünïcode 🙂", "yes " * 9]
PROMPTS = ["hi", "what is the time", "paris or rome or oslo or berlin"]


@pytest.fixture
def examples(tokenizer):
    """An example for each prompt, the answers ranked in their order."""
    found = []
    for prompt in PROMPTS:
        messages = ({"role": "user", "content": prompt},)
        encoded = [encode_answer(tokenizer, context_of(tokenizer, messages), answer) for answer in ANSWERS]
        sequences = tuple(context_of(tokenizer, messages).ids + ids for ids in encoded)
        ranks = annotation(*range(1, len(ANSWERS) + 1))
        found.append(RankingExample(sequences, tuple(ANSWERS), tuple(map(len, encoded)), (ranks,), messages, prompt))
    return found


@pytest.fixture
def model(make_scalar):
    return RankingModel(make_scalar(3), learns_ties=False)


def test_the_score_in_training_is_the_score_in_ppo_for_the_same_text(model, examples, tokenizer):
    """RankingModel over a collated batch against RewardScorer over texts, each in batches of its own."""
    trained = score_examples(model, examples, 2, tokenizer)
    scorer = RewardScorer(model.scalar, tokenizer, max_prompt_tokens=50, batch_size=4)
    for example, scores in zip(examples, trained, strict=True):
        found = scorer([example.messages] * len(ANSWERS), ANSWERS)
        assert scores == pytest.approx(found.tolist(), abs=1e-5)
    assert len({round(score, 3) for scores in trained for score in scores}) == len(PROMPTS) * len(ANSWERS)


def test_scores_do_not_depend_on_the_batch_and_the_model_keeps_its_mode(model, examples, tokenizer):
    for mode in (True, False):
        model.train(mode)
        one_by_one = score_examples(model, examples, 1, tokenizer)
        assert model.training is mode
        for scores, expected in zip(score_examples(model, examples, 3, tokenizer), one_by_one, strict=True):
            assert scores == pytest.approx(expected, abs=1e-5)


def test_extra_padding_changes_no_loss_and_no_gradient(model, examples):
    batch = collate(examples, pad_id=0)
    gradients = []
    for width, pad_id in ((0, 0), (7, 0), (7, 1)):
        ids = torch.nn.functional.pad(torch.where(batch.mask, batch.ids, pad_id), (0, width), value=pad_id)
        wide = type(batch)(**{**vars(batch), "ids": ids, "mask": torch.nn.functional.pad(batch.mask, (0, width))})
        model.zero_grad()
        ranking_loss(model, wide, options()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.scalar.parameters() if p.grad is not None]))
    for gradient in gradients[1:]:
        assert (gradient - gradients[0]).norm() <= 1e-4 * gradients[0].norm()


def test_judged_puts_scores_beside_each_annotators_ranks():
    found = judged([by_hand([2.0, 1.0], annotation(1, 2), annotation(1, 0))], [[0.5, -0.5]])
    assert [item.ranks for item in found] == [[1, 2], [1, None]]
    assert all(item.scores == [0.5, -0.5] and item.lengths == (1, 1) and item.key == "[2.0, 1.0]" for item in found)


# ---- the Trainer


class Gradients(TrainerCallback):
    """The gradient of each optimizer step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))


def trainer_of(model, examples, tokenizer, folder, section, *callbacks, **arguments):
    defaults = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "use_cpu": True}
    values = {**training_arguments(folder, section, seed=0, log_steps=1), **defaults, **arguments}
    trainer = RankingTrainer(
        options=section,
        tokenizer=tokenizer,
        model=model,
        args=TrainingArguments(**values, remove_unused_columns=False),
        train_dataset=examples,
        eval_dataset=examples,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def worded(tokenizer, prompt, responses, *annotations):
    messages = ({"role": "user", "content": prompt},)
    encoded = [encode_answer(tokenizer, context_of(tokenizer, messages), response) for response in responses]
    sequences = tuple(context_of(tokenizer, messages).ids + ids for ids in encoded)
    return RankingExample(sequences, tuple(responses), tuple(map(len, encoded)), annotations, messages, prompt)


@pytest.fixture
def toy(tokenizer):
    """Eight prompts: yes is best, maybe next, no is worst, wherever they stand."""
    order = {"yes": 1, "maybe": 2, "no": 3}
    found = []
    for i, prompt in enumerate(["hi", "hello", "paris", "rome", "oslo", "berlin", "time", "world"]):
        responses = list(order)[i % 3 :] + list(order)[: i % 3]
        found.append(worded(tokenizer, prompt, responses, annotation(*(order[text] for text in responses))))
    return found


def test_training_puts_the_answers_in_the_annotators_order(make_scalar, toy, tokenizer, tmp_path):
    model = RankingModel(make_scalar(4), learns_ties=False)
    trainer = trainer_of(model, toy, tokenizer, tmp_path, options(num_epochs=10))
    before = trainer.evaluate()["eval_pair_accuracy"]
    trainer.train()
    assert before < 1.0
    assert trainer.evaluate()["eval_pair_accuracy"] == 1.0
    for example, scores in zip(toy, score_examples(model, toy, 8, tokenizer), strict=True):
        by_text = dict(zip(example.responses, scores, strict=True))
        assert by_text["yes"] > by_text["maybe"] > by_text["no"]


def test_accumulated_micro_batches_give_the_gradient_of_one_batch(make_scalar, toy, tokenizer, tmp_path):
    gradients = []
    for micro_batch_size in (8, 4, 2):
        section = options(batch_size=8, micro_batch_size=micro_batch_size)
        recorder = Gradients()
        model = RankingModel(make_scalar(4), learns_ties=False)
        trainer_of(model, toy, tokenizer, tmp_path, section, recorder).train()
        assert len(recorder.steps) == 1
        gradients += recorder.steps
    for gradient in gradients[1:]:
        assert (gradient - gradients[0]).norm() <= 1e-4 * gradients[0].norm()


def test_the_gradient_of_a_step_is_that_of_the_loss(make_scalar, toy, tokenizer, tmp_path):
    """The Trainer neither rescales nor shifts it: the mean over eight prompts, by autograd from bare sequences."""
    expected = make_scalar(4)
    for example in toy:
        scores = [expected.scores(torch.tensor([ids]), torch.ones(1, len(ids)).bool())[0] for ids in example.sequences]
        (ranks,) = (annotation.ranks for annotation in example.annotations)
        pairs = [(i, j) for i in range(3) for j in range(3) if ranks[i] < ranks[j]]
        loss = sum(-nn.functional.logsigmoid(scores[i] - scores[j]) for i, j in pairs) / 3
        (loss / 8).backward()
    recorder = Gradients()
    model = RankingModel(make_scalar(4), learns_ties=False)
    trainer_of(model, toy, tokenizer, tmp_path, options(batch_size=8, micro_batch_size=8), recorder).train()
    wanted = torch.cat([p.grad.flatten() for p in expected.parameters() if p.grad is not None])
    assert (recorder.steps[0] - wanted).norm() <= 1e-4 * wanted.norm()


@pytest.mark.parametrize("loss", [loss.value for loss in RewardLoss])
def test_weights_penalties_and_a_short_last_step_count_alike_however_the_batch_is_split(
    make_scalar, toy, tokenizer, tmp_path, loss
):
    """Six prompts of a batch of eight, weighing 1 to 6: one loss of all of them, or shares of it."""
    weighed = [replace(toy[i], annotations=(replace(toy[i].annotations[0], weight=i + 1.0),)) for i in range(6)]
    penalties = {"center_coef": 0.3, "l2_coef": 0.2}
    whole = RankingModel(make_scalar(4), learns_ties=False)
    ranking_loss(whole, collate(weighed, tokenizer.pad_token_id), options(loss, **penalties)).backward()
    wanted = torch.cat([p.grad.flatten() for p in whole.parameters() if p.grad is not None])
    for micro_batch_size in (8, 2, 1):
        section = options(loss, batch_size=8, micro_batch_size=micro_batch_size, **penalties)
        recorder = Gradients()
        model = RankingModel(make_scalar(4), learns_ties=False)
        trainer_of(model, weighed, tokenizer, tmp_path, section, recorder).train()
        assert len(recorder.steps) == 1
        assert (recorder.steps[0] - wanted).norm() <= 1e-4 * wanted.norm()


def test_weight_decay_does_not_pull_at_the_tie_parameter(make_scalar, toy, tokenizer, tmp_path):
    model = RankingModel(make_scalar(4), learns_ties=True)
    groups = trainer_of(model, toy, tokenizer, tmp_path, options(weight_decay=0.5)).create_optimizer().param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert decay[id(model.eta)] == 0.0
    assert decay[id(model.scalar.model.score.weight)] == 0.5


def test_a_run_killed_after_its_patience_ended_does_not_train_on(make_scalar, toy, tokenizer, tmp_path):
    section = options(num_epochs=10, learning_rate=1e-12, eval_steps=1)  # nothing ever improves
    saving = {"eval_strategy": "steps", "save_strategy": "steps", "load_best_model_at_end": True}
    best = {"metric_for_best_model": "eval_pair_accuracy", "greater_is_better": True}
    histories = []
    for checkpoint in (None, str(tmp_path / "checkpoint-3")):
        model = RankingModel(make_scalar(4), learns_ties=False)
        trainer = trainer_of(model, toy, tokenizer, tmp_path, section, EarlyStoppingCallback(2), **saving, **best)
        train(trainer, checkpoint, StopCallback(StopRequest()))
        assert trainer.state.global_step == 3
        histories.append([row for row in trainer.state.log_history if "train_runtime" not in row])
    assert histories[0] == histories[1]


def test_small_steps_of_bfloat16_weights_are_not_lost(make_scalar, toy, tokenizer, tmp_path):
    """Five steps of 1e-5 on weights of about 0.3, between which bfloat16 has gaps of 1e-3."""
    moved = []
    for dtype in (torch.float32, torch.bfloat16):
        model = RankingModel(make_scalar(4).bfloat16().to(dtype), learns_ties=False)
        before = {name: p.detach().float().clone() for name, p in model.named_parameters()}
        trainer = trainer_of(model, toy, tokenizer, tmp_path, options(num_epochs=5, learning_rate=1e-5))
        trainer.train()
        after = adam.tensors(trainer.optimizer, trainer.trained)
        moved.append(torch.cat([(after[f"weight.{name}"] - before[name]).flatten() for name in trainer.trained]))
    assert moved[0].norm() > 1e-4
    assert torch.cosine_similarity(*moved, dim=0) > 0.9


def test_training_with_ties_learns_the_tie_parameter(make_scalar, toy, tokenizer, tmp_path):
    model = RankingModel(make_scalar(4), learns_ties=True)
    trainer_of(model, toy, tokenizer, tmp_path, options("davidson", num_epochs=5)).train()
    assert model.eta.item() < -0.001  # no ties in the data: they become unlikely


def test_a_loss_that_is_nan_stops_training_and_shows_the_batch(make_scalar, toy, tokenizer, tmp_path):
    model = RankingModel(make_scalar(4, std=math.nan), learns_ties=False)
    with pytest.raises(NumericsError, match="step 1: the loss is nan on the batch that begins with"):
        trainer_of(model, toy, tokenizer, tmp_path, options()).train()


def test_a_gradient_that_is_nan_stops_training_before_it_reaches_the_weights(make_scalar, toy, tokenizer, tmp_path):
    model = RankingModel(make_scalar(4), learns_ties=False)
    before = [p.clone() for p in model.parameters()]
    model.scalar.model.score.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(NumericsError, match=r"step 1: the norm of the gradient is nan"):
        trainer_of(model, toy, tokenizer, tmp_path, options()).train()
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
