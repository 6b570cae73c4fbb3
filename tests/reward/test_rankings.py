"""Rankings and pairs in every form they may be given, and what bad ones get told."""

import json
import math

import pytest
from omegaconf import OmegaConf

from reward.rankings import load_rankings, parse_ranking
from rlhf.data.load import split_of
from rlhf.data.records import Row
from rlhf.data.report import DataReport
from rlhf.errors import UserError

USER = {"role": "user", "content": "Where is my parcel?"}
THANKS = {"role": "user", "content": "Thanks!"}
RANKING = {"prompt": "Where is my parcel?", "responses": ["On its way.", "No idea.", "Ask."], "ranks": [1, 3, 2]}
PAIR = {"prompt": "Where is my parcel?", "chosen": "On its way.", "rejected": "No idea."}


def assistant(text):
    return {"role": "assistant", "content": text}


def parse(**values):
    return parse_ranking(Row(values, "data/r.jsonl:7"))


def noted(**values):
    """What the data report says of how a record was read."""
    row = Row(values, "data/r.jsonl:7")
    parse_ranking(row)
    return row.notes


def told(**values):
    """The message that a bad record gets."""
    with pytest.raises(UserError) as error:
        parse(**values)
    return str(error.value)


def load(tmp_path, records, report=None, **options):
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    data = {"rankings": str(path), "on_error": "error", "fields": {}, "valid_share": 0.0, "test_share": 0.0}
    data |= {"gold_rule": None, **options}
    return load_rankings(OmegaConf.create(data), report or DataReport())


def test_a_ranking_has_its_prompt_as_messages_and_its_ranks_as_given():
    ranking = parse(**RANKING)
    assert ranking.messages == (USER,)
    assert ranking.responses == ("On its way.", "No idea.", "Ask.")
    assert ranking.ranks == (1, 3, 2)
    assert (ranking.annotator, ranking.weight, ranking.margin, ranking.prompt_id) == (None, 1.0, None, None)
    assert ranking.where == "data/r.jsonl:7"


def test_ties_and_unranked_answers_are_kept():
    assert parse(**{**RANKING, "ranks": [1, None, 1]}).ranks == (1, None, 1)


def test_optional_fields_are_taken_and_null_means_not_given():
    ranking = parse(**RANKING, annotator=3, weight=2, margin=0.5, prompt_id=12, meta={"x": 1})
    assert (ranking.annotator, ranking.weight, ranking.margin, ranking.prompt_id) == ("3", 2.0, 0.5, "12")
    empty = parse(**RANKING, annotator=None, weight=None, margin=None, prompt_id=None)
    assert (empty.annotator, empty.weight, empty.margin, empty.prompt_id) == (None, 1.0, None, None)
    assert parse(**RANKING, annotator="").annotator is None  # nobody known, and not one person more


