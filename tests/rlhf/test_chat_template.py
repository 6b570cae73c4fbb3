"""The pinned template: what it puts before an answer is what the template itself writes there, in every stage."""

from datetime import datetime
from pathlib import Path

import pytest
import trl
from imitated import OF_IMAGES, TEMPLATES, byte_level, end_of
from template_table import DIALOGUES, STAGES, dialogues_of, pinned, said, stage_ids

from rlhf.errors import EncodingError, UserError
from rlhf.text.chat_template import literal, named_template, pin_template
from rlhf.text.encoding import DOCUMENT_END, context_of, encode_answer, encode_text
from rlhf.text.tokenizer import load_tokenizer

OF_TEXT = [name for name in TEMPLATES if name not in OF_IMAGES]
NOON = datetime(2026, 11, 30, 12)
QUESTION, ANSWER = said("user", "hello"), said("assistant", "yes please")
THOUGHT = said("assistant", "<think>\nthe reason\n</think>\n\nyes please")


def rendered(tokenizer, template, dialogue, **options):
    return tokenizer.apply_chat_template(dialogue, chat_template=template, tokenize=False, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_TEXT)
def test_every_stage_puts_before_an_answer_what_the_template_writes_there(name):
    tokenizer, end = pinned(name), end_of(name)
    for dialogue in dialogues_of(name):
        found = stage_ids(tokenizer, dialogue)
        assert all(found[stage][0] == found["sft"][0] for stage in STAGES)
        assert found["reward"][1] == found["ppo: scoring"][1] == found["sft"][1]
        whole = rendered(byte_level(TEMPLATES[name]), TEMPLATES[name], dialogue, add_generation_prompt=False)
        before, after = whole.rsplit(dialogue[-1]["content"], 1)
        assert tokenizer.decode(found["sft"][0]) == before
        assert tokenizer.decode(found["sft"][0] + found["sft"][1]) == before + dialogue[-1]["content"] + end
        assert after.startswith(end) or (after == "" and name == "glm4moe")  # there the next turn begins with it
        assert found["sft"][0].count(tokenizer.bos_token_id) <= 1


@pytest.mark.parametrize("name", OF_IMAGES)
def test_a_template_for_images_is_refused_with_the_reason(name):
    with pytest.raises(UserError, match=r"plain text|cannot render the dialogue.*see model.chat_template"):
        pinned(name)


@pytest.mark.parametrize("name", OF_TEXT)
def test_pinning_again_changes_nothing(name):
    tokenizer = pinned(name)
    before = tokenizer.chat_template, tokenizer.eos_token
    pin_template(tokenizer, DIALOGUES.values(), {}, datetime(2031, 1, 1))
    assert (tokenizer.chat_template, tokenizer.eos_token) == before


@pytest.mark.parametrize("name", OF_TEXT)
def test_an_answer_with_thoughts_of_its_own_is_learned_whole_in_one_think_block_or_refused(name):
    tokenizer = pinned(name, [[QUESTION, THOUGHT]])
    context = context_of(tokenizer, [QUESTION])
    try:
        text = tokenizer.decode(context.ids + encode_answer(tokenizer, context, THOUGHT["content"]))
    except EncodingError as error:
        assert name in ("deepseek_r1_distill", "deepseekv3", "qwen3_8")
        assert "only a part of the answer" in error.rule or "an empty one before it" in error.rule
    else:
        assert "".join(text.split()).endswith("<think>thereason</think>yesplease" + end_of(name))
        assert text.count("<think>") == text.count("</think>") == 1


def test_trls_training_template_keeps_the_thoughts_that_deepseeks_own_drops():
    template = Path(trl.__file__).parent / "chat_templates" / "deepseek_r1_distill_training.jinja"
    tokenizer = byte_level(template.read_text())
    pin_template(tokenizer, [[QUESTION, THOUGHT]], {}, NOON)
    context = context_of(tokenizer, [QUESTION])
    assert tokenizer.decode(context.ids).endswith("Assistant\uff5c>")
    ids = encode_answer(tokenizer, context, THOUGHT["content"])
    assert tokenizer.decode(ids[:-1]) == THOUGHT["content"]


def test_thoughts_in_some_answers_only_are_refused_with_both_texts():
    tokenizer = pinned("qwen3_5_think", [[QUESTION, ANSWER], [QUESTION, ANSWER], [QUESTION, THOUGHT]])
    context = context_of(tokenizer, [QUESTION])
    assert context.text.endswith("<think>\n\n</think>\n\n")
    with pytest.raises(EncodingError, match=r"writes '.*<think>\\nthe reason.* goes on with '.*</think>"):
        encode_answer(tokenizer, context, THOUGHT["content"])


# ---- what is pinned


def test_options_of_the_template_are_fixed_whatever_a_server_says_later():
    tokenizer = pinned("qwen3", enable_thinking=False)
    for options in ({}, {"enable_thinking": True}):
        text = rendered(tokenizer, tokenizer.chat_template, [QUESTION], add_generation_prompt=True, **options)
        assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


@pytest.mark.parametrize("value", [True, None, 3, 0.5, 'it\'s "so"\n{{ no }} 漢🙂', ["a", 1], {"a": False}])
def test_an_option_may_be_anything_that_yaml_can_say(value):
    tokenizer = byte_level("{{ option | tojson }}" + TEMPLATES["qwen2_5"])
    plain = rendered(tokenizer, tokenizer.chat_template, [QUESTION], option=value)
    pin_template(tokenizer, [], {"option": value}, NOON)
    assert rendered(tokenizer, tokenizer.chat_template, [QUESTION]) == plain
    assert literal(value) in tokenizer.chat_template


@pytest.mark.parametrize("name", [name for name in OF_TEXT if "strftime_now" in TEMPLATES[name]])
def test_the_date_is_the_one_of_stage_1_ever_after(name):
    tokenizer = byte_level(TEMPLATES[name])
    pin_template(tokenizer, DIALOGUES.values(), {}, datetime(2021, 2, 3))
    text = context_of(tokenizer, [QUESTION]).text
    assert "03 Feb 2021" in text or "2021-02-03" in text
    assert f"{datetime.now():%d %b %Y}" not in text and f"{datetime.now():%Y-%m-%d}" not in text


def test_a_plain_text_still_ends_with_the_tokenizers_own_eos(tmp_path):
    tokenizer = pinned("gemma", [[QUESTION, ANSWER]])
    assert tokenizer.eos_token == "<end_of_turn>"
    assert tokenizer.init_kwargs[DOCUMENT_END] == "<|endoftext|>"
    assert tokenizer.decode(encode_text(tokenizer, "hello")) == "hello<|endoftext|>"


def test_a_template_that_trims_answers_has_them_learned_as_it_renders_them():
    tokenizer = pinned("gemma", [[QUESTION, ANSWER]])
    context = context_of(tokenizer, [QUESTION])
    assert tokenizer.decode(encode_answer(tokenizer, context, " yes please \n")) == "yes please<end_of_turn>"


def test_of_several_named_templates_the_default_is_taken(tmp_path):
    tokenizer = byte_level(TEMPLATES["qwen2_5"])
    tokenizer.chat_template = {"default": TEMPLATES["qwen2_5"], "tool_use": "{{ tools }}"}
    assert named_template(tokenizer) == TEMPLATES["qwen2_5"]
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).chat_template == TEMPLATES["qwen2_5"]
    tokenizer.chat_template = {"rag": "", "tool_use": ""}
    with pytest.raises(UserError, match=r"templates named rag, tool_use, and none named default"):
        named_template(tokenizer)


def test_a_template_for_one_question_that_writes_no_answer_is_a_plain_continuation():
    tokenizer = byte_level("{{ bos_token }}{{ messages[0].content }}")
    pin_template(tokenizer, [[QUESTION, ANSWER]], {}, NOON)
    context = context_of(tokenizer, [QUESTION])
    text = tokenizer.decode(context.ids + encode_answer(tokenizer, context, " world"))
    assert text == "<|bos|>hello world<|endoftext|>"


@pytest.mark.parametrize("name", ["gemma", "qwen3_6", "gptoss"])
def test_text_only_data_pins_the_template_on_an_example_of_ours(name):
    tokenizer = byte_level(TEMPLATES[name])
    pin_template(tokenizer, [], {}, NOON)
    assert tokenizer.chat_template == pinned(name).chat_template or "strftime_now" in TEMPLATES[name]
    assert tokenizer.eos_token == end_of(name)


def test_a_template_that_refuses_system_turns_does_so_with_its_own_words():
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    tokenizer = byte_level(template + TEMPLATES["qwen2_5"])
    pin_template(tokenizer, DIALOGUES.values(), {}, NOON)
    with pytest.raises(EncodingError, match=r"cannot render the dialogue.*no system turns"):
        context_of(tokenizer, DIALOGUES["system turn"][:-1])
