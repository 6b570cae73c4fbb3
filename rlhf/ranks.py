"""Which process (rank) of how many this is, as the launcher says: known at once, without torch."""

import os


def launched_world_size() -> int:
    """Processes that the launcher started for this run; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number, 0 to world_size - 1. Known before `distributed.start`."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this is rank 0, which alone writes files, shows progress and speaks to W&B."""
    return rank() == 0