def test_a_transcript_prompt_is_its_turns():
    ranking = parse(**{**RANKING, "prompt": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Thanks!\n\nAssistant:"})
    assert ranking.messages == ({"role": "user", "content": "Hi"}, assistant("Hello."), THANKS)


def test_messages_win_over_a_prompt():
    ranking = parse(**{**RANKING, "prompt": "the same as text", "messages": [USER]})
    assert ranking.messages == (USER,)


def test_group_is_the_key_where_it_is_given():
    one, other = parse(**RANKING, group="a"), parse(**{**RANKING, "prompt": "Something else?"}, group="a")
    assert one.key == other.key
    assert one.key != parse(**RANKING).key


@pytest.mark.parametrize(
    "pair",
    [
        PAIR,
        {**PAIR, "chosen": [assistant("On its way.")], "rejected": [assistant("No idea.")]},
        {**PAIR, "chosen": [USER, assistant("On its way.")], "rejected": [USER, assistant("No idea.")]},
        {"messages": [USER], "chosen": "On its way.", "rejected": "No idea."},
        {"chosen": [USER, assistant("On its way.")], "rejected": [USER, assistant("No idea.")]},
        {
            "chosen": "\n\nHuman: Where is my parcel?\n\nAssistant: On its way.",
            "rejected": "\n\nHuman: Where is my parcel?\n\nAssistant: No idea.",
        },
        {
            "prompt": "\n\nHuman: Where is my parcel?\n\nAssistant:",
            "chosen": "\n\nHuman: Where is my parcel?\n\nAssistant: On its way.",
            "rejected": "\n\nHuman: Where is my parcel?\n\nAssistant: No idea.",
        },
        {
            "prompt": "Where is my parcel?",
            "messages": [USER, assistant("On its way.")],
            "chosen": [USER, assistant("On its way.")],
            "rejected": [USER, assistant("No idea.")],
        },
    ],
    ids=["texts", "answer messages", "dialogues", "messages", "implicit", "hh", "hh with prompt", "binarized"],
)
def test_a_pair_in_any_form_is_a_ranking_of_two(pair):
    ranking = parse(**pair, margin=2)
    assert (ranking.messages, ranking.responses) == ((USER,), ("On its way.", "No idea."))
    assert (ranking.ranks, ranking.margin) == ((1, 2), 2.0)
    assert ranking.key == parse(**RANKING).key


def test_one_message_of_the_assistant_is_an_answer_in_a_ranking_and_in_a_pair_of_sharegpt():
    said = [[assistant("On its way.")], assistant("No idea."), "Ask."]
    assert parse(**{**RANKING, "responses": said}) == parse(**RANKING)
    turns = {"from": "human", "value": "Where is my parcel?"}
    sides = {name: {"from": "gpt", "value": PAIR[name]} for name in ("chosen", "rejected")}
    assert parse(messages=[turns], **sides) == parse(**PAIR)


def test_the_system_column_belongs_to_the_prompt_in_every_form_of_a_pair():
    whole = {"chosen": [USER, assistant("On its way.")], "rejected": [USER, assistant("No idea.")]}
    system = {"role": "system", "content": "Be brief."}
    for pair in (PAIR, whole, {**whole, "prompt": USER["content"]}):
        assert parse(**pair, system="Be brief.").messages == (system, USER)


@pytest.mark.parametrize(
    ("human", "bot"),
    [("### Human: ", "\n### Assistant: "), ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")],
)
def test_transcripts_with_other_turn_marks_are_refused_by_their_mark(human, bot):
    message = told(chosen=f"{human}Hi{bot}Yes.", rejected=f"{human}Hi{bot}No.")
    assert message.startswith("data/r.jsonl:7: field 'chosen' is a transcript with turn marks that are not read (")
    assert "give messages" in message


def test_a_transcript_with_the_line_ends_of_windows_is_read():
    turns = "Human: Where is my parcel?\r\n\r\nAssistant: "
    assert parse(chosen=f"{turns}On its way.", rejected=f"{turns}No idea.") == parse(**PAIR)


def test_columns_that_only_have_our_names_are_ignored_by_name(tmp_path):
    foreign = {**PAIR, "group": ["a"], "margin": "wide", "weight": "7 kg", "annotator": {"id": 3}, "meta": "x"}
    names = ("group", "margin", "weight", "annotator")
    for name in names:
        message = told(**PAIR, **{name: foreign[name]})
        assert f"leave it out with +data.fields.{name}=null" in message
    [ranking] = load(tmp_path, [foreign], fields=dict.fromkeys(names))["train"]
    assert (ranking.annotator, ranking.weight, ranking.margin) == (None, 1.0, None)


def test_other_fields_are_kept_where_a_gold_rule_may_ask_for_them(tmp_path):
    record = {**RANKING, "weight": 2, "reference": "72", "meta": {"topic": "sums"}}
    [ranking] = load(tmp_path, [record], gold_rule="my_rules:right")["train"]
    assert ranking.meta == {"reference": "72", "topic": "sums"}
    [ranking] = load(tmp_path, [{**RANKING, "meta": "x"}], gold_rule="my_rules:right")["train"]
    assert ranking.meta == {"meta": "x"}
    [ranking] = load(tmp_path, [record])["train"]
    assert ranking.meta == {}


def test_what_two_dialogues_share_but_the_last_turn_is_the_prompt():
    shared = [USER, assistant("On its way."), THANKS]
    ranking = parse(chosen=[*shared, assistant("Gladly.")], rejected=[*shared, assistant("Bye.")])
    assert (ranking.messages, ranking.responses) == (tuple(shared), ("Gladly.", "Bye."))


def test_a_prompt_that_is_one_turn_of_two_longer_dialogues_leaves_them_whole():
    shared = [{"role": "system", "content": "Be brief."}, USER, assistant("On its way."), THANKS]
    dialogues = {"chosen": [*shared, assistant("Gladly.")], "rejected": [*shared, assistant("Bye.")]}
    for turn in (USER, THANKS):
        assert parse(prompt=turn["content"], **dialogues).messages == tuple(shared)


@pytest.mark.parametrize("shared", ["", "First of all, take ", "Where is my parcel? "])
def test_two_texts_that_share_their_first_words_hold_no_prompt(shared):
    message = told(question="q", chosen=f"{shared}this.", rejected=f"{shared}that.")
    assert "field 'prompt' is missing (found: question, chosen, rejected)" in message
    assert "+data.fields.prompt=question" in message


@pytest.mark.parametrize("names", [("score_chosen", "score_rejected"), ("chosen_rating", "rejected_rating")])
def test_a_pair_with_equal_scores_is_a_tie(names):
    tie, better = dict.fromkeys(names, 7.0), dict(zip(names, (8, 3), strict=True))
    assert (parse(**PAIR, **tie).ranks, noted(**PAIR, **tie)) == ((1, 1), ["equal scores kept as ties"])
    assert (parse(**PAIR, **better).ranks, noted(**PAIR, **better)) == ((1, 2), [])


def test_a_pair_whose_chosen_answer_scores_lower_stays_and_is_reported(tmp_path):
    report = DataReport()
    splits = load(tmp_path, [{**PAIR, "score_chosen": 2, "score_rejected": 5}], report)
    assert splits["train"][0].ranks == (1, 2)
    assert any("chosen has the lower score of the two" in line and ": 1 (" in line for line in report.lines())


# Scores


def test_scores_are_ranked_with_the_highest_first_ties_kept_and_null_not_ranked():
    record = {"prompt": "p", "responses": ["a", "b", "c", "d", "e"], "scores": [4.5, 9, "4.5", None, -1]}
    assert parse(**record).ranks == (2, 1, 2, None, 4)
    assert noted(**record) == ["scores read as ranks: higher is better", "equal scores kept as ties"]


def test_the_data_report_says_that_scores_were_read_as_ranks_and_how_many_tie(tmp_path):
    report = DataReport()
    record = {"prompt": "p", "responses": ["a", "b"], "scores": [2, 5]}
    load(tmp_path, [record, {**record, "prompt": "q", "scores": [5, 5]}, RANKING], report)
    assert f"scores read as ranks: higher is better: 2 ({tmp_path}/r.jsonl:1, {tmp_path}/r.jsonl:2)" in report.lines()
    assert f"equal scores kept as ties: 1 ({tmp_path}/r.jsonl:2)" in report.lines()


@pytest.mark.parametrize("score", [math.nan, math.inf, True, "good", "", "1_0", "nan", [1]])
def test_a_score_is_a_finite_number(score):
    message = told(prompt="p", responses=["a", "b"], scores=[1, score])
    rule = "a score must be a finite number, or null for not ranked"
    assert message == f"data/r.jsonl:7: field 'scores[1]' is {score!r}; {rule}"


@pytest.mark.parametrize("ranks", [[9, 2, 5], [2, 3, 2], [1, 5, 3], [0, 1, 2], [2, None, 3]])
def test_scores_given_as_ranks_are_refused_with_scores_offered(ranks):
    message = told(**{**RANKING, "ranks": ranks})
    assert message.endswith("Where higher is better these are scores: +data.fields.scores=<their name>")


def test_ranks_may_skip_numbers_after_a_tie_or_for_an_answer_that_is_not_ranked():
    for ranks in ([1, 1, 3], [1, 1, 2], [3, None, 1]):
        assert parse(**{**RANKING, "ranks": ranks}).ranks == tuple(ranks)


def test_scores_given_as_ranks_are_refused_as_a_whole_even_where_bad_records_are_skipped(tmp_path):
    """Five-point scores: those records that happen to have a 1 would be learned upside down."""
    records = [{**RANKING, "prompt": f"{n}?", "ranks": ranks} for n, ranks in enumerate([[1, 3, 2], [2, 3, 3]])]
    with pytest.raises(UserError, match=r"1 of 2 records have ranks that are none .*r\.jsonl:2\), too many for"):
        load(tmp_path, records, on_error="skip")
    assert len(load(tmp_path, [RANKING] * 10 + records[1:], on_error="skip")["train"]) == 10


def test_ranks_beside_scores_are_read_where_the_two_agree_and_refused_where_not():
    agreeing = {**RANKING, "scores": [0.9, 0.1, 0.9]}
    assert (parse(**agreeing).ranks, noted(**agreeing)) == ((1, 3, 2), [])
    message = told(**RANKING, scores=[1, 3, 2])
    assert "fields 'ranks' (1 = best) and 'scores' (higher is better) put the answers in different orders" in message
    assert message.endswith("[1, 3, 2] and [1, 3, 2]. Keep the one that is meant")


def test_an_order_under_another_name_is_offered_both_ways():
    message = told(prompt="p", responses=["a", "b"], ratings=[4, 2], quality=None)
    assert message == (
        "data/r.jsonl:7: field 'ranks' is missing, and so is 'scores' (found: prompt, responses, ratings, quality). "
        "Map the order with +data.fields.scores=ratings where higher is better, with +data.fields.ranks=ratings "
        "where 1 is best"
    )


# Records that are no rankings


@pytest.mark.parametrize(
    ("values", "remedy"),
    [
        (
            {"prompt": "p", "chosen_response": "a", "rejected_response": "b"},
            "Map yours with +data.fields.chosen=chosen_response +data.fields.rejected=rejected_response",
        ),
        (
            {"prompt": "p", "answers": ["a", "b"], "best": 1},
            "Map yours with +data.fields.responses=answers and, for their order, ranks or scores",
        ),
        ({"text": "p", "label": [1, 2]}, "Map yours with data.fields, or see docs/rankings.md for what else is read"),
        (
            {"prompt": "p", "completion": "a", "label": True},
            "One answer with a label of good or bad (KTO) ranks",
        ),
        ({"info": {}, "summaries": [], "choice": 0}, "import --rankings openai FILE --to OUT"),
        ({"data": [{"prompt": "p", "chosen": "a", "rejected": "b"}]}, "write them one a line: jq -c '.[][]' FILE"),
    ],
)
def test_a_record_that_is_no_ranking_is_told_what_a_ranking_needs(values, remedy):
    message = told(**values)
    assert message.startswith(
        "data/r.jsonl:7: no ranking: a ranking needs 'prompt' and 'responses' with 'ranks' (1 = best) or 'scores' "
        f"(higher is better), or 'chosen' and 'rejected' (found: {', '.join(values)}). "
    )
    assert remedy in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, "field 'prompt' is null"),
        ({"prompt": " "}, "field 'prompt' is empty"),
        ({"responses": None}, "field 'responses' is null"),
        ({"responses": "On its way."}, "field 'responses' must be a list of strings, not a string"),
        ({"responses": ["one"], "ranks": [1]}, "field 'responses' has 1 answers; a ranking needs 2 or more"),
        ({"responses": ["one", "", "x"]}, "field 'responses[1]' is empty"),
        ({"responses": ["one", "two", 3]}, "field 'responses[2]' is a number; an answer must be a string"),
        ({"ranks": 1}, "field 'ranks' must be a list of numbers, not a number"),
        ({"ranks": [1, 2]}, "field 'ranks' has 2 entries for 3 responses; give one rank for each response, null for"),
        ({"ranks": [1, None, None]}, "field 'ranks' ranks 1 of 3 responses; rank at least 2, or leave the record out"),
        ({"annotator": ["x"]}, "field 'annotator' must be a name or a whole number, not a list"),
        ({"prompt_id": True}, "field 'prompt_id' must be a name or a whole number, not true or false"),
        ({"margin": -1}, "field 'margin' is -1; margin must be a finite number from 0, or left out"),
        ({"margin": math.inf}, "field 'margin' is inf; margin must be a finite number from 0, or left out"),
        ({"messages": [assistant("x")]}, "field 'messages[0].role' is 'assistant', must be 'user'"),
    ],
)
def test_a_bad_ranking_is_told_place_field_and_rule(change, message):
    assert told(**{**RANKING, **change}).startswith(f"data/r.jsonl:7: {message}")


