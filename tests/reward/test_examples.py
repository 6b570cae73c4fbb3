"""Rankings as training examples and as flat batches."""

from types import SimpleNamespace

import pytest

from reward.examples import Annotation, RankingExample, collate, ranking_examples, require_order
from reward.rankings import Ranking
from rlhf.config.schema import LongPrompts, OnError
from rlhf.data.report import DataReport
from rlhf.errors import UserError
from rlhf.text.encoding import context_of


def ranking(responses, ranks, prompt="what is the time", annotator=None, weight=1.0, margin=None, where="r.jsonl:1"):
    messages = ({"role": "user", "content": prompt},)
    return Ranking(messages, tuple(responses), tuple(ranks), annotator, weight, margin, prompt, None, where)


@pytest.fixture
def examples_of(tokenizer):
    """examples_of(*rankings) -> (examples, report)"""

    def make(*rankings, **changes):
        report = DataReport()
        limits = {"max_prompt_tokens": 50, "max_response_tokens": 12, "long_prompts": LongPrompts.error}
        data = SimpleNamespace(**{**limits, "on_error": OnError.error, **changes})
        return ranking_examples(tokenizer, list(rankings), data, "train", report), report.as_dict()

    return make


def ranks_of(example):
    return [annotation.ranks for annotation in example.annotations]


def test_an_answer_is_prompt_plus_response_plus_eos(examples_of, tokenizer):
    (example,), report = examples_of(ranking(["yes", " no", ""], [1, 2, 3]))
    assert [tokenizer.decode(ids) for ids in example.sequences] == [
        f"<|user|>what is the time<|assistant|>{answer}<|end|>" for answer in ("yes", " no", "")
    ]
    prompt = context_of(tokenizer, example.messages).ids
    assert all(ids[: len(prompt)] == prompt for ids in example.sequences)
    assert example.lengths == tuple(len(ids) - len(prompt) for ids in example.sequences)
    assert example.lengths[-1] == 1  # EOS alone
    assert report["tokens"]["answers"]["train"]["count"] == 3


def test_the_first_answer_is_shown_with_its_rank_which_a_person_can_compare(examples_of):
    _, report = examples_of(ranking(["no", "yes"], [2, 1]))
    assert report["first"]["rankings"] == (
        "<|user|>what is the time<|assistant|>[[no<|end|>]] (rank 2, the first of 2 answers)"
    )


def test_annotators_of_the_same_answers_come_together_each_with_their_ranks_in_one_order(examples_of):
    (example,), _ = examples_of(
        ranking(["yes", "no", "maybe"], [1, 2, 3], annotator="ann", weight=2.0),
        ranking(["maybe", "yes", "no"], [1, 2, None], annotator="bob", margin=0.5),
    )
    assert example.responses == ("yes", "no", "maybe")
    assert example.annotations == (
        Annotation((1, 2, 3), "ann", 2.0, 0.0),
        Annotation((2, 0, 1), "bob", 1.0, 0.5),  # 0: not ranked
    )


def test_other_answers_or_another_prompt_are_examples_of_their_own(examples_of):
    examples, _ = examples_of(
        ranking(["yes", "no"], [1, 2]),
        ranking(["yes", "maybe"], [1, 2]),
        ranking(["yes", "no"], [2, 1], prompt="hello"),
    )
    assert [example.responses for example in examples] == [("yes", "no"), ("yes", "maybe"), ("yes", "no")]
    assert [ranks_of(example) for example in examples] == [[(1, 2)], [(1, 2)], [(2, 1)]]


def test_equal_answers_keep_their_own_ranks(examples_of):
    (example,), _ = examples_of(ranking(["yes", "no", "yes"], [1, 2, 3]), ranking(["no", "yes", "yes"], [1, 2, 3]))
    assert ranks_of(example) == [(1, 2, 3), (2, 1, 3)]


def test_an_answer_that_is_too_long_is_left_out_of_its_ranking_only(examples_of):
    too_long = "no " * 40
    (first, second), report = examples_of(
        ranking(["yes", too_long, "no"], [2, 1, 3], where="r.jsonl:7"), ranking(["hello", "thanks"], [1, 2])
    )
    assert first.responses == ("yes", "no")
    assert ranks_of(first) == [(2, 3)]
    assert len(first.sequences) == len(first.lengths) == 2
    assert second.responses == ("hello", "thanks")
    assert (report["over_long"]["count"], report["answers"]) == (1, 5)
    assert report["over_long"]["places"][0].startswith("r.jsonl:7 answer 2 (")


def test_a_ranking_with_one_ranked_answer_left_is_left_out_and_reported(examples_of):
    examples, report = examples_of(
        ranking(["yes", "no " * 40, "no"], [1, 2, None], where="r.jsonl:7"), ranking(["hello", "thanks"], [1, 2])
    )
    assert [example.responses for example in examples] == [("hello", "thanks")]
    (skipped,) = report["skipped"]
    assert skipped["places"] == ["r.jsonl:7"]
    assert "fewer than two ranked answers" in skipped["rule"]
    assert report["tokens"]["answers"]["train"]["count"] == 2


def test_an_annotator_with_one_ranked_answer_left_does_not_halve_the_weight_of_the_other(examples_of):
    answers = ["yes", "no " * 40, "no"]
    (example,), report = examples_of(
        ranking(answers, [1, 2, None], annotator="ann", where="r.jsonl:7"), ranking(answers, [1, 3, 2], annotator="bob")
    )
    assert [annotation.annotator for annotation in example.annotations] == ["bob"]
    assert collate([example], pad_id=0).weights.tolist() == [1.0]
    assert report["skipped"][0]["places"] == ["r.jsonl:7"]


