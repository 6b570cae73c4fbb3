"""What a metric means. A module that makes metrics has their meanings by name; docs/metrics.md is made of these."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Meaning:
    """unit: or range; says: what is measured; healthy: what a sound run shows, and what to do where it does not.

    A name with NAME in it stands for several: one for each term of ppo.rewards.
    """

    unit: str
    says: str
    healthy: str