@pytest.mark.parametrize("rank", [0, -1, 1.5, math.nan, math.inf, True, "1", 4, 10**30])
def test_a_rank_is_a_whole_number_from_one_to_the_number_of_answers(rank):
    message = told(**{**RANKING, "ranks": [1, rank, 2]})
    rule = "a rank must be a whole number from 1 (the best) to the number of answers, or null for not ranked"
    assert message.startswith(f"data/r.jsonl:7: field 'ranks[1]' is {rank!r}; {rule}")


def test_whole_numbers_that_a_table_made_floats_are_ranks():
    ranks = parse(**{**RANKING, "ranks": [1.0, 3.0, 2.0]}).ranks
    assert ranks == (1, 3, 2) and {type(rank) for rank in ranks} == {int}


@pytest.mark.parametrize("weight", [0, -0.5, math.nan, math.inf, True, "2", 10**400])
def test_a_weight_is_a_finite_number_above_zero(weight):
    message = told(**RANKING, weight=weight)
    assert message.startswith("data/r.jsonl:7: field 'weight' is ")
    remedy = "If it is something else, leave it out with +data.fields.weight=null"
    assert message.endswith(f"; weight must be a finite number above 0, or left out. {remedy}")


def test_a_missing_field_is_told_with_what_was_found_and_how_to_map_it():
    values = {"prompt": "p", "answers": ["a", "b"], "ranks": [1, 2]}
    assert told(**values) == (
        "data/r.jsonl:7: field 'responses' is missing (found: prompt, answers, ranks). "
        "Map it with +data.fields.responses=answers"
    )


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ({"prompt": "p", "chosen": "a"}, "field 'rejected' is missing (found: prompt, chosen)"),
        ({**PAIR, "rejected": " "}, "field 'rejected' is empty"),
        ({**PAIR, "rejected": []}, "field 'rejected' is empty"),
        ({**PAIR, "rejected": 5}, "field 'rejected' must be a string, not a number"),
        (
            {"question": "q", "chosen": "a", "rejected": "b"},
            "field 'prompt' is missing (found: question, chosen, rejected)",
        ),
        ({"chosen": "Yes, sir.", "rejected": "No, sir."}, "field 'prompt' is missing (found: chosen, rejected)"),
        (
            {"chosen": [assistant("a")], "rejected": [assistant("b")]},
            "field 'prompt' is missing (found: chosen, rejected)",
        ),
        ({"chosen": [USER], "rejected": [USER]}, "field 'chosen' must end with an answer of the assistant"),
        (
            {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes.", "rejected": "\n\nHuman: Ho\n\nAssistant: No."},
            "fields 'chosen' and 'rejected' differ before their last turn; they must answer the same prompt",
        ),
        (
            {**PAIR, "chosen": [THANKS, assistant("On its way.")]},
            "field 'chosen' must be one answer to the prompt, or the prompt's turns and one answer",
        ),
        ({**PAIR, "chosen": ["On its way."]}, "field 'chosen[0]' must be {role, content}, both strings"),
    ],
)
def test_a_bad_pair_is_told_place_field_and_rule(pair, message):
    assert told(**pair).startswith(f"data/r.jsonl:7: {message}")


