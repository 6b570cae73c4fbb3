"""`preflight=true` tells what a stage needs and does nothing else; without it, what cannot fit does not start."""

import pytest
from transformers import LlamaConfig

from rlhf import preflight


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_preflight_shows_memory_disk_and_steps_and_writes_nothing(tiny_command, stage, run_dir):
    before = sorted(run_dir.rglob("*"))
    shown = tiny_command(stage, "preflight=true", f"run.dir={run_dir}")
    assert shown.code == 0, shown.err
    for part in ("forward, backward", "(largest)", "optimizer steps", "disk:", "free memory:"):
        assert part in shown.out
    assert sorted(run_dir.rglob("*")) == before


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
