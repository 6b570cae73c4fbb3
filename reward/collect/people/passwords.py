"""Passwords: what one must be, and whether one is right. Only argon2id hashes of them are stored."""

import functools
import secrets

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

from reward.collect.refusals import Refusal

MIN_PASSWORD, MAX_PASSWORD = 10, 1000  # characters


def require_password(password: str, handle: str) -> None:
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        rule = f"{MIN_PASSWORD} to {MAX_PASSWORD} characters"
        raise Refusal(f"the password has {len(password)} characters; it must have {rule}", {"password": rule})
    if password.strip().lower() == handle:
        rule = "something else than the handle"
        raise Refusal(f"the password is the handle; choose {rule}", {"password": rule})


def hash_of(password: str) -> str:
    return _hasher().hash(password)


def is_right(password_hash: str, password: str) -> bool:
    """An account without a password ("") takes as long as any other, and none is right."""
    try:
        return _hasher().verify(password_hash or _nobody_s_hash(), password[:MAX_PASSWORD]) and bool(password_hash)
    except VerifyMismatchError:
        return False


@functools.cache
def _hasher() -> PasswordHasher:
    """argon2id with the least parameters of the OWASP password storage cheat sheet: 19 MiB, 2 passes, 1 lane."""
    return PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)


@functools.cache
def _nobody_s_hash() -> str:
    return _hasher().hash(secrets.token_urlsafe(32))
