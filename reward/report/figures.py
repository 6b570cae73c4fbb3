"""Reading and writing the figures of a report (compare.py): what is not known is None, and shown as a dash."""

import math

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


def percent(share):
    return f"{100 * share:.0f} %"


def number(value, decimals, sign="-"):
    """A number for a table: a true minus sign, a dash where there is none; decimals None makes it a percentage."""
    if not is_number(value):
        return DASH
    text = f"{100 * value:{sign}.1f} %" if decimals is None else f"{value:{sign}.{decimals}f}"
    return text.replace("-", MINUS)


def is_number(value):
    return isinstance(value, int | float) and math.isfinite(value)


def interval_of(figure):
    """(value, low, high) of a figure that is a number, {"value", "low", "high"} or absent; None where not known."""
    figure = figure if isinstance(figure, dict) else {"value": figure}
    return tuple(figure.get(name) if is_number(figure.get(name)) else None for name in ("value", "low", "high"))


def value_of(policy, key):
    return interval_of(policy.get(key))[0]


def change_of(report, key):
    """(SFT's figure, PPO's), None for what is not known."""
    policies = report.get("policies") or {}
    return tuple(value_of(policies.get(name) or {}, key) for name in ("sft", "ppo"))


def at(card, path):
    """card["a"]["b"] for "a.b", None where there is none."""
    for name in path.split("."):
        card = (card or {}).get(name)
    return card


def count_of(number, noun):
    """E.g. "1 prompt", "1,200 prompts"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"
