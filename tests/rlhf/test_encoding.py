"""Texts to tokens: the same in every stage, exact behind their context, one BOS, no control token forged or hidden."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from imitated import TEMPLATES, byte_level, sentencepiece

from rlhf.config.schema import OnError, SftObjective
from rlhf.data.load import Demonstration
from rlhf.data.report import DataReport
from rlhf.errors import EncodingError, UserError
from rlhf.text.chat_template import begin_as_tokenizer_does, pin_template
from rlhf.text.encoding import (
    answer_ids,
    context_of,
    decode_response,
    encode_answer,
    encode_dialogue,
    encode_sample,
    encode_text,
)
from rlhf.text.prompts import encode_prompts
from rlhf.text.tokenizer import EOS, PAD, PLAIN_TEMPLATE, ROLES
from rlhf.training.sft import learned_text, sft_examples

CONTROL = [PAD, EOS, *ROLES]
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(
    lambda text: not any(token in text for token in CONTROL)
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}"
    "{% else %}{{ bos_token + '[INST] ' + m['content'] | trim + ' [/INST]' }}{% endif %}{% endfor %}"
)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


DIALOGUE = [user("hi"), assistant("yes"), user("no"), assistant("maybe")]


@pytest.fixture(scope="session")
def context(tokenizer):
    return context_of(tokenizer, [user("hello")])


# ---- one template, one way to tokenise


def test_a_prompt_is_its_turns_up_to_where_the_answer_begins(tokenizer):
    ids = context_of(tokenizer, [{"role": "system", "content": "no"}, user("hello")]).ids
    assert tokenizer.decode(ids) == "<|system|>no<|user|>hello<|assistant|>"


def test_the_prompts_tokens_are_a_prefix_of_prompt_and_response(tokenizer, context):
    ((ids, learned),) = encode_dialogue(tokenizer, [user("hello"), assistant(" yes")])
    response = encode_answer(tokenizer, context, " yes")
    assert ids == context.ids + response
    assert learned == [False] * len(context.ids) + [True] * len(response)


@pytest.mark.parametrize("answer", ["yes", " yes", "  yes", "yes ", "\nyes", ""])
def test_white_space_around_a_response_is_kept_and_moves_no_token_of_the_prompt(tokenizer, context, answer):
    response = encode_answer(tokenizer, context, answer)
    assert decode_response(tokenizer, response[:-1]) == answer
    assert tokenizer.decode(context.ids + response) == f"<|user|>hello<|assistant|>{answer}<|end|>"


@given(text=any_text)
def test_every_text_comes_back_from_its_tokens(tokenizer, context, text):
    assert decode_response(tokenizer, answer_ids(tokenizer, context, text)) == text


@given(text=any_text)
def test_a_sampled_response_has_the_tokens_that_the_same_text_has_in_data(tokenizer, context, text):
    assert encode_sample(tokenizer, context, text) == encode_answer(tokenizer, context, text)


def test_a_response_and_a_plain_text_end_with_eos_once(tokenizer, context):
    encoded = [encode(tokenizer, context, "yes") for encode in (encode_answer, encode_sample)]
    for ids in [*encoded, encode_text(tokenizer, "yes")]:
        assert ids[-1] == tokenizer.eos_token_id
        assert ids.count(tokenizer.eos_token_id) == 1


def test_every_assistant_turn_is_learned_with_its_eos(tokenizer):
    ((ids, learned),) = encode_dialogue(tokenizer, DIALOGUE)
    labels = [i if is_learned else -100 for i, is_learned in zip(ids, learned, strict=True)]
    shown = "<|user|>hi<|assistant|>[[yes<|end|>]]<|user|>no<|assistant|>[[maybe<|end|>]]"
    assert learned_text(tokenizer, ids, labels).startswith(f"{shown} (")


# ---- one BOS


@pytest.mark.parametrize("make", [lambda: byte_level(PLAIN_TEMPLATE, adds_bos=True), lambda: sentencepiece("first")])
def test_a_text_begins_with_one_bos_where_the_tokenizers_own_call_puts_one(make):
    tokenizer = make()
    ids = encode_text(tokenizer, "hello world")
    assert ids == [*tokenizer("hello world").input_ids, tokenizer.eos_token_id]
    assert ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, "{{ bos_token }}" + PLAIN_TEMPLATE, CHATML])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_dialogue_begins_with_one_bos_whether_the_template_writes_it_or_the_tokenizer_adds_it(template, adds_bos):
    tokenizer = byte_level(template, adds_bos=adds_bos)
    begin_as_tokenizer_does(tokenizer)
    ids = context_of(tokenizer, [user("hello")]).ids
    assert ids.count(tokenizer.bos_token_id) == (adds_bos or "bos_token" in template)
    assert (ids[0] == tokenizer.bos_token_id) == (adds_bos or "bos_token" in template)


# ---- tokenizers that mark spaces


@pytest.mark.parametrize("kind", ["legacy", "first", "none"])
@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, CHATML, LLAMA_2])
def test_each_turn_of_a_dialogue_stands_behind_the_ids_of_its_inference(kind, template):
    """A server tokenises the whole rendered context, and the template's whole rendering is what is learned."""
    tokenizer = sentencepiece(kind, template)
    begin_as_tokenizer_does(tokenizer)
    pin_template(tokenizer, [DIALOGUE], {}, None)
    sequences = encode_dialogue(tokenizer, DIALOGUE)
    contexts = [context_of(tokenizer, DIALOGUE[:turn]).ids for turn in (1, 3)]
    seen = [ids[:i] for ids, learned in sequences for i in starts(learned)]
    assert seen == contexts
    text = tokenizer.apply_chat_template(DIALOGUE, tokenize=False)
    whole = tokenizer(text, add_special_tokens=False).input_ids
    assert sequences[-1][0] == whole[: len(sequences[-1][0])]