def test_splits_are_by_the_key(tmp_path):
    records = [{**RANKING, "prompt": f"Question {n}?", "annotator": a} for n in range(60) for a in "xy"]
    splits = load(tmp_path, records, valid_share=0.2, test_share=0.2)
    assert all(len(rankings) > 0 for rankings in splits.values())
    for split, rankings in splits.items():
        assert {split_of(ranking.key, 0.2, 0.2) for ranking in rankings} == {split}


def test_fields_are_mapped(tmp_path):
    records = [{"question": "q", "answers": ["a", "b"], "order": [2, 1]}]
    fields = {"prompt": "question", "responses": "answers", "ranks": "order"}
    [ranking] = load(tmp_path, records, fields=fields)["train"]
    assert (ranking.responses, ranking.ranks) == (("a", "b"), (2, 1))


def test_a_bad_record_is_counted_with_on_error_skip(tmp_path):
    report = DataReport()
    splits = load(tmp_path, [RANKING, {**RANKING, "ranks": [1, 2]}], report, on_error="skip")
    assert len(splits["train"]) == 1
    [skipped] = report.as_dict()["skipped"]
    assert (skipped["count"], skipped["places"]) == (1, [f"{tmp_path}/r.jsonl:2"])
    with pytest.raises(UserError, match=r"r\.jsonl:2: field 'ranks' has 2 entries for 3 responses"):
        load(tmp_path, [RANKING, {**RANKING, "ranks": [1, 2]}])


