"""Formats and their options by name, with what there is to choose from where the name is wrong."""

from reward.collect.refusals import Refusal

Allowed = dict[str, tuple[str, ...]]  # option -> its values; () for any text


def require_format(name: str, known: dict, done: str):
    if name not in known:
        raise Refusal(f"format '{name}' cannot be {done}; choose one of {', '.join(known)}", {"format": "unknown"})
    return known[name]


def check_options(name: str, allowed: Allowed, options: dict[str, str]) -> None:
    for option, value in options.items():
        if option not in allowed:
            choices = ", ".join(allowed) or "none"
            raise Refusal(f"format '{name}' has no option '{option}'; it has {choices}", {option: "unknown"})
        if allowed[option] and value not in allowed[option]:
            choices = ", ".join(allowed[option])
            raise Refusal(f"{option} is {value!r}; choose one of {choices}", {option: f"one of {choices}"})


def require_options(name: str, allowed: Allowed, options: dict[str, str]) -> None:
    """Raises Refusal where an option with a choice is not given: what decides who is better is nobody's default."""
    for option, choices in allowed.items():
        if choices and option not in options:
            raise Refusal(
                f"format '{name}' needs --option {option}=..., one of {', '.join(choices)}", {option: "missing"}
            )
