"""The tokenizer that stage 1 fixes: trained, or loaded and completed."""

import pytest
from transformers import AutoTokenizer

from rlhf.errors import UserError
from rlhf.text.encoding import context_of, encode_dialogue, text_ids
from rlhf.text.tokenizer import EOS, PLAIN_TEMPLATE, load_tokenizer, train_tokenizer


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


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
    assert small.decode(text_ids(small, "Ünïcode 漢字 🙂")) == "Ünïcode 漢字 🙂"


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
    ((ids, learned),) = encode_dialogue(loaded, [user("hi"), assistant("yes"), user("no"), assistant("maybe")])
    assert loaded.decode(ids) == "User:\nhi\n\nAssistant:\nyes<|end|>\n\nUser:\nno\n\nAssistant:\nmaybe<|end|>"
    said = [i for i, is_learned in zip(ids, learned, strict=True) if is_learned]
    assert loaded.decode(said) == "yes<|end|>maybe<|end|>"


def test_a_chat_template_of_ones_own_replaces_the_tokenizers(tokenizer, tmp_path):
    own = with_template(tokenizer, tmp_path, "Q: {{ messages[0]['content'] }} A:")
    assert own.decode(context_of(own, [user("hi")]).ids) == "Q: hi A:"


def test_what_cannot_be_loaded_is_named(tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"model.path=.*/absent: cannot load its tokenizer"):
        load_tokenizer(str(tmp_path / "absent"))
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"model.chat_template=absent.jinja: cannot read it"):
        load_tokenizer(str(tmp_path), chat_template="absent.jinja")
