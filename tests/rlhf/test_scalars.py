"""Whole scalar models: one layout for every architecture, one precision for every head."""

import pytest
import torch
import transformers
from safetensors import safe_open

from rlhf.models.reading import Reading
from rlhf.models.scalars import Head, ScalarModel, load_scalar_model, scalar_model_from_policy

IDS, MASK = torch.tensor([[5, 6, 7, 8, 9]]), torch.ones(1, 5).bool()
BODY = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


def saved_policy(folder, kind, **options):
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**{**BODY, **options, "pad_token_id": 0})
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["LlamaConfig", "GraniteConfig", "CohereConfig"])  # the last two: no such class
def test_a_scalar_model_of_any_architecture_is_its_policys_trunk_and_comes_back_from_its_files(kind, tmp_path):
    policy = saved_policy(tmp_path / "policy", kind)
    reward_model = scalar_model_from_policy(policy, Reading(torch.float32), zero_head=False)
    trunk = transformers.AutoModel.from_pretrained(policy)
    expected = trunk(IDS).last_hidden_state @ reward_model.model.score.weight.squeeze(0)
    assert torch.allclose(reward_model(IDS, MASK), expected, atol=1e-5)
    reward_model.model.save_pretrained(tmp_path / "reward")
    assert torch.equal(
        load_scalar_model(tmp_path / "reward", Reading(torch.float32))(IDS, MASK), reward_model(IDS, MASK)
    )


@pytest.mark.parametrize("kind", ["GPT2", "OPT", "GPTNeoX", "Phi"])
def test_the_librarys_sequence_classifier_reads_our_folder_and_we_read_its(kind, tmp_path):
    policy = saved_policy(tmp_path / "policy", f"{kind}Config")
    ours = scalar_model_from_policy(policy, Reading(torch.float32, "eager"), zero_head=False)
    ours.model.save_pretrained(tmp_path / "ours")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours").eval()
    assert type(theirs).__name__ == f"{kind}ForSequenceClassification"
    assert torch.allclose(theirs(IDS).logits[0, 0], ours.scores(IDS, MASK)[0], atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    assert torch.allclose(
        load_scalar_model(tmp_path / "theirs", Reading(torch.float32))(IDS, MASK), ours(IDS, MASK), atol=1e-5
    )


def test_a_head_stands_on_what_the_output_layer_takes_where_that_is_narrower(tmp_path):
    """As in OPT-350m, whose hidden states are projected."""
    policy = saved_policy(tmp_path, "OPTConfig", word_embed_proj_dim=16, ffn_dim=64)
    assert scalar_model_from_policy(policy, Reading(torch.float32), zero_head=True).model.score.weight.shape == (1, 16)


def test_in_bfloat16_the_head_is_float32_in_memory_in_the_file_and_in_its_sum(tmp_path):
    policy = saved_policy(tmp_path / "policy", "LlamaConfig")
    reward_model = scalar_model_from_policy(policy, Reading(torch.bfloat16), zero_head=False)
    trunk = reward_model.model.base_model
    assert {p.dtype for p in trunk.parameters()} == {torch.bfloat16}
    head = reward_model.model.score.weight
    expected = trunk(IDS).last_hidden_state.double() @ head.double().squeeze(0)
    assert torch.allclose(reward_model(IDS, MASK).double(), expected, rtol=0, atol=1e-6)  # bfloat16 would be 4e-3 off
    reward_model.model.save_pretrained(tmp_path / "reward")
    with safe_open(tmp_path / "reward" / "model.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("score.weight"), head)
    assert torch.equal(load_scalar_model(tmp_path / "reward", Reading(torch.bfloat16)).model.score.weight, head)


def test_a_head_that_was_rounded_to_bfloat16_still_sums_in_float32():
    """As under DeepSpeed, which rounds all of a module."""
    head = Head(2).to(torch.bfloat16)
    head.weight.data = torch.tensor([[1.0, 1.0]], dtype=torch.bfloat16)
    assert head(torch.tensor([[1.0, 2**-9]], dtype=torch.bfloat16)).item() == 1 + 2**-9  # bfloat16 ends at 2**-7


def test_a_head_in_bfloat16_of_an_older_artifact_is_read_as_float32(tmp_path):
    policy = saved_policy(tmp_path / "policy", "LlamaConfig")
    theirs = transformers.LlamaForSequenceClassification.from_pretrained(policy, num_labels=1, dtype=torch.bfloat16)
    theirs.save_pretrained(tmp_path / "old")
    loaded = load_scalar_model(tmp_path / "old", Reading(torch.bfloat16))
    assert isinstance(loaded, ScalarModel) and loaded.model.score.weight.dtype is torch.float32
    assert torch.equal(loaded.model.score.weight, theirs.score.weight.float())
