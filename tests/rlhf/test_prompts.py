"""Prompts within their budget: refused, dropped, or cut so that the frame of the dialogue stays."""

from types import SimpleNamespace

import pytest
from imitated import byte_level

from rlhf.config.schema import LongPrompts, OnError
from rlhf.data.load import Prompt
from rlhf.data.report import DataReport
from rlhf.errors import EncodingError, UserError
from rlhf.text.chat_template import begin_as_tokenizer_does
from rlhf.text.encoding import context_of
from rlhf.text.prompts import cut, encode_prompts, fit_prompt, within


def said(role, text):
    return {"role": role, "content": text}


DIALOGUE = (
    *(said("system", "please"), said("user", "hi"), said("assistant", "yes")),
    *(said("user", "no"), said("assistant", "maybe"), said("user", "is it rome or oslo")),
)


def section(limit, long_prompts=LongPrompts.error, on_error=OnError.error):
    return SimpleNamespace(max_prompt_tokens=limit, long_prompts=long_prompts, on_error=on_error)


def size(tokenizer, messages):
    return len(context_of(tokenizer, messages).ids)


def test_a_long_prompt_is_an_error_that_names_record_length_limit_and_remedy(tokenizer, prompts):
    with pytest.raises(UserError) as error:
        encode_prompts(tokenizer, prompts[:1], section(2), DataReport())
    for part in ("prompts.jsonl:1: ", "has 4 tokens", "data.max_prompt_tokens=2", "data.long_prompts=cut", "drop"):
        assert part in str(error.value)


def test_a_long_prompt_is_left_out_and_counted_when_asked(tokenizer, prompts):
    report, limit = DataReport(), size(tokenizer, prompts[0].messages)
    kept, ids = encode_prompts(tokenizer, prompts[:2], section(limit, LongPrompts.drop), report)
    assert kept == prompts[:1] and ids == [context_of(tokenizer, prompts[0].messages).ids]
    dropped = report.as_dict()["dropped"]
    assert (dropped["count"], dropped["places"][0][:16]) == (1, "prompts.jsonl:2 ")
    assert any(line.startswith("prompts over data.max_prompt_tokens, left out: 1 ") for line in report.lines())


def test_bad_records_that_are_skipped_include_too_long_ones(tokenizer, prompts):
    report = DataReport()
    assert encode_prompts(tokenizer, prompts[:2], section(4, on_error=OnError.skip), report)[0] == prompts[:1]
    assert report.as_dict()["skipped"][0]["rule"] == "the prompt is over data.max_prompt_tokens"


def test_a_prompt_within_the_limit_is_left_as_it_is(tokenizer):
    report = DataReport()
    context = fit_prompt(tokenizer, DIALOGUE, section(100, LongPrompts.cut), "a.jsonl:7", report)
    assert context == context_of(tokenizer, DIALOGUE)
    assert report.as_dict()["cut"]["count"] == 0


@pytest.mark.parametrize("num_dropped", [2, 4])
def test_the_oldest_turns_after_the_system_turn_go_first_a_question_with_its_answer(tokenizer, num_dropped):
    left, report = (DIALOGUE[0], *DIALOGUE[1 + num_dropped :]), DataReport()
    limit = size(tokenizer, left)
    context = fit_prompt(tokenizer, DIALOGUE, section(limit, LongPrompts.cut), "a.jsonl:7", report)
    assert (context.messages, context.ids) == (left, context_of(tokenizer, left).ids)
    assert report.as_dict()["cut"]["places"] == [f"a.jsonl:7 ({size(tokenizer, DIALOGUE)} tokens, limit {limit})"]


def test_then_the_last_turn_loses_its_first_words_and_keeps_its_frame(tokenizer):
    last = [tokenizer.decode([i]) for i in tokenizer("is it rome or oslo").input_ids]
    for kept in range(1, len(last)):
        context = cut(tokenizer, DIALOGUE, size(tokenizer, (DIALOGUE[0], DIALOGUE[-1])) - len(last) + kept)
        assert context.text == f"<|system|>please<|user|>{''.join(last[-kept:])}<|assistant|>"


def test_a_cut_prompt_still_begins_with_bos():
    tokenizer = byte_level("{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}", adds_bos=True)
    begin_as_tokenizer_does(tokenizer)
    context = cut(tokenizer, DIALOGUE, size(tokenizer, DIALOGUE) // 3)
    assert context.ids[0] == tokenizer.bos_token_id and context.ids.count(tokenizer.bos_token_id) == 1


def test_a_limit_below_the_frame_alone_is_an_error(tokenizer):
    with pytest.raises(EncodingError, match=r"alone have more tokens than data.max_prompt_tokens=4; raise the limit"):
        cut(tokenizer, DIALOGUE, 4)


def test_within_is_the_context_itself_or_its_cut(tokenizer):
    assert within(tokenizer, DIALOGUE, 100) == context_of(tokenizer, DIALOGUE)
    assert within(tokenizer, DIALOGUE, 8) == cut(tokenizer, DIALOGUE, 8)


def test_a_very_long_turn_is_cut_in_a_moment(tokenizer):
    prompt = Prompt((said("user", "is it rome or oslo " * 20_000),), "", "a.jsonl:1")
    _, ((*ids,),) = encode_prompts(tokenizer, [prompt], section(50, LongPrompts.cut), DataReport())
    assert len(ids) == 50