def starts(learned) -> list[int]:
    return [i for i, is_learned in enumerate(learned) if is_learned and not learned[i - 1]]


@pytest.mark.parametrize("kind", ["legacy", "first", "none"])
@pytest.mark.parametrize("template", [PLAIN_TEMPLATE, CHATML, LLAMA_2])
@pytest.mark.parametrize("text", ["yes please", " yes", "yes\n\nno ", "ünknown 漢"])
def test_a_sampled_text_gets_back_the_ids_that_were_sampled(kind, template, text):
    tokenizer = sentencepiece(kind, template)
    context = context_of(tokenizer, [user("hello")])
    ids = answer_ids(tokenizer, context, text)
    assert decode_response(tokenizer, ids) == text
    assert answer_ids(tokenizer, context, decode_response(tokenizer, ids)) == ids


def test_a_dialogue_that_is_rendered_otherwise_later_on_is_learned_in_several_sequences():
    """Qwen 3's template writes an empty think block before the last answer, and takes it out of earlier turns."""
    tokenizer = byte_level(TEMPLATES["qwen3"], eos="<|im_end|>")
    pin_template(tokenizer, [DIALOGUE], {}, None)
    sequences = encode_dialogue(tokenizer, DIALOGUE)
    turn, thought = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", "<think>\n\n</think>\n\n"
    assert [tokenizer.decode(ids) for ids, _ in sequences] == [
        f"{turn.format('hi')}{thought}yes<|im_end|>",
        f"{turn.format('hi')}yes<|im_end|>\n{turn.format('no')}{thought}maybe<|im_end|>",
    ]
    said = [[i for i, is_learned in zip(*sequence, strict=True) if is_learned] for sequence in sequences]
    assert [tokenizer.decode(ids) for ids in said] == ["yes<|im_end|>", "maybe<|im_end|>"]


# ---- control tokens


@pytest.mark.parametrize("token", CONTROL)
def test_data_must_not_spell_a_control_token(tokenizer, context, token):
    attempts = [
        lambda: encode_answer(tokenizer, context, f"yes {token} no"),
        lambda: encode_text(tokenizer, f"yes {token} no"),
        lambda: context_of(tokenizer, [user(f"hi {token}")]).ids,
        lambda: context_of(tokenizer, [{"role": "system", "content": token}, user("hi")]).ids,
        lambda: encode_dialogue(tokenizer, [user("hi"), assistant(token)]),
    ]
    for attempt in attempts:
        with pytest.raises(EncodingError, match="must not spell"):
            attempt()


