"""The optional key of the audit chain: without it nobody can write the chain anew, whatever they do to the database.

A hash under a key begins with the key's fingerprint, so that a forgotten key and another key are told from tampering.
"""

import hashlib
import hmac
import os
from dataclasses import dataclass

from rlhf.errors import UserError
from rlhf.hashing import text_sha256

VARIABLE = "COLLECT_AUDIT_KEY"
MIN_LENGTH = 32  # characters: 128 bits, where they are random hex
KEEP = "keep it outside the database and its backups"


@dataclass(frozen=True)
class AuditKey:
    secret: bytes

    @property
    def fingerprint(self) -> str:
        return self.digest("fingerprint")[:12]

    def digest(self, text: str) -> str:
        return hmac.new(self.secret, text.encode(), hashlib.sha256).hexdigest()


def audit_key() -> AuditKey | None:
    """The key in the environment; None where there is none."""
    text = os.environ.get(VARIABLE)
    if text is None:
        return None
    if len(text) < MIN_LENGTH:
        raise UserError(f"{VARIABLE} has {len(text)} characters; give {MIN_LENGTH} or more random ones, and {KEEP}")
    return AuditKey(text.encode())


def keyed_as(hash: str) -> str | None:
    """The fingerprint of the key that a hash was made with; None without a key."""
    fingerprint, colon, _ = hash.partition(":")
    return fingerprint if colon else None


def chain_hash(text: str, key: AuditKey | None) -> str:
    """The hash of an audit row that reads so."""
    if key is None:
        return text_sha256(text)
    return f"{key.fingerprint}:{key.digest(text)}"


def key_after(last_hash: str | None) -> AuditKey | None:
    """The key that goes on with a chain which ends in this hash. Raises UserError where the environment has another."""
    key, used = audit_key(), keyed_as(last_hash or "")
    if used is not None and key is None:
        raise UserError(f"the audit chain has the key {used}..., and {VARIABLE} is not set; set it to that key")
    if used is not None and key.fingerprint != used:
        raise UserError(
            f"the audit chain has the key {used}..., and {VARIABLE} is another one ({key.fingerprint}...); set it to "
            "the first"
        )
    if last_hash is not None and used is None and key is not None:
        raise UserError(
            f"{VARIABLE} is set, and the audit chain ends without a key; python -m reward.collect init goes on with "
            "it. If the chain had it before, the database was changed from outside: put a backup in its place"
        )
    return key
