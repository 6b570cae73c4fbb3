"""`preflight=true` tells what a stage needs and does nothing else; without it, what cannot fit does not start."""

import re
import shutil

import pytest
from transformers import LlamaConfig

from rlhf.preflight import forecast as preflight

NEEDED = ("(largest)", "disk:", "free memory:")


def titles(text: str) -> list[str]:
    """The stages whose tables are shown, in their order."""
    return re.findall(r"(\w+): memory of one rank", text)


def test_a_pipeline_shows_the_needs_of_all_stages_before_any_artifact_exists(tiny_command, tmp_path):
    shown = tiny_command("pipeline", "preflight=true")
    assert shown.code == 0, shown.err
    assert titles(shown.out) == ["sft", "reward", "ppo", "evaluate"]
    assert all(shown.out.count(part) == 4 for part in NEEDED)
    assert not (tmp_path / "run").exists()


def test_a_pipeline_whose_stages_are_up_to_date_shows_what_each_of_them_shows(tiny_command, run_dir):
    before = sorted(run_dir.rglob("*"))
    shown = tiny_command("pipeline", "preflight=true")
    alone = [tiny_command(stage, "preflight=true").out for stage in ("sft", "reward", "ppo", "evaluate")]
    assert without_free(shown.out) == without_free("".join(alone))
    assert sorted(run_dir.rglob("*")) == before


def without_free(text: str) -> list[str]:
    """The lines but for those that say what is free at the moment."""
    return [line for line in text.splitlines() if "free" not in line]


def test_what_is_planned_is_what_the_artifacts_turn_out_to_need(tiny_command, finished, tmp_path):
    """Of what follows SFT, with a model whose vocabulary is known; that of a new tokenizer may turn out smaller."""
    planned = tiny_command("pipeline", "preflight=true", f"model.path={finished}/sft/model")
    shutil.copytree(finished, tmp_path / "run")
    made = tiny_command("pipeline", "preflight=true")
    after_sft = [rows(shown.out.partition("reward: memory")[-1]) for shown in (planned, made)]
    assert after_sft[0] == after_sft[1] != []


def rows(text: str) -> list[str]:
    """The rows of the tables, a phase or a part with its sizes each."""
    return [line for line in text.splitlines() if line.startswith("\u2502")]


def test_a_pipeline_that_waits_for_people_counts_on_the_rankings_it_waits_for(tiny_command, tmp_path):
    shown = tiny_command("pipeline", "preflight=true", "collect=wait", "data.rankings=null", "collect.min_rankings=32")
    assert shown.code == 0, shown.err
    assert titles(shown.out) == ["sft", "reward", "ppo", "evaluate"]
    assert "32 training records an epoch in 2 optimizer steps of 16" in shown.out


def test_with_a_rule_alone_no_reward_model_is_planned(tiny_command):
    rule = "ppo.rewards=[{source: 'tiny_world:names_the_colour'}]"
    shown = tiny_command("pipeline", "preflight=true", rule, "data.rankings=null")
    assert shown.code == 0, shown.err
    assert titles(shown.out) == ["sft", "ppo", "evaluate"]
    assert "reward" not in "".join(rows(shown.out))


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_preflight_shows_memory_disk_and_steps_and_writes_nothing(tiny_command, stage, run_dir):
    before = sorted(run_dir.rglob("*"))
    shown = tiny_command(stage, "preflight=true", f"run.dir={run_dir}")
    assert shown.code == 0, shown.err
    for part in ("forward, backward", "(largest)", "optimizer steps", "disk:", "free memory:"):
        assert part in shown.out
    assert sorted(run_dir.rglob("*")) == before


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_preflight_refuses_less_data_than_one_step_as_the_stage_does(tiny_command, stage, run_dir):
    sizes = [f"{stage}.batch_size=4096", "sft.micro_batch_size=4", "reward.micro_batch_size=4"]
    refused = tiny_command(stage, "preflight=true", f"run.dir={run_dir}", *sizes)
    assert refused.code == 2
    assert refused.error.startswith(f"{stage}.batch_size=4096 is more than the ")


def test_preflight_of_a_model_reads_no_weights(tiny_command, tmp_path):
    """The weights of this one are a file of 4 TB with nothing in it."""
    folder = tmp_path / "model"
    sizes = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
    LlamaConfig(**sizes, num_key_value_heads=8, vocab_size=128256, max_position_embeddings=4096).save_pretrained(folder)
    with open(folder / "model.safetensors", "wb") as file:
        file.truncate(4 * 10**12)
    shown = tiny_command("sft", "preflight=true", f"model.path={folder}")
    assert shown.code == 0, shown.err
    assert f"{70_553_706_496 * 4 / 1e9:.2f} GB" in shown.out  # as many weights as Llama 70B is known to have


def test_a_stage_that_cannot_fit_does_not_start(tiny_command, monkeypatch):
    monkeypatch.setattr(preflight, "host_memory", lambda: 1000.0)
    refused = tiny_command("sft")
    assert refused.code == 2
    assert "this machine's free memory has 0.0 MB" in refused.error


def test_a_disk_that_is_too_small_is_told_before_training(tiny_command, monkeypatch):
    monkeypatch.setattr(preflight, "free_disk", lambda stage: 1000.0)
    refused = tiny_command("sft")
    assert refused.code == 2
    assert "the disk of" in refused.error and "choose another run.dir" in refused.error
