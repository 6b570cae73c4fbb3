"""All stages with a model like Qwen 3.5: its own end of turn, an open think block, and a date."""

import json
from datetime import date, datetime
from types import SimpleNamespace

import pytest
import tiny_world
from imitated import TEMPLATES, byte_level
from transformers import AutoTokenizer, GenerationConfig

from rlhf.artifacts.manifest import load_manifest
from rlhf.models.policies import build_policy
from stages import pipeline
from stages.models.sft import started

STAGES = ("sft", "reward", "ppo", "evaluate")
ENDS = ("<|im_end|>", "<|endoftext|>")
DATE = "{%- if messages[0]['role'] == 'user' %}{{- strftime_now('%Y-%m-%d') }}{%- endif %}"


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    """The folder of a run of all stages from that model, its shortest."""
    import torch

    folder = tmp_path_factory.mktemp("qwen")
    tokenizer = byte_level(DATE + TEMPLATES["qwen3_5_think"], adds_bos=True)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 1, "num_heads": 2, "max_positions": 128}
    torch.manual_seed(0)
    build_policy(SimpleNamespace(**sizes), tokenizer, torch.float32).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    bad = json.dumps({"prompt": "cat is <|im_start|>?", "completion": "red."})
    demonstrations = folder / "demonstrations.jsonl"
    demonstrations.write_text((world / "demonstrations.jsonl").read_text() + bad + "\n")
    options = [f"model.path={folder}/model", "data.max_prompt_tokens=60", f"data.demonstrations={demonstrations}"]
    options += ["data.on_error=skip", "sft.num_epochs=1", "reward.num_epochs=1", "ppo.num_steps=2"]
    pipeline.run(tiny_world.composed(*tiny_world.tiny_overrides(folder / "run", world), *options))
    return folder / "run"


def report(run, stage) -> dict:
    return json.loads((run / stage / "data_report.json").read_text())


def test_every_stage_reads_the_same_dialogue_with_one_bos_the_date_and_a_closed_think_block(run):
    shown = [(stage, *item) for stage in STAGES for item in report(run, stage)["first"].items()]
    kinds = {(stage, kind) for stage, kind, _ in shown}
    assert kinds >= {("sft", "demonstrations"), ("reward", "rankings"), ("ppo", "prompts"), ("evaluate", "prompts")}
    head = f"<|bos|>{date.today():%Y-%m-%d}<|im_start|>user\n"
    for _, kind, text in shown:
        assert text.startswith(head) and text.count("<|bos|>") == 1
        context = text.partition("<|im_start|>assistant\n")[2]
        assert context.startswith("<think>\n\n</think>\n\n" + ("" if kind == "prompts" else "[["))
        assert kind == "prompts" or "<|im_end|>]]" in context


def test_all_artifacts_carry_one_template_and_a_server_stops_where_turns_end(run):
    manifests = [load_manifest(run / stage) for stage in ("sft", "reward", "ppo")]
    for key in ("tokenizer_sha256", "chat_template_sha256"):
        assert len({manifest[key] for manifest in manifests}) == 1
    for stage in ("sft", "ppo"):
        tokenizer = AutoTokenizer.from_pretrained(run / stage / "model")
        assert tokenizer.eos_token == "<|im_end|>"
        settings = GenerationConfig.from_pretrained(run / stage / "model")
        assert {tokenizer.convert_tokens_to_ids(end) for end in ENDS} <= set(settings.eos_token_id)


def test_a_demonstration_that_forges_a_turn_was_left_out_and_counted_with_the_rule(run):
    (skipped,) = report(run, "sft")["skipped"]
    assert skipped["count"] == 1 and skipped["places"][0].endswith("demonstrations.jsonl:81")
    assert "control token '<|im_start|>'" in skipped["rule"]


def test_a_run_that_goes_on_another_day_keeps_its_date(tmp_path):
    stage = SimpleNamespace(checkpoint_folder=tmp_path)
    assert started(stage).date() == date.today()
    (tmp_path / "date.txt").write_text("2021-02-03")  # as it is on the next day
    assert started(stage) == started(stage) == datetime(2021, 2, 3)