def test_the_weight_of_a_source_repeats_its_examples(examples_of):
    """The loader repeats the rankings of a source of weight 2; its prompts must then count twice in an epoch."""
    twice, once = ranking(["yes", "no"], [1, 2]), ranking(["yes", "no"], [2, 1], prompt="hello")
    examples, _ = examples_of(twice, twice, once)
    assert [(example.key, ranks_of(example)) for example in examples] == [
        ("what is the time", [(1, 2)]),
        ("what is the time", [(1, 2)]),
        ("hello", [(2, 1)]),
    ]


def test_two_annotators_who_agree_in_every_word_are_two_annotations(examples_of):
    (example,), _ = examples_of(ranking(["yes", "no"], [1, 2]), ranking(["yes", "no"], [1, 2]))
    assert ranks_of(example) == [(1, 2), (1, 2)]


def test_a_long_prompt_loses_its_first_words_and_a_response_never_its_last(examples_of, tokenizer):
    (example,), report = examples_of(ranking(["yes", "no"], [1, 2]), max_prompt_tokens=3, long_prompts=LongPrompts.cut)
    prompt = tokenizer("<|user|>what is the time<|assistant|>").input_ids
    assert len(prompt) > 3
    for ids, answer in zip(example.sequences, ("yes", "no"), strict=True):
        assert ids == [prompt[0], *prompt[-2:], *tokenizer(f"{answer}<|end|>").input_ids]
    assert report["cut"]["count"] == 1


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"responses": ["yes <|end|>", "no"]}, "r.jsonl:5: the text contains the control token '<|end|>'"),
        ({"prompt": "what is the time " * 30}, "r.jsonl:5: the prompt has"),
    ],
)
def test_an_error_names_the_record(examples_of, bad, message):
    with pytest.raises(UserError) as error:
        examples_of(ranking(**{"responses": ["yes", "no"], "ranks": [1, 2], "where": "r.jsonl:5", **bad}))
    assert str(error.value).startswith(message)


def test_a_split_in_which_all_answers_tie_cannot_judge_a_model(examples_of):
    tied, _ = examples_of(ranking(["yes", "no"], [1, 1]), ranking(["yes", "no", "maybe"], [2, 2, None], prompt="hi"))
    with pytest.raises(UserError, match=r"the 2 prompts of the valid split tie all their answers"):
        require_order(tied, "valid")
    ordered, _ = examples_of(ranking(["yes", "no"], [1, 1]), ranking(["yes", "no"], [2, 1], prompt="hi"))
    require_order(ordered, "valid")


# ---- flat batches


def example(sequences, *annotations):
    return RankingExample(
        tuple(sequences), tuple(map(str, sequences)), tuple(map(len, sequences)), annotations, (), "key"
    )


def test_a_batch_lays_rankings_flat_with_an_index_for_each_annotator():
    batch = collate(
        [
            example(
                [[5], [5, 6], [7]],
                Annotation((1, 2, 3), "ann", 1.0, 0.0),
                Annotation((2, 1, 0), "bob", 3.0, 0.5),
            ),
            example([[8, 9, 9], [8]], Annotation((2, 1), None, 1.0, 0.25)),
        ],
        pad_id=0,
    )
    assert batch.ids.tolist() == [[5, 0, 0], [5, 6, 0], [7, 0, 0], [8, 9, 9], [8, 0, 0]]
    assert batch.mask.sum(-1).tolist() == [1, 2, 1, 3, 1]
    assert batch.cu_answers.tolist() == [0, 3, 5]
    assert batch.index.tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert batch.ranks.tolist() == [1, 2, 3, 2, 1, 0, 2, 1]
    assert batch.cu_lengths.tolist() == [0, 3, 6, 8]
    assert batch.weights.tolist() == [0.5, 1.5, 1.0]  # of one prompt they sum to the mean of its annotators' weights
    assert batch.margins.tolist() == [0.0, 0.5, 0.25]


def test_masks_of_a_batch_come_from_lengths_even_when_eos_is_the_pad_token():
    batch = collate([example([[5, 1], [5, 6, 7, 1]], Annotation((1, 2), None, 1.0, 0.0))], pad_id=1)
    assert batch.mask.sum(-1).tolist() == [2, 4]


def test_a_ranking_that_cannot_be_encoded_is_left_out_and_counted_once_per_annotator(examples_of):
    bad = [ranking(["yes", "no <|end|>"], [1, 2], annotator=name, where=f"r.jsonl:{name}") for name in ("ann", "bob")]
    (example,), report = examples_of(*bad, ranking(["yes", "maybe"], [1, 2]), on_error=OnError.skip)
    assert example.responses == ("yes", "maybe")
    (skipped,) = report["skipped"]
    assert skipped["places"] == ["r.jsonl:ann", "r.jsonl:bob"]
    assert "control token '<|end|>'" in skipped["rule"]


def test_a_ranking_whose_prompt_is_too_long_can_be_left_out_and_counted(examples_of):
    long, short = ranking(["yes", "no"], [1, 2]), ranking(["yes", "no"], [1, 2], prompt="hi")
    examples, report = examples_of(long, short, max_prompt_tokens=4, long_prompts=LongPrompts.drop)
    assert [example.messages for example in examples] == [short.messages]
    assert report["dropped"]["count"] == 1
