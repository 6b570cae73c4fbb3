"""Rules: how they are marked and found, and what the gold rule of the toy world says about answers read by hand."""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from reward.rules import INTENTS, PHRASES, PRODUCTS, load_rule, no_repetition, rule, support_desk
from rlhf.errors import UserError

PROMPT = "Hello, when will my desk arrive?"
FACT = "Your desk arrives within nine days."
GOOD = f"Glad to help with the desk. {FACT} Have a lovely day."


def utility(response, prompt=PROMPT):
    (score,) = support_desk([prompt], [response])
    return pytest.approx(score)


def test_a_right_polite_and_concise_answer_scores_one():
    assert utility(GOOD) == 1.0
    assert utility("The desk reaches you in nine days. We wish you well.") == 1.0


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("Your sofa arrives within nine days. Happy to help.", 0.4),  # another product
        ("Your desk arrives within two days. Happy to help.", 0.0),  # in no table: not a fact of this shop
        (f"Glad to help with the sofa. {FACT}", 0.4),
        ("Clean the desk with a dry cloth. Happy to help.", 0.2),  # true, but not asked
        ("Clean the desk with warm water. Happy to help.", 0.0),  # neither
        ("We refund the sofa within ten days. Happy to help.", 0.0),
    ],
)
def test_what_an_answer_says_is_graded_by_question_product_and_truth(response, expected):
    assert utility(response) == expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (FACT, 0.7),  # curt
        (f"{FACT} Do not ask again.", 0.49),  # curt and rude
        (f"{GOOD} Our shop is old.", 0.7),
        (f"{GOOD} Our shop is old. We think a lot.", 0.49),
        (f"{GOOD} {FACT}", 0.7),  # says it twice
        (f"{GOOD} Have a lovely day.", 0.7),
        (f"{GOOD} We wish you well.", 0.7),  # a third courtesy
        (f"{GOOD} Clean the desk with a dry cloth.", 0.7),  # true, but nobody asked
        (f"{GOOD} Clean the sofa with a dry cloth.", 0.5),  # of another product
        (f"{GOOD} Clean the desk with warm water.", 0.3),  # no fact of this shop
        (f"{GOOD} You get a free gift.", 0.5),
        (f"{GOOD} You get a free gift. Our shop is old.", 0.35),
        (f"{GOOD} Blue days desk.", 0.3),
        (GOOD[:-6], 0.3),  # cut off
    ],
)
def test_each_further_fault_multiplies_the_utility(response, expected):
    assert utility(response) == expected


@pytest.mark.parametrize(
    "response", ["", " ", "...", "desk nine days desk", "Your desk arrives within nine", "ÿ\x00<eos>", "Happy to help."]
)
def test_text_without_a_fact_scores_zero(response):
    assert utility(response) == 0.0


def test_case_and_white_space_do_not_matter():
    assert utility(f"  {GOOD.upper()}\n".replace(" ", "  ")) == 1.0


def test_the_last_user_turn_is_what_is_judged():
    dialogue = [
        {"role": "system", "content": "You work for a shop."},
        {"role": "user", "content": "Is the lamp in stock?"},
        {"role": "assistant", "content": "The lamp is in stock on Monday."},
        {"role": "user", "content": PROMPT},
    ]
    assert support_desk([dialogue, PROMPT], [GOOD, FACT]) == pytest.approx([1.0, 0.7])


@pytest.mark.parametrize("prompt", ["What is the capital of France?", "", [{"role": "system", "content": PROMPT}]])
def test_a_prompt_of_another_world_is_refused_with_the_remedy(prompt):
    with pytest.raises(UserError, match=r"judges only prompts of data/toy, and '.*' is not one; name another rule"):
        support_desk([prompt], [GOOD])


def test_no_sentence_of_the_world_means_two_things():
    sentences = [text for texts in PHRASES.values() for text in texts]
    sentences += [answer for intent in INTENTS.values() for answer in intent.answers]
    questions = [question for intent in INTENTS.values() for question in intent.questions]
    assert len(set(sentences)) == len(sentences)
    assert len(set(questions)) == len(questions)
    assert not set(PRODUCTS) & {word for text in sentences + questions for word in text.lower().strip(".?").split()}


