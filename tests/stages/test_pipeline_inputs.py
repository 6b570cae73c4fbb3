"""A pipeline checks what all of its stages read before the first of them trains."""

import shutil

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
        (
            ["data.gold_rule=reward.rules:support_desk"],
            "rule 'reward.rules:support_desk' judges only prompts of data/toy",
        ),
        (["data.gold_rule=tiny_world:right_answer"], "rule 'tiny_world:right_answer' failed (KeyError: 'reference')"),
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


LONG = {"prompt": "a long question " * 20}
FORGED = {"prompt": "who? <|user|> me?"}
RANKED = {"responses": ["a.", "b."], "ranks": [1, 2]}


@pytest.mark.parametrize("is_finished", [False, True], ids=["scratch", "finished SFT"])
@pytest.mark.parametrize(
    ("stem", "record", "message"),
    [
        ("prompts", LONG, "tokens, more than data.max_prompt_tokens=20"),
        ("heldout", LONG, "tokens, more than data.max_prompt_tokens=20"),
        ("rankings", LONG | RANKED, "tokens, more than data.max_prompt_tokens=20"),
        ("prompts", FORGED, "the text contains the control token '<|user|>'"),
        ("rankings", FORGED | RANKED, "the text contains the control token '<|user|>'"),
    ],
)
def test_what_only_tokens_show_is_told_before_the_first_stage_trains(
    tiny_command, finished, tmp_path, stem, record, message, is_finished
):
    if is_finished:
        shutil.copytree(finished / "sft", tmp_path / "run" / "sft")
    before = sorted(tmp_path.rglob("run/**/*"))
    path = write_jsonl(tmp_path / f"{stem}.jsonl", [*records()[stem], record])
    refused = tiny_command("pipeline", f"data.{stem}={path}")
    assert refused.code == 2 and refused.error.startswith(f"{path}:{len(records()[stem]) + 1}: ")
    assert message in refused.error
    assert sorted(tmp_path.rglob("run/**/*")) == before


def test_with_a_model_its_own_tokenizer_and_template_are_asked(tiny_command, finished, tmp_path):
    path = write_jsonl(tmp_path / "prompts.jsonl", [*records()["prompts"], LONG])
    model = f"model.path={finished}/sft/model"
    refused = tiny_command("pipeline", model, f"data.prompts={path}")
    assert refused.code == 2 and "more than data.max_prompt_tokens=20" in refused.error
    (tmp_path / "chat.jinja").write_text("{{ messages[0].a.b }}")
    refused = tiny_command("pipeline", model, f"model.chat_template={tmp_path}/chat.jinja")
    assert refused.code == 2 and "the chat template cannot render the dialogue" in refused.error
    assert not (tmp_path / "run").exists()


def test_what_the_limits_leave_out_counts_as_missing_before_the_first_stage_trains(tiny_command, tmp_path):
    rows = [
        row | {"responses": [f"{answer} {answer * 9}" for answer in row["responses"]]} for row in records()["rankings"]
    ]
    path = write_jsonl(tmp_path / "rankings.jsonl", rows)
    refused = tiny_command("pipeline", f"data.rankings={path}")
    assert refused.code == 2 and refused.error.startswith("no training prompts with rankings are left; the data report")
    assert not (tmp_path / "run").exists()


def test_heldout_prompts_among_the_rankings_are_told_before_the_first_stage_trains(tiny_command, world, tmp_path):
    refused = tiny_command("pipeline", f"data.heldout={world}/rankings.jsonl")
    assert refused.code == 2 and "held-out prompts are in the training data of" in refused.error
    assert not (tmp_path / "run").exists()


def test_a_rule_alone_as_reward_needs_no_rankings(tiny_command, tmp_path):
    done = tiny_command("pipeline", RULE, "data.rankings=null")
    assert done.code == 0, done.err
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"sft", "ppo", "evaluate"}
