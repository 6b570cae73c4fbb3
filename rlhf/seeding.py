"""Random numbers that depend on names and counters alone: nothing to save, nothing to restore."""

import hashlib

import torch


def generator(*names) -> torch.Generator:
    """A generator seeded by these names and numbers, e.g. generator(seed, "minibatches", step, epoch)."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