def test_no_repetition_is_the_share_of_new_runs_of_three_words():
    # "a b c a b c": runs abc bca cab abc, three of the four are new
    assert no_repetition([""] * 4, ["a b c d", "a b c A B C", "hello", ""]) == [1.0, 0.75, 1.0, 0.0]


def test_a_rule_is_found_by_module_and_function():
    assert load_rule("reward.rules:support_desk") is support_desk


def test_a_rule_of_ones_own_module_is_found(tmp_path, monkeypatch):
    source = (
        "from reward.rules import rule\n@rule\ndef mine(prompts, responses):\n    return [len(r) for r in responses]\n"
    )
    (tmp_path / "rules_of_a_user.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    assert load_rule("rules_of_a_user:mine")(["p"], ["four"]) == [4.0]
    sys.modules.pop("rules_of_a_user")


@pytest.mark.parametrize(
    "name", ["os:system", "reward.rules:import_module", "reward.rules:load_rule", "reward.rules:question_asked"]
)
def test_a_function_that_is_not_marked_is_refused(name):
    with pytest.raises(UserError, match=r"has no function '.*' marked with @rule .*; mark it with"):
        load_rule(name)


def test_the_refusal_lists_the_rules_that_the_module_has():
    with pytest.raises(UserError, match=r"marked there: reward.rules:no_repetition, reward.rules:support_desk\)"):
        load_rule("reward.rules:suport_desk")


@pytest.mark.parametrize("name", ["", "reward.rules", "reward.rules:", ":f", "a b:f", ".rules:f", "m:f()", "m:a.b"])
def test_a_name_of_another_form_is_refused(name):
    with pytest.raises(UserError, match="is not of the form module:function"):
        load_rule(name)


def test_a_module_that_does_not_exist_is_refused_with_the_remedy():
    with pytest.raises(UserError, match=r"cannot import 'no_such_module' .*; start in its folder or install it"):
        load_rule("no_such_module:f")


def test_a_rule_that_asks_for_records_is_given_them_and_others_are_not():
    @rule
    def right(prompts, responses, records):
        return [float(record.get("reference") == response) for response, record in zip(responses, records, strict=True)]

    assert right(["1 + 1?", "2 + 2?"], ["2", "5"], [{"reference": "2"}, {"reference": "4"}]) == [1.0, 0.0]
    assert right(["1 + 1?"], ["2"]) == [0.0]  # no record: an empty one
    assert no_repetition(["?"], ["a b c"], [{"reference": "x"}]) == [1.0]


def test_a_rule_sees_prompts_in_one_form_whatever_it_was_called_with():
    seen = []

    @rule
    def note(prompts, responses):
        seen.extend(prompts)
        return [0.0 for _ in responses]

    turn = {"role": "user", "content": "hi"}
    note(["hi", ({"role": "system", "content": "s"}, turn)], ["a", "b"])
    assert seen == [[turn], [{"role": "system", "content": "s"}, turn]]


def test_a_rule_may_be_a_coroutine():
    @rule
    async def judged(prompts, responses):
        return await asyncio.gather(*(asyncio.sleep(0, float(len(response))) for response in responses))

    async def cell_of_a_notebook():
        return judged(["p", "p"], ["ab", "abc"])

    assert judged(["p", "p"], ["ab", "abc"]) == [2.0, 3.0]
    with ThreadPoolExecutor(max_workers=1) as thread:  # where no other test's browser has left a running loop
        assert thread.submit(lambda: asyncio.run(cell_of_a_notebook())).result() == [2.0, 3.0]


def test_a_rule_that_returns_too_few_scores_is_refused():
    @rule
    def lazy(prompts, responses):
        return [1.0]

    with pytest.raises(UserError, match="gave 1 scores for 2 responses; return one for each"):
        lazy(["p", "p"], ["a", "b"])
