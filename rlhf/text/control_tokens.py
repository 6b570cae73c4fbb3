"""Control tokens: what a tokenizer marks as special. Data must not spell them, or a text could end a turn or forge one.

Added tokens that are not special (<think>, <tool_call>) are ordinary text.
"""

import re
from functools import lru_cache

from rlhf.errors import EncodingError


def control_tokens(tokenizer) -> re.Pattern:
    """Finds any control token in a text, the longest one where several begin at the same place."""
    return _pattern(tokenizer, len(tokenizer), tokenizer.eos_token)


@lru_cache(maxsize=8)
def _pattern(tokenizer, size: int, eos_token: str) -> re.Pattern:
    """size and eos_token change where a token was added or made special since."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    tokens = sorted(added.union(tokenizer.all_special_tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, tokens)))


def refuse_control_tokens(tokenizer, text: str) -> None:
    """Raises EncodingError when a text spells a control token."""
    if found := control_tokens(tokenizer).search(text):
        raise EncodingError(
            f"the text contains the control token {found.group()!r}, which data must not spell; remove it"
        )
