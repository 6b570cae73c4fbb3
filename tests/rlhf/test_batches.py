"""Dialogues to tokens: the same tokens in every stage, masks from lengths, no control token forged by text."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from rlhf.batches import (
    decode_response,
    encode_dialogue,
    encode_prompt,
    encode_prompts,
    encode_response,
    encode_sample,
    encode_text,
    fit_prompt,
    pad_left,
    pad_right,
)
from rlhf.config import LongPrompts
from rlhf.data_report import DataReport
from rlhf.errors import UserError
from rlhf.tokenizer import EOS, PAD, PLAIN_TEMPLATE, ROLES, load_tokenizer, train_tokenizer

CONTROL = [PAD, EOS, *ROLES]
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(
    lambda text: not any(token in text for token in CONTROL)
)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def tokens(tokenizer, ids):
    return [tokenizer.decode([i]) for i in ids]


# ---- one template, one way to tokenise


def test_a_prompt_is_its_turns_up_to_where_the_answer_begins(tokenizer):
    ids = encode_prompt(tokenizer, [{"role": "system", "content": "no"}, user("hello")])
    assert tokenizer.decode(ids) == "<|system|>no<|user|>hello<|assistant|>"


def test_the_prompts_tokens_are_a_prefix_of_prompt_and_response(tokenizer):
    prompt, answer = [user("what is the time")], " yes"
    ids, learned = encode_dialogue(tokenizer, [*prompt, assistant(answer)])
    context, response = encode_prompt(tokenizer, prompt), encode_response(tokenizer, answer)
    assert ids == context + response
    assert learned == [False] * len(context) + [True] * len(response)


@pytest.mark.parametrize("answer", ["yes", " yes", "  yes", "yes ", "\nyes", ""])
def test_white_space_around_a_response_is_kept_and_moves_no_token_of_the_prompt(tokenizer, answer):
    prompt = encode_prompt(tokenizer, [user("hello")])
    response = encode_response(tokenizer, answer)
    assert decode_response(tokenizer, response) == answer
    assert tokenizer.decode(prompt + response) == f"<|user|>hello<|assistant|>{answer}<|end|>"


@given(text=any_text)
def test_every_text_comes_back_from_its_tokens(tokenizer, text):
    assert decode_response(tokenizer, encode_response(tokenizer, text)) == text


def test_a_response_and_a_plain_text_end_with_eos(tokenizer):
    for encode in (encode_response, encode_text, encode_sample):
        ids = encode(tokenizer, "yes")
        assert ids[-1] == tokenizer.eos_token_id
        assert ids.count(tokenizer.eos_token_id) == 1


def test_every_assistant_turn_is_learned_with_its_eos(tokenizer):
    dialogue = [user("hi"), assistant("yes"), user("no"), assistant("maybe")]
    ids, learned = encode_dialogue(tokenizer, dialogue)
    said = [token for token, is_learned in zip(tokens(tokenizer, ids), learned, strict=True) if is_learned]
    assert "".join(said) == "yes<|end|>maybe<|end|>"
    assert tokenizer.decode(ids) == "<|user|>hi<|assistant|>yes<|end|><|user|>no<|assistant|>maybe<|end|>"


def test_a_template_that_rewrites_earlier_turns_is_refused_for_dialogues(tokenizer, tmp_path):
    changing = with_template(
        tokenizer, tmp_path, "{% for m in messages %}{{ loop.revindex }}{{ m['content'] }}{% endfor %}"
    )
    with pytest.raises(UserError, match=r"changes earlier turns.*sft.objective=completion"):
        encode_dialogue(changing, [user("hi"), assistant("yes"), user("no"), assistant("maybe")])


# ---- control tokens


@pytest.mark.parametrize("token", CONTROL)
def test_data_must_not_spell_a_control_token(tokenizer, token):
    for encode in (encode_response, encode_text):
        with pytest.raises(UserError, match="must not spell"):
            encode(tokenizer, f"yes {token} no")
    with pytest.raises(UserError, match="must not spell"):
        encode_prompt(tokenizer, [user(f"hi {token}")])
    with pytest.raises(UserError, match="must not spell"):
        encode_dialogue(tokenizer, [user("hi"), assistant(token)])


@pytest.mark.parametrize("token", CONTROL)
def test_a_control_token_that_a_policy_spells_in_letters_is_plain_text(tokenizer, token):
    spelled = [i for letter in f"no {token}" for i in tokenizer(letter, add_special_tokens=False).input_ids]
    text = decode_response(tokenizer, spelled)
    assert text == f"no {token}"
    ids = encode_sample(tokenizer, text)
    assert [i for i in ids if i in tokenizer.all_special_ids] == [tokenizer.eos_token_id]
    assert tokenizer.decode(ids[:-1]) == text


@given(text=any_text)
def test_a_sampled_response_has_the_tokens_that_the_same_text_has_in_data(tokenizer, text):
    assert encode_sample(tokenizer, text) == encode_response(tokenizer, text)


def test_a_decoded_response_has_no_control_tokens(tokenizer):
    ids = [tokenizer.convert_tokens_to_ids("<|user|>"), *encode_response(tokenizer, "yes"), tokenizer.pad_token_id]
    assert decode_response(tokenizer, ids) == "yes"


# ---- prompts within their budget


def data_section(limit, long_prompts=LongPrompts.error):
    return SimpleNamespace(max_prompt_tokens=limit, long_prompts=long_prompts)


def test_a_long_prompt_is_an_error_that_names_record_length_limit_and_remedy(tokenizer, prompts):
    with pytest.raises(UserError) as error:
        encode_prompts(tokenizer, prompts[:1], data_section(2), DataReport())
    for part in ("prompts.jsonl:1: ", "has 4 tokens", "data.max_prompt_tokens=2", "data.long_prompts=cut"):
        assert part in str(error.value)


def test_a_long_prompt_is_cut_from_the_left_when_asked_and_reported():
    report = DataReport()
    assert fit_prompt([1, 2, 3, 4, 5], data_section(3, LongPrompts.cut), "a.jsonl:7", report) == [3, 4, 5]
    assert report.as_dict()["cut"] == {"count": 1, "places": ["a.jsonl:7 (5 tokens, limit 3)"]}


def test_a_prompt_within_the_limit_is_left_as_it_is():
    report = DataReport()
    assert fit_prompt([1, 2, 3], data_section(3, LongPrompts.cut), "a.jsonl:7", report) == [1, 2, 3]
    assert report.as_dict()["cut"]["count"] == 0


# ---- padding


def test_prompts_are_padded_left_and_responses_right():
    ids, mask = pad_left([[5], [6, 7, 8]], pad_id=0)
    assert ids.tolist() == [[0, 0, 5], [6, 7, 8]]
    assert mask.tolist() == [[False, False, True], [True, True, True]]
    ids, mask = pad_right([[5], [6, 7, 8]], pad_id=0)
    assert ids.tolist() == [[5, 0, 0], [6, 7, 8]]
    assert mask.tolist() == [[True, False, False], [True, True, True]]


@pytest.mark.parametrize("pad", [pad_left, pad_right])
def test_masks_come_from_lengths_even_when_eos_is_the_pad_token(pad):
    eos = 1
    _, mask = pad([[4, eos], [eos, 4, 4, eos]], pad_id=eos)
    assert mask.sum(-1).tolist() == [2, 4]
    assert mask.dtype is torch.bool


# ---- the tokenizer itself


def with_template(tokenizer, tmp_path, template):
    """The tokenizer, loaded with another chat template."""
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "own.jinja").write_text(template)
    return load_tokenizer(str(tmp_path), chat_template=str(tmp_path / "own.jinja"))


def saved_without(tokenizer, tmp_path, **changes):
    """A folder with the tokenizer after these attributes were set."""
    tokenizer.save_pretrained(tmp_path / "as_it_was")
    other = AutoTokenizer.from_pretrained(tmp_path / "as_it_was")
    for name, value in changes.items():
        setattr(other, name, value)
    other.save_pretrained(tmp_path / "changed")
    return str(tmp_path / "changed")


def test_a_trained_tokenizer_has_a_pad_token_distinct_from_eos_and_can_spell_any_text():
    small = train_tokenizer(["aaa"], 300)
    assert small.pad_token_id != small.eos_token_id
    assert decode_response(small, encode_response(small, "Ünïcode 漢字 🙂")) == "Ünïcode 漢字 🙂"


@pytest.mark.parametrize("pad_token", [None, EOS])
def test_loading_gives_a_tokenizer_a_pad_token_distinct_from_eos(tokenizer, tmp_path, pad_token):
    loaded = load_tokenizer(saved_without(tokenizer, tmp_path, pad_token=pad_token))
    assert loaded.pad_token_id is not None
    assert loaded.pad_token_id != loaded.eos_token_id


def test_a_pad_token_of_its_own_is_kept(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert (loaded.pad_token, len(loaded)) == (tokenizer.pad_token, len(tokenizer))
    assert loaded.chat_template == tokenizer.chat_template


def test_a_tokenizer_without_eos_is_refused(tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"no EOS token.*Set eos_token in its tokenizer_config.json"):
        load_tokenizer(saved_without(tokenizer, tmp_path, eos_token=None))


def test_a_tokenizer_without_a_template_gets_one_whose_turns_can_all_be_learned(tokenizer, tmp_path):
    loaded = load_tokenizer(saved_without(tokenizer, tmp_path, chat_template=None))
    assert loaded.chat_template == PLAIN_TEMPLATE
    ids, learned = encode_dialogue(loaded, [user("hi"), assistant("yes"), user("no"), assistant("maybe")])
    assert loaded.decode(ids) == "User:\nhi\n\nAssistant:\nyes<|end|>\n\nUser:\nno\n\nAssistant:\nmaybe<|end|>"
    said = [i for i, is_learned in zip(ids, learned, strict=True) if is_learned]
    assert loaded.decode(said) == "yes<|end|>maybe<|end|>"


def test_a_chat_template_of_ones_own_replaces_the_tokenizers(tokenizer, tmp_path):
    own = with_template(tokenizer, tmp_path, "Q: {{ messages[0]['content'] }} A:")
    assert own.decode(encode_prompt(own, [user("hi")])) == "Q: hi A:"


def test_what_cannot_be_loaded_is_named(tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"model.path=.*/absent: cannot load its tokenizer"):
        load_tokenizer(str(tmp_path / "absent"))
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"model.chat_template=absent.jinja: cannot read it"):
        load_tokenizer(str(tmp_path), chat_template="absent.jinja")
