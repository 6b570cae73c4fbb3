"""An old policy goes through stage 1 as docs/from_trl.md says."""

import re
from pathlib import Path

import tiny_world
import torch
from safetensors.torch import load_file, save_file

from rlhf.text.tokenizer import load_tokenizer
from stages import sft

PAGE = (Path(__file__).parents[2] / "docs" / "from_trl.md").read_text(encoding="utf-8")


def test_a_policy_with_a_value_head_comes_through_stage_1_as_it_was_with_a_template_that_adds_nothing(
    make_policy, tokenizer, world, tmp_path
):
    old = tmp_path / "old"
    make_policy(4).save_pretrained(old)
    tokenizer.save_pretrained(old)
    before = load_file(old / "model.safetensors")
    head = {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.ones(1)}
    save_file(before | head, old / "model.safetensors", metadata={"format": "pt"})
    (template,) = re.findall(r"```jinja\n(.*?)\n```", PAGE, re.DOTALL)
    (tmp_path / "bare.jinja").write_text(template)
    options = [f"model.path={old}", f"model.chat_template={tmp_path / 'bare.jinja'}", "data.max_prompt_tokens=60"]
    options += ["data.max_response_tokens=40", "sft.num_epochs=1", "sft.learning_rate=1e-12"]
    folder = sft.run(tiny_world.composed(*tiny_world.tiny_overrides(tmp_path / "run", world), *options))
    after = load_file(folder / "model" / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(torch.allclose(after[name], before[name], rtol=0, atol=1e-10) for name in before)
    messages = [{"role": "user", "content": "cat is red?"}]
    carried = load_tokenizer(str(folder / "model"))
    assert carried.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == "cat is red?"
