"""Tokenizers like those of real models: the same kinds, the same control tokens, trained in process on a few words."""

import re
from pathlib import Path

import trl
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

WORDS = "yes no maybe thanks hello world please what is the time in paris rome oslo and berlin user assistant system "
WORDS += "User Assistant System Hello You are a helpful the reason is that it was"
TEMPLATES = {
    path.stem: path.read_text()
    for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
    if not path.stem.endswith("_training")
}
OTHERS = r"<(?:start|end)_of_\w+>|<turn\|>|<\|turn>|\[gMASK\]|<sop>|\[/?INST\]"
CONTROL = re.compile(r"<[|\uff5c][^<>{}'\" ]+[|\uff5c]>|" + OTHERS)
# How Llama 3 and Qwen split text before they merge bytes.
PIECES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
DEEPSEEK = "<\uff5cend▁of▁sentence\uff5c>"  # with full-width bars
# What ends a turn, by the beginning of a template's name: read off the model cards.
ENDS = {"cohere": "<|END_OF_TURN_TOKEN|>", "cohere2": "<|END_RESPONSE|>", "deepseek": DEEPSEEK, "diffusion": "<turn|>"}
ENDS |= {"gemma": "<end_of_turn>", "gemma4": "<turn|>", "glm4moe": "<|user|>", "gptoss": "<|return|>"}
ENDS |= {"lfm2": "<|im_end|>", "llama3": "<|eot_id|>", "muse": "<|eot|>", "nemotron": "<|im_end|>", "phi3": "<|end|>"}
ENDS |= {"qwen": "<|im_end|>"}
OF_IMAGES = ("idefics3", "llava_next", "smolvlm")  # these take no messages that are plain text


def end_of(name: str) -> str:
    return ENDS[max((beginning for beginning in ENDS if name.startswith(beginning)), key=len)]


def byte_level(template: str | None = None, eos: str = "<|endoftext|>", bos: str = "<|bos|>", adds_bos: bool = False):
    """Like GPT-2's, Llama 3's and Qwen's. Of a template's control tokens only BOS, EOS and PAD have a role."""
    control = [*dict.fromkeys(["<|pad|>", eos, bos, *CONTROL.findall(template or "")])]
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PIECES), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=control, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([WORDS, "\n\n a\n\nb\n c", WORDS], trainer)
    bpe.add_tokens([AddedToken(text, special=False) for text in ("<think>", "</think>")])
    return finish(bpe, bos, eos, "<|pad|>", adds_bos, template)


def sentencepiece(kind: str, template: str | None = None):
    """Like Llama 2's ("legacy": a space before each piece of text), Mistral's ("first") and Gemma's ("none")."""
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    control = ["<unk>", "<s>", "</s>", "<pad>", *dict.fromkeys(CONTROL.findall(template or "")), *bytes_]
    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    marks = [normalizers.Prepend("▁")] if kind == "legacy" else []
    bpe.normalizer = normalizers.Sequence([*marks, normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind == "first":
        bpe.normalizer = None
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    bpe.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if kind != "none" else []))
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=control, show_progress=False)
    words = [f" {word}" for word in WORDS.split()]
    bpe.train_from_iterator(words * 3, trainer)
    return finish(bpe, "<s>", "</s>", "<pad>", True, template)


def finish(bpe: Tokenizer, bos: str, eos: str, pad: str, adds_bos: bool, template: str | None):
    """With BOS before every text where adds_bos; bytes that stand in for letters are no control tokens."""
    if adds_bos:
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, bpe.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )
