"""docs/metrics.md: every metric that a stage logs, from where it is made. `python -m stages.metrics_page`"""

import re
from collections.abc import Iterator

from reward import trainer as reward
from rlhf.config.keys import all_keys
from rlhf.config.schema import Config
from rlhf.ppo import critic, heldout, metrics, update
from rlhf.tables import markdown_table
from rlhf.tracking import tracker as tracking
from rlhf.tracking.meanings import Meaning
from rlhf.training import sft

TOP = """# Every metric

<!-- Made from the meanings beside the code by `python -m stages.metrics_page > docs/metrics.md`. Change those. -->

Each stage writes its metrics to `metrics.jsonl` in its folder, one JSON object a line, and sends the same names to W&B
(`tracking.wandb`). A number that is not finite is `null`. `tracking.log_steps` says how often there is a line. Most
names are TRL's, which dashboards already use. "The toy run" is `python -m stages.pipeline` with seed 0.

PPO also writes `samples.jsonl`: held-out prompts with the answers of the policy and of the SFT policy, at each
evaluation. Read it: no figure shows what an odd answer looks like.

Where to look first. Stage 1: `eval/loss`. Stage 2: `eval/pair_accuracy`, then the report card. Stage 3: `eval/scores`
and `eval/kl` are the result. When they do not move as they should: `val/explained_var` (does the critic foresee
anything?), `policy/approxkl_avg` and `policy/clipfrac_avg` (are the steps too large?), `objective/entropy` and
`response/length_mean` (does the policy say one thing only, or more and more?).
"""
# By the stages that log them: the title of a part, what stands under it, its metrics.
PARTS = (
    (("sft", "reward", "ppo"), "In every stage", "", tracking.EVERY_STAGE),
    (("sft", "reward"), "In stages 1 and 2", "", tracking.TRAINERS),
    (("sft",), "Stage 1, SFT", "", sft.MEANINGS),
    (("reward",), "Stage 2, the reward model", "", reward.MEANINGS),
    (("ppo",), "Stage 3, PPO: the rollout", "Of the responses of one step, all ranks together.", metrics.MEANINGS),
    (
        ("ppo",),
        "Stage 3, PPO: the update",
        "Means over the optimizer steps of one PPO step, but for `val/ratio_max`. Those of the policy are missing in "
        "the first `ppo.critic_warmup_steps` steps, when only the critic learns.",
        update.MEANINGS,
    ),
    (
        ("ppo",),
        "Stage 3, PPO: the critic",
        "Means over the optimizer steps of one PPO step, but for `val/explained_var`.",
        critic.MEANINGS,
    ),
    (
        ("ppo",),
        "Stage 3, PPO: held-out prompts",
        "Before the first step, every `ppo.eval_steps` steps and after the last one.",
        heldout.MEANINGS,
    ),
)


def page() -> str:
    """The whole of docs/metrics.md."""
    return "\n".join([TOP, *(line for _, *part in PARTS for line in _lines(*part))])


def meanings(stage: str) -> dict[str, Meaning]:
    """The metrics that a stage logs."""
    return {name: meaning for stages, *_, part in PARTS if stage in stages for name, meaning in part.items()}


def _lines(title: str, note: str, part: dict[str, Meaning]) -> Iterator[str]:
    yield from (f"## {title}", "", *([note, ""] if note else []))
    rows = [
        (f"`{name}`", meaning.unit, _marked(meaning.says), _marked(meaning.healthy)) for name, meaning in part.items()
    ]
    yield from markdown_table(("metric", "unit", "what it is", "healthy, and what to do elsewhere"), rows)
    yield ""


def _marked(text: str) -> str:
    """Keys of the config and names of metrics in backticks."""
    keys = [key for key in all_keys(Config) if "." in key]
    names = [name for _, *_, part in PARTS for name in part if "/" in name]
    words = "|".join(map(re.escape, sorted([*keys, *names], key=len, reverse=True)))
    return re.sub(rf"(?<![\w/.])({words})(=\w+)?(?![\w/])", r"`\g<0>`", text)


if __name__ == "__main__":
    print(page().rstrip())