def test_rankings_that_tie_everything_everywhere_are_refused(tmp_path):
    tied = {**RANKING, "ranks": [1, None, 1]}
    with pytest.raises(
        UserError, match=r"r\.jsonl:1: field 'ranks' is \[1, None, 1\], and all 2 training .* nothing to"
    ):
        load(tmp_path, [tied, {**tied, "prompt": "Another?"}])
    assert len(load(tmp_path, [tied, RANKING])["train"]) == 2


def test_exact_duplicates_are_counted_and_kept(tmp_path):
    report = DataReport()
    splits = load(tmp_path, [RANKING, RANKING, {**RANKING, "annotator": "x"}], report)
    assert len(splits["train"]) == 3
    assert report.as_dict()["sources"][0]["duplicates"] == 1


def test_contradictions_are_counted_and_kept(tmp_path):
    agrees = {**PAIR, "annotator": "x"}
    turned = {**RANKING, "responses": ["No idea.", "On its way."], "ranks": [1, 2]}
    same_answer = {**RANKING, "prompt": "Else?", "responses": ["a", "a"], "ranks": [1, 2]}
    tied = {**turned, "ranks": [1, 1]}
    elsewhere = {**turned, "prompt": "Another?"}
    report = DataReport()
    splits = load(tmp_path, [RANKING, agrees, turned, same_answer, tied, elsewhere], report)
    assert len(splits["train"]) == 6
    assert report.as_dict()["contradictions"] == {
        "count": 2,
        "places": [
            f"{tmp_path}/r.jsonl:3 against {tmp_path}/r.jsonl:1",
            f"{tmp_path}/r.jsonl:4 has the same answer at two ranks",
        ],
    }


def test_two_known_annotators_who_differ_disagree_and_one_who_differs_from_himself_contradicts(tmp_path):
    turned = {**RANKING, "responses": ["No idea.", "On its way."], "ranks": [1, 2]}
    report = DataReport()
    load(tmp_path, [{**RANKING, "annotator": "x"}, {**turned, "annotator": "y"}, {**turned, "annotator": "x"}], report)
    found = report.as_dict()
    assert (found["disagreements"]["count"], found["contradictions"]["count"]) == (1, 1)


def test_a_source_with_weight_repeats_its_training_rankings_but_reports_them_once(tmp_path):
    report = DataReport()
    path = str(tmp_path / "r.jsonl")
    records = [RANKING, {**RANKING, "ranks": [3, 1, 2]}]
    splits = load(tmp_path, records, report, rankings=[{"path": path, "weight": 2}])
    assert len(splits["train"]) == 4
    assert report.as_dict()["contradictions"]["count"] == 1
