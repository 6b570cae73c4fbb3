"""CSRF tokens as pages show them."""

import secrets


def masked(csrf_token: str) -> str:
    """The token as a page shows it, in other letters each time.

    Pages are compressed, and the size of a page that holds what a stranger chose tells them, try after try, a secret
    that stands there unchanged (BREACH, http://breachattack.com).
    """
    mask = secrets.token_bytes(len(csrf_token))
    return (mask + _xor(mask, csrf_token.encode())).hex()


def unmasked(shown: str) -> bytes:
    """The token that masked() has shown; of what is no such text, nothing that a session could have."""
    try:
        both = bytes.fromhex(shown)
    except ValueError:
        return b""
    half = len(both) // 2
    return _xor(both[:half], both[half:]) if len(both) == 2 * half else b""


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))
