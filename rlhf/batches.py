"""Dialogues to token ids, and ragged ids to padded tensors.

A prompt and its response are always tokenised apart and joined as ids, in every stage: so the prompt's tokens are a
prefix of prompt + response, and a response has the same tokens when it is learned, scored and optimised.
Shapes: B sequences, P prompt tokens, R response tokens, T tokens.
"""

from collections.abc import Sequence

import torch
from jinja2 import TemplateError
from torch import Tensor

from rlhf.config import LongPrompts
from rlhf.errors import UserError, located


def encode_prompt(tokenizer, messages) -> list[int]:
    """Token ids of the dialogue so far, in the chat template, up to where the assistant's answer begins."""
    return _ids(tokenizer, _render(tokenizer, messages))


def encode_response(tokenizer, text: str) -> list[int]:
    """Token ids of an answer, ended by EOS."""
    refuse_control_tokens(tokenizer, text)
    return [*_ids(tokenizer, text), tokenizer.eos_token_id]


def encode_sample(tokenizer, text: str) -> list[int]:
    """Token ids of a sampled answer, ended by EOS. A control token that a policy spelled in letters is plain text."""
    return [*tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids, tokenizer.eos_token_id]


def encode_text(tokenizer, text: str) -> list[int]:
    """Token ids of plain text, ended by EOS."""
    return encode_response(tokenizer, text)


def encode_dialogue(tokenizer, messages) -> tuple[list[int], list[bool]]:
    """Token ids of a whole dialogue, and which of them an assistant says (EOS included).

    Raises UserError where the chat template changes earlier turns, so that one sequence cannot hold them all.
    """
    ids: list[int] = []
    learned: list[bool] = []
    done = ""  # the rendered dialogue up to and including the last learned EOS
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        text = _render(tokenizer, messages[:turn])
        if not text.startswith(done):
            raise UserError(
                "the chat template changes earlier turns of a dialogue, so all assistant turns cannot be learned in "
                "one sequence. Use sft.objective=completion, which learns the last turn"
            )
        context = _ids(tokenizer, text[len(done) :])
        response = encode_response(tokenizer, message["content"])
        ids += context + response
        learned += [False] * len(context) + [True] * len(response)
        done = text + message["content"] + tokenizer.eos_token
    return ids, learned


def encode_prompts(tokenizer, prompts: list, data, report) -> list[list[int]]:
    """Token ids of each Prompt, within data.max_prompt_tokens. data: the `data` section of the config."""
    ids = []
    for prompt in prompts:
        with located(prompt.where):
            ids.append(fit_prompt(encode_prompt(tokenizer, prompt.messages), data, prompt.where, report))
    return ids


def fit_prompt(ids: list[int], data, where: str, report) -> list[int]:
    """A prompt within data.max_prompt_tokens: as it is, or its last tokens where data.long_prompts=cut.

    Raises UserError for a longer one otherwise. data: the `data` section of the config; cuts are counted in the report.
    """
    limit = data.max_prompt_tokens
    if len(ids) <= limit:
        return ids
    if data.long_prompts is LongPrompts.error:
        raise UserError(
            f"the prompt has {len(ids)} tokens, more than data.max_prompt_tokens={limit}. "
            "Raise the limit, or keep the end of long prompts with data.long_prompts=cut"
        )
    report.cut(where, len(ids), limit)
    return ids[-limit:]


def refuse_control_tokens(tokenizer, text: str) -> None:
    """Raises UserError when text spells a control token, which would end a turn or forge one."""
    for token in tokenizer.all_special_tokens:
        if token in text:
            raise UserError(f"the text contains the control token {token!r}, which data must not spell; remove it")


def decode_response(tokenizer, ids: Sequence[int]) -> str:
    """The text of a response, without EOS or any other control token."""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids [B, P] and mask [B, P] of ragged rows that end together."""
    return _pad(rows, pad_id, left=True)


def pad_right(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids [B, T] and mask [B, T] of ragged rows that begin together."""
    return _pad(rows, pad_id, left=False)


def _pad(rows: Sequence[Sequence[int]], pad_id: int, left: bool) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, place] = torch.tensor(row)
        mask[i, place] = True
    return ids, mask


def _render(tokenizer, messages) -> str:
    for message in messages:
        refuse_control_tokens(tokenizer, message["content"])
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"the chat template cannot render the dialogue ({reason}); see model.chat_template") from error


def _ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids
