"""Reward models that other programs trained score as they did there."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from reward.foreign import load_foreign, read_value_head
from rlhf.errors import UserError

PROMPTS, RESPONSES = ["hi", "what is the time"], ["yes", " maybe no"]
WEIGHT, BIAS = torch.linspace(-1, 1, 32).unsqueeze(0), torch.tensor([2.5])
HEAD = {"v_head.summary.weight": WEIGHT, "v_head.summary.bias": BIAS}


@pytest.fixture
def saved(make_policy, tokenizer, tmp_path):
    """A policy and the folder it was saved in, without a head."""
    policy = make_policy(4)
    policy.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return policy, tmp_path


def expected(policy, tokenizer):
    """weight . h + bias at the last token of each bare text."""
    found = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        ids = tokenizer(f"<|user|>{prompt}<|assistant|>").input_ids + tokenizer(response + "<|end|>").input_ids
        hidden = policy.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        found.append((WEIGHT[0] @ hidden + 2.5).item())
    return found


def test_llama_factorys_head_beside_the_model_scores_the_last_token(saved, tokenizer):
    policy, folder = saved
    save_file(HEAD, folder / "value_head.safetensors")
    scores = load_foreign(folder)(PROMPTS, RESPONSES)
    assert scores.tolist() == pytest.approx(expected(policy, tokenizer), abs=1e-5)


def test_trls_head_among_the_models_weights_scores_the_last_token(saved, tokenizer):
    policy, folder = saved
    weights = load_file(folder / "model.safetensors")
    save_file(weights | HEAD, folder / "model.safetensors", metadata={"format": "pt"})
    scores = load_foreign(folder)(PROMPTS, RESPONSES)
    assert scores.tolist() == pytest.approx(expected(policy, tokenizer), abs=1e-5)


def test_a_sequence_classifier_scores_the_last_token(make_scalar, tokenizer, tmp_path):
    classifier = make_scalar(3).model
    classifier.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        ids = tokenizer(f"<|user|>{prompt}<|assistant|>").input_ids + tokenizer(response + "<|end|>").input_ids
        found.append(classifier(input_ids=torch.tensor([ids])).logits[0, 0].item())
    assert load_foreign(tmp_path)(PROMPTS, RESPONSES).tolist() == pytest.approx(found, abs=1e-5)


def test_a_head_without_bias_has_none(tmp_path):
    save_file({"v_head.summary.weight": WEIGHT}, tmp_path / "value_head.safetensors")
    weight, bias = read_value_head(tmp_path)
    assert weight.tolist() == WEIGHT.tolist() and bias == 0


def test_a_folder_without_a_head_is_refused(saved):
    with pytest.raises(UserError, match=r"hold no head, neither score\.weight nor v_head\.summary\.weight$"):
        load_foreign(saved[1])


def test_a_pickled_head_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "value_head.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"; value_head\.bin can run code when it is read: save it as safetensors"):
        read_value_head(tmp_path)


def test_the_head_of_another_model_is_refused(saved):
    save_file({"v_head.summary.weight": torch.zeros(1, 8)}, saved[1] / "value_head.safetensors")
    with pytest.raises(UserError, match=r"v_head.summary.weight is \[1, 8\], and the model needs \[1, 32\]"):
        load_foreign(saved[1])
