"""What the figures of a report (compare.py) call for, in plain words, for the page and for the terminal."""

from reward.report.figures import at, change_of, count_of, interval_of, is_number, percent
from reward.report.judges import is_optimised, judged_by_rule

LENGTH_GROWTH = 1.5  # PPO's mean length over SFT's
PERPLEXITY_GROWTH = 1.5  # on held-out demonstrations
KL_NEAR_BUDGET = 0.9  # share of the budget that is used
LOW_EOS_RATE = 0.9
FEW_PROMPTS = 50


def warnings(report):
    """A sentence or two each; empty when the figures call for nothing."""
    outcome = (_win_rate_unclear, _few_prompts, _judge_is_the_reward, _nothing_exported)
    side_effects = (_score_up_gold_down, _kl_over_budget, _length_grew, _answers_unfinished, _demonstrations_forgotten)
    checks = (*outcome, *side_effects, _reward_no_better_than_length, _few_rankings)
    messages = [check(report) for check in checks]
    return [message for message in messages if message] + list(report.get("data_warnings") or [])


def _win_rate_unclear(report):
    rate = report["win_rate"]
    if rate["high"] < 0.5:
        return f"PPO is worse than SFT: even the upper end of the interval, {percent(rate['high'])}, is below 50 %."
    if rate["low"] <= 0.5:
        return "The interval of the win rate includes 50 %: on these prompts PPO cannot be told from SFT."


def _few_prompts(report):
    number = report["num_prompts"]
    if number < FEW_PROMPTS:
        return f"Only {count_of(number, 'held-out prompt')}: too few to be sure; {FEW_PROMPTS} is little, 200 better."


def _judge_is_the_reward(report):
    if not is_optimised(report):
        return None
    if judged_by_rule(report):
        return "The gold rule is also a reward that PPO optimised: it is no independent judge."
    judge = report["win_rate"]["by"]
    return f"The judge is the {judge}, which PPO is trained to please: a win may be a win in its eyes only."


def _nothing_exported(report):
    if report.get("exported_step") == 0:
        return "The best checkpoint is step 0: PPO changed nothing, the exported policy is the SFT policy."


def _score_up_gold_down(report):
    (score, new_score), (gold, new_gold) = change_of(report, "score_mean"), change_of(report, "gold_mean")
    if None not in (score, new_score, gold, new_gold) and new_score > score and new_gold < gold:
        fall = f"from {gold:.2f} to {new_gold:.2f}"
        return (
            f"The reward score rose while the gold mark fell {fall}: likely reward hacking. Try a higher ppo.kl_coef."
        )


def _kl_over_budget(report):
    kl, budget = change_of(report, "kl")[1], report.get("kl_budget")
    if kl is not None and budget and kl >= KL_NEAR_BUDGET * budget:
        where = "over" if kl > budget else "close to"
        return f"KL is {where} its budget ({kl:.1f} of {budget:.1f} nats per response): the policy is far from SFT."


def _length_grew(report):
    sft, ppo = change_of(report, "length_mean")
    if None not in (sft, ppo) and ppo > LENGTH_GROWTH * sft:
        return f"Answers grew from {sft:.0f} to {ppo:.0f} tokens: part of the gain may be length alone."


def _answers_unfinished(report):
    _, rate = change_of(report, "eos_rate")
    if rate is not None and rate < LOW_EOS_RATE:
        return f"Only {percent(rate)} of PPO's answers end by themselves, the others are cut at the token limit."


def _demonstrations_forgotten(report):
    sft, ppo = change_of(report, "perplexity")
    if None not in (sft, ppo) and ppo > PERPLEXITY_GROWTH * sft:
        return f"Perplexity on held-out demonstrations rose from {sft:.1f} to {ppo:.1f}: PPO forgets what SFT learned."


def _reward_no_better_than_length(report):
    for name, card in (report.get("reward_cards") or {}).items():
        value, low, _ = interval_of(at(card, "pair_accuracy"))
        length = interval_of(at(card, "baselines.length"))[0]
        if is_number(value) and is_number(length) and (value if low is None else low) <= length:
            figures = f"{percent(value)} of pairs against {percent(length)}"
            return f"The {name} is not clearly better than always preferring the longer answer ({figures})."


def _few_rankings(report):
    for name, card in (report.get("reward_cards") or {}).items():
        if is_number(card.get("num_prompts")) and card["num_prompts"] < FEW_PROMPTS:
            over = count_of(card["num_prompts"], "held-out prompt")
            return f"The report card of the {name} is over {over} only: raise data.test_share, or give more rankings."
