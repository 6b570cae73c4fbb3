"""The table of stages.bench."""

from stages.bench import COLUMNS, markdown

RATE = {"value": 0.5, "low": 0.25, "high": 0.75}
FIGURES = {"gold_mean": None, "kl": 1.5, "length_mean": 7.0}


def row(**changes):
    policies = {"sft": FIGURES, "ppo": FIGURES}
    return {"seed": 3, "win_rate": RATE, "policies": policies, "reward_card": None, "seconds": {"sft": 1.0}} | changes


def test_a_run_without_a_reward_model_or_a_gold_rule_has_a_dash_in_their_columns():
    cells = dict(zip(COLUMNS, markdown([row()])[-1].strip("| ").split(" | "), strict=True))
    assert [cells[name] for name in ("gold SFT", "gold PPO", "RM pairs", "ceiling")] == ["-"] * 4
    assert (cells["win rate"], cells["95 % interval"], cells["seconds"]) == ("50.0%", "25.0% to 75.0%", "1 = 1")


def test_the_reward_model_is_shown_beside_the_ceiling_of_its_annotators():
    card = {"pair_accuracy": {"value": 0.81}, "gold_pair_accuracy": {"value": 0.9}}
    cells = dict(zip(COLUMNS, markdown([row(reward_card=card)])[-1].strip("| ").split(" | "), strict=True))
    assert (cells["RM pairs"], cells["ceiling"]) == ("81.0%", "90.0%")