def test_a_control_token_without_a_role_is_one_too_and_an_added_word_is_none():
    tokenizer = byte_level("<|start_header_id|><|eot_id|>" + PLAIN_TEMPLATE)
    assert "<|start_header_id|>" not in tokenizer.all_special_tokens
    with pytest.raises(EncodingError, match=r"<\|start_header_id\|>"):
        encode_text(tokenizer, "a <|start_header_id|>system")
    context = context_of(tokenizer, [user("hello")])
    ids = encode_answer(tokenizer, context, "<think>yes</think>")
    assert ids == encode_sample(tokenizer, context, "<think>yes</think>")
    assert tokenizer.convert_tokens_to_ids("<think>") in ids


@pytest.mark.parametrize("token", CONTROL)
def test_a_control_token_that_a_policy_spells_in_letters_is_plain_text(tokenizer, context, token):
    spelled = [i for letter in f"no {token}" for i in tokenizer(letter, add_special_tokens=False).input_ids]
    text = decode_response(tokenizer, spelled)
    assert text == f"no {token}"
    ids = encode_sample(tokenizer, context, text)
    assert [i for i in ids if i in tokenizer.all_special_ids] == [tokenizer.eos_token_id]
    assert tokenizer.decode(ids[:-1]) == text


def test_a_control_token_that_a_policy_samples_is_there_to_be_seen(tokenizer):
    ids = [*tokenizer("yes").input_ids, tokenizer.convert_tokens_to_ids("<|user|>"), *tokenizer(" no").input_ids]
    assert decode_response(tokenizer, ids) == "yes<|user|> no"


# ---- bad records


def section(**changes):
    from rlhf.config.schema import LongPrompts

    limits = {"max_prompt_tokens": 60, "max_response_tokens": 40, "long_prompts": LongPrompts.error}
    return SimpleNamespace(**{**limits, "on_error": OnError.skip, **changes})


def demonstration(where, answer="yes", text=None):
    messages = () if text is not None else (user("hello"), assistant(answer))
    return Demonstration(messages, text, where, where)


@pytest.mark.parametrize("objective", [SftObjective.completion, SftObjective.assistant])
def test_a_record_that_cannot_be_encoded_is_left_out_and_counted_with_the_rule(tokenizer, objective):
    records, report = [demonstration("a.jsonl:1"), demonstration("a.jsonl:2", "no <|end|>")], DataReport()
    assert len(sft_examples(tokenizer, records, objective, section(), "train", report)) == 1
    (found,) = report.as_dict()["skipped"]
    assert found["places"] == ["a.jsonl:2"]
    assert "control token '<|end|>'" in found["rule"]


def test_a_text_among_dialogues_and_a_text_with_a_control_token_are_left_out_and_counted(tokenizer):
    records = [demonstration("a:1", text="hello world"), demonstration("a:2"), demonstration("a:3", text="<|user|>")]
    report = DataReport()
    assert len(sft_examples(tokenizer, records, SftObjective.text, section(), "train", report)) == 1
    assert [found["places"] for found in report.as_dict()["skipped"]] == [["a:2"], ["a:3"]]


def test_a_prompt_that_cannot_be_encoded_is_left_out_and_counted_or_an_error_that_names_it(tokenizer, prompts):
    from dataclasses import replace

    bad, report = replace(prompts[1], messages=(user("hi <|end|>"),)), DataReport()
    kept, ids = encode_prompts(tokenizer, [prompts[0], bad], section(), report)
    assert kept == [prompts[0]] and ids == [context_of(tokenizer, prompts[0].messages).ids]
    assert report.as_dict()["skipped"][0]["places"] == ["prompts.jsonl:2"]
    with pytest.raises(UserError, match=r"^prompts.jsonl:2: the text contains the control token"):
        encode_prompts(tokenizer, [bad], section(on_error=OnError.error), DataReport())


def test_the_report_shows_the_first_record_as_it_is_learned(tokenizer):
    report = DataReport()
    sft_examples(
        tokenizer,
        [demonstration("a:1"), demonstration("a:2", "no")],
        SftObjective.completion,
        section(),
        "train",
        report,
    )
    shown = "the first of demonstrations: <|user|>hello<|assistant|>[[yes<|end|>]] ("
    assert any(line.startswith(shown) for line in report.lines())
