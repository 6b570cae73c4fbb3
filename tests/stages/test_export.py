"""`stages.export`: a plain Hugging Face folder that speaks as the trained policy does."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_world
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.artifacts.manifest import manifest_sha256
from stages import export, sft

IDS = torch.tensor([[3, 40, 50, 4, 60, 61]])
CONTENT = {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "export.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def adapter_run(run_dir, world, finished, kind: str):
    """The config of a run whose SFT artifact is an adapter."""
    changes = [f"model.path={finished / 'sft' / 'model'}", f"adapter={kind}", "sft.learning_rate=0.02"]
    config = tiny_world.composed(*tiny_world.tiny_overrides(run_dir, world), *changes, "export.stage=sft")
    sft.run(config)
    return config


@pytest.fixture(scope="session")
def exported(world, finished, tmp_path_factory) -> Path:
    """The export of a LoRA policy. Not to be changed."""
    return export.run(adapter_run(tmp_path_factory.mktemp("export") / "run", world, finished, "lora"))


def test_the_folder_is_plain_and_loads_in_transformers(exported):
    assert {path.name for path in exported.iterdir()} == CONTENT
    assert AutoModelForCausalLM.from_pretrained(exported).config.architectures == ["LlamaForCausalLM"]


def test_merged_logits_are_those_of_peft_with_the_adapter_on_its_base(exported, finished):
    base = AutoModelForCausalLM.from_pretrained(finished / "sft" / "model")
    before = logits(base)
    expected = logits(PeftModel.from_pretrained(base, exported.parent / "sft" / "model"))
    found = logits(AutoModelForCausalLM.from_pretrained(exported))
    assert torch.allclose(found, expected, atol=1e-4)
    assert (found - before).abs().max() > 0.1  # or a lost adapter would go unseen


def test_the_difference_and_its_tolerance_are_recorded(exported):
    record = json.loads((exported / "export.json").read_text())
    assert record["source"] == manifest_sha256(exported.parent / "sft")
    assert 0 <= record["differences"]["merged"] <= record["differences"]["tolerance"] == 1e-4


def test_a_server_stops_where_the_policy_learned_to(exported):
    tokenizer = AutoTokenizer.from_pretrained(exported)
    model = AutoModelForCausalLM.from_pretrained(exported)
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id]
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "cat is red?"}], tokenize=False)
    assert prompt == "<|user|>cat is red?"


def test_the_card_says_what_it_is_where_it_comes_from_and_what_it_is_for(exported):
    _, header, body = (exported / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(header)["license"] == "other"
    for words in ("## Use", "## Licence", "adapter: lora, rank 16", "demonstrations.jsonl (80 records", "valid_loss"):
        assert words in body


def test_the_policy_of_ppo_is_what_is_exported_unless_told_otherwise(run_dir, world):
    folder = export.run(tiny_world.composed(*tiny_world.tiny_overrides(run_dir, world)))
    expected = logits(AutoModelForCausalLM.from_pretrained(run_dir / "ppo" / "model"))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), expected)
    card = (folder / "README.md").read_text()
    assert "evaluate: judged by | gold rule tiny_world:names_the_colour" in card
    assert "rule tiny_world:names_the_colour (" in card  # of the reward model's report card
    assert "evaluate: win_rate" in card and "`ppo.kl_coef`: 0.05" in card


def test_four_bits_are_unpacked_into_the_weights_that_the_adapter_was_trained_on(world, finished, tmp_path):
    pytest.importorskip("bitsandbytes", reason="the extra [quant] is not installed")
    folder = export.run(adapter_run(tmp_path / "run", world, finished, "qlora"))
    differences = json.loads((folder / "export.json").read_text())["differences"]
    assert differences["merged"] <= 1e-4 and differences["four_bits"] <= 1e-3
    base = AutoModelForCausalLM.from_pretrained(finished / "sft" / "model")
    merged = AutoModelForCausalLM.from_pretrained(folder)
    assert not torch.equal(base.model.embed_tokens.weight, merged.lm_head.weight)
    assert torch.equal(base.model.embed_tokens.weight, merged.model.embed_tokens.weight)


def test_an_export_that_is_there_is_up_to_date(exported, world, finished, command):
    settings = tiny_world.tiny_overrides(exported.parent, world)
    outcome = command("export", *settings, "export.stage=sft")
    assert outcome.code == 0 and "export: up to date in" in outcome.err


def test_a_folder_of_other_content_is_refused(exported, world, command, tmp_path):
    run = Path(shutil.copytree(exported.parent, tmp_path / "run"))
    settings = [*tiny_world.tiny_overrides(run, world), "export.stage=sft"]
    (run / "export" / "config.json").write_text("{}")
    assert "holds this export with another config.json" in command("export", *settings).error
    (run / "export" / "export.json").unlink()
    outcome = command("export", *settings)
    assert outcome.code == 3 and "holds something that is no export. Choose another run.dir" in outcome.error


def test_force_moves_the_old_folder_aside(exported, world, command, tmp_path, finished):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "mine.txt").write_text("mine")
    inputs = [f"inputs.sft={finished / 'sft'}", "export.stage=sft", "run.force=true"]
    outcome = command("export", *tiny_world.tiny_overrides(tmp_path, world), *inputs)
    assert outcome.code == 0
    assert [path.read_text() for path in (tmp_path / "replaced").glob("export-*/mine.txt")] == ["mine"]
