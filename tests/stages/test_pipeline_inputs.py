"""A pipeline checks what all of its stages read before the first of them trains."""

import pytest
from tiny_world import records, write_jsonl

RULE = "ppo.rewards=[{source: 'tiny_world:names_the_colour'}]"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.prompts=none.jsonl"], "data.prompts=none.jsonl: no such file"),
        (["data.rankings=none.jsonl"], "data.rankings=none.jsonl: no such file"),
        (["data.heldout=none.jsonl"], "data.heldout=none.jsonl: no such file"),
        (["data.gold_rule=tiny_world:nothing"], "rule 'tiny_world:nothing': 'tiny_world' has no function"),
        (["ppo.rewards=[{source: 'nowhere:rule'}]"], "rule 'nowhere:rule': cannot import 'nowhere'"),
        (["reward.batch_size=800"], "reward.batch_size=800 is more than the"),
        (["ppo.batch_size=800"], "ppo.batch_size=800 is more than the"),
        (["data.test_share=0"], "data.rankings: the test split is empty"),
    ],
)
def test_what_a_later_stage_would_refuse_is_refused_before_the_first_one_trains(
    tiny_command, tmp_path, overrides, message
):
    refused = tiny_command("pipeline", *overrides)
    assert refused.code == 2 and refused.error.startswith(message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stem", ["rankings", "prompts", "heldout"])
def test_one_bad_line_of_any_source_is_told_before_the_first_stage_trains(tiny_command, tmp_path, stem):
    path = write_jsonl(tmp_path / f"{stem}.jsonl", [*records()[stem], {"prompt": 7}])
    refused = tiny_command("pipeline", f"data.{stem}={path}")
    assert refused.code == 2 and refused.error.startswith(f"{path}:{len(records()[stem]) + 1}: ")
    assert not (tmp_path / "run").exists()


def test_heldout_prompts_among_the_rankings_are_told_before_the_first_stage_trains(tiny_command, world, tmp_path):
    refused = tiny_command("pipeline", f"data.heldout={world}/rankings.jsonl")
    assert refused.code == 2 and "held-out prompts are in the training data of" in refused.error
    assert not (tmp_path / "run").exists()


def test_a_rule_alone_as_reward_needs_no_rankings(tiny_command, tmp_path):
    done = tiny_command("pipeline", RULE, "data.rankings=null")
    assert done.code == 0, done.err
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"sft", "ppo", "evaluate"}
