"""Who judges in a report: what PPO optimised, in words, or a gold rule beside it.

rewards: the terms of ppo.rewards, [{"source", "weight"}]. A source with a colon is a rule, any other a reward model.
"""

from reward.report.figures import MINUS

GOLD, TIMES = "gold rule", "\N{MULTIPLICATION SIGN}"


def reward_name(rewards):
    """What the scores are: "reward model", "rule MODULE:FUNCTION" or, of several terms, "weighted sum of rewards"."""
    (term, *others) = rewards
    if others or term["weight"] <= 0:
        return "weighted sum of rewards"
    return f"rule {term['source']}" if is_rule(term["source"]) else "reward model"


def formula(rewards):
    """The terms with their weights, e.g. "1 x reward model + 0.5 x rule my_rules:brief"."""
    terms = " + ".join(f"{term['weight']:g} {TIMES} {term_name(term)}" for term in rewards)
    return terms.replace("+ -", f"{MINUS} ")


def term_name(term):
    """A term before its weight, with its scale and clip where it has them; earlier versions had none."""
    scale, clip, name = term.get("scale", 1.0), term.get("clip"), source_name(term["source"])
    name = name if scale == 1 else f"{scale:g} {TIMES} {name}"
    return name if clip is None else f"({name}, clipped to \N{PLUS-MINUS SIGN}{clip:g})"


def source_name(source):
    if is_rule(source):
        return f"rule {source}"
    return "reward model" if source == "reward" else f"reward model {source}"


def is_rule(source):
    return ":" in source


def gold_name(gold_rule):
    """How a report names its gold rule as the judge; None where there is none."""
    return None if gold_rule is None else f"{GOLD} {gold_rule}"


def judged_by_rule(report):
    """Whether a gold rule judges."""
    return str(report["win_rate"].get("by", "")).startswith(GOLD)


def is_optimised(report):
    """Whether what judges is a reward that PPO was trained on."""
    if not judged_by_rule(report):
        return True
    rule = report["win_rate"]["by"].removeprefix(f"{GOLD} ")
    return rule in [term["source"] for term in report.get("rewards") or []]


def has_reward_model(report):
    """Whether PPO optimised a reward model; of a report that does not say, yes."""
    return any(not is_rule(term["source"]) for term in report.get("rewards") or [{"source": "reward"}])
