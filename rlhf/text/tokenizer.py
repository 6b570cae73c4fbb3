"""The tokenizer and chat template that stage 1 fixes and every later stage carries on.

A pad token distinct from EOS is set once, here: with pad = EOS, a library that masks padding masks EOS too, and the
model never learns to stop.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rlhf.errors import UserError
from rlhf.text.chat_template import begin_as_tokenizer_does, named_template

PAD, EOS = "<|pad|>", "<|end|>"
ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]

# One control token per turn: short sequences for small models.
SCRATCH_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# For base models whose tokenizer brings no template: plain words they have seen.
PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | capitalize + ':\n' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most vocab_size tokens, trained on texts; it can spell any other text too."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=EOS,
        additional_special_tokens=ROLES,
        chat_template=SCRATCH_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(
    path: str, revision: str | None = None, chat_template: str | None = None, trust_remote_code: bool = False
):
    """The tokenizer of a hub id or folder, with a pad token distinct from EOS and with a chat template.

    chat_template: path of a Jinja file that replaces the tokenizer's own. Raises UserError where there is no EOS.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"model.path={path}: cannot load its tokenizer ({reason(error)})") from error
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"model.path={path}: its tokenizer has no EOS token, so no answer could end. "
            "Set eos_token in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD})
    if chat_template is not None:
        tokenizer.chat_template = _read_template(chat_template)
    elif tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_TEMPLATE
    tokenizer.chat_template = named_template(tokenizer)
    begin_as_tokenizer_does(tokenizer)
    return tokenizer


def reason(error: Exception) -> str:
    """What a library's error says in its first line, or in our words where that line does not help."""
    if "trust_remote_code" in str(error):
        return "it wants to run its own code; read that, then set model.trust_remote_code=true"
    if "Repo id must" in str(error):
        return "no such folder, nor can this be the id of a model on the hub"
    if "couldn't connect" in str(error):
        return "not in the cache of the hub's files, and the hub cannot be reached: connect, or name a local folder"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError as error:
        raise UserError(f"model.chat_template={path}: cannot read it ({error.strerror})") from error
