"""The forward passes of policy, critic and reward model: padding, shifts, temperature, the place of the score."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from rlhf.errors import UserError
from rlhf.models.policies import (
    context_length,
    enable_gradient_checkpointing,
    fit_embeddings,
    load_policy,
    require_context,
    response_logprobs,
    set_dropout,
    stop_ids,
)
from rlhf.models.reading import Reading
from rlhf.models.scalars import ScalarModel, load_scalar_model, response_values, scalar_model_from_policy
from rlhf.text.encoding import context_of, encode_answer

PROMPT, RESPONSE = [3, 40, 50, 4], [60, 61, 70, 1]


def padded(pad_id, left, right):
    """Prompt and response between pads: ids and mask [1, T], and the number of response columns."""
    ids = [pad_id] * left + PROMPT + RESPONSE + [pad_id] * right
    mask = [False] * left + [True] * (len(PROMPT) + len(RESPONSE)) + [False] * right
    return torch.tensor([ids]), torch.tensor([mask]), len(RESPONSE) + right


PADDINGS = [(7, 0), (0, 7), (7, 7)]
PAD_OR_EOS = [0, 1]  # the ids of <|pad|> and <|end|>: masks must not come from "token != pad"


@pytest.mark.parametrize("pad_id", PAD_OR_EOS)
@pytest.mark.parametrize("left, right", PADDINGS)
def test_padding_changes_no_logprob_and_no_entropy(policy, left, right, pad_id):
    plain = response_logprobs(policy, *padded(pad_id, 0, 0))
    wide = response_logprobs(policy, *padded(pad_id, left, right))
    for x, y in zip(wide, plain, strict=True):
        assert torch.allclose(x[:, : len(RESPONSE)], y, atol=1e-5)


@pytest.mark.parametrize("pad_id", PAD_OR_EOS)
@pytest.mark.parametrize("left, right", PADDINGS)
def test_padding_changes_no_value(critic, left, right, pad_id):
    plain = response_values(critic, *padded(pad_id, 0, 0))
    wide = response_values(critic, *padded(pad_id, left, right))
    assert torch.allclose(wide[:, : len(RESPONSE)], plain, atol=1e-5)


@pytest.mark.parametrize("pad_id", PAD_OR_EOS)
def test_padding_changes_no_score(make_scalar, pad_id):
    reward_model = make_scalar(3)
    ids, mask, _ = padded(pad_id, 0, 0)
    wide_ids, wide_mask, _ = padded(pad_id, 0, 7)
    assert torch.allclose(reward_model.scores(wide_ids, wide_mask), reward_model.scores(ids, mask), atol=1e-5)


@pytest.mark.parametrize("pad_id", PAD_OR_EOS)
@pytest.mark.parametrize("left, right", PADDINGS)
def test_padding_changes_nothing_in_a_model_with_absolute_positions(absolute, left, right, pad_id):
    policy, critic = absolute
    for found_by, model in ((response_values, critic), (lambda *x: response_logprobs(*x)[0], policy)):
        plain = found_by(model, *padded(pad_id, 0, 0))
        wide = found_by(model, *padded(pad_id, left, right))
        assert torch.allclose(wide[:, : len(RESPONSE)], plain, atol=1e-5)


def test_the_test_model_is_sensitive_to_positions_and_to_what_it_attends_to(policy):
    """Or the tests of padding would prove nothing."""
    ids, mask, size = padded(0, 0, 0)
    plain, _ = response_logprobs(policy, ids, mask, size)
    other_mask = mask.clone()
    other_mask[0, 0] = False
    swapped = ids[:, [0, 2, 1, 3, 4, 5, 6, 7]]
    for changed in ((ids, other_mask), (swapped, mask)):
        assert (response_logprobs(policy, *changed, size)[0] - plain).abs().max() > 0.1


def test_a_logprob_is_that_of_the_token_given_all_before_it(policy):
    """Against the model's own logits of one unpadded sequence, softmax in float64."""
    sequence = PROMPT + RESPONSE
    logits = policy(torch.tensor([sequence])).logits[0].detach().double().numpy()
    expected = [
        logits[t - 1, sequence[t]] - np.log(np.exp(logits[t - 1]).sum()) for t in range(len(PROMPT), len(sequence))
    ]
    logprobs, _ = response_logprobs(policy, *padded(0, 0, 0))
    assert logprobs[0].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_temperature_divides_the_logits_of_every_logprob_and_entropy(policy, temperature):
    logits = policy(torch.tensor([PROMPT + RESPONSE])).logits[0].detach().double().numpy() / temperature
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    logprobs, entropies = response_logprobs(policy, *padded(0, 3, 2), temperature)
    places = range(len(PROMPT) - 1, len(PROMPT) + len(RESPONSE) - 1)
    expected = [math.log(p[t, token]) for t, token in zip(places, RESPONSE, strict=True)]
    assert logprobs[0, : len(RESPONSE)].tolist() == pytest.approx(expected, abs=1e-5)
    expected = [-(p[t] * np.log(p[t])).sum() for t in places]
    assert entropies[0, : len(RESPONSE)].tolist() == pytest.approx(expected, abs=1e-5)


class CountsUp(nn.Module):
    """A policy by hand: after token n comes token n + 1, for sure."""

    def forward(self, input_ids, logits_to_keep, **_):
        logits = 100.0 * nn.functional.one_hot(input_ids + 1, 20)
        return SimpleNamespace(logits=logits[:, -logits_to_keep:])


def test_logprobs_are_not_shifted_by_one_token():
    ids = torch.tensor([[3, 4, 5, 7]])
    logprobs, _ = response_logprobs(CountsUp(), ids, torch.ones_like(ids).bool(), 3)
    assert logprobs.tolist() == [[0.0, 0.0, -100.0]]  # 4 after 3, 5 after 4, but 7 after 5


def test_a_value_is_what_the_critic_says_at_the_position_before_the_token():
    ids = torch.tensor([[30, 40, 50, 60, 70]])  # a critic by hand: its value is the token it stands on
    values = response_values(lambda ids, mask: ids.float(), ids, torch.ones_like(ids).bool(), 3)
    assert values.tolist() == [[40.0, 50.0, 60.0]]


def test_logits_are_made_for_response_tokens_only(policy):
    made = []
    policy.lm_head.register_forward_hook(lambda module, inputs, output: made.append(output.shape[1]))
    response_logprobs(policy, *padded(0, 7, 0))
    assert made == [len(RESPONSE) + 1]  # one before each token, and one after the last that is thrown away


def test_entropy_has_a_gradient_only_when_asked(policy):
    assert not response_logprobs(policy, *padded(0, 0, 0))[1].requires_grad
    assert response_logprobs(policy, *padded(0, 0, 0), entropy_gradient=True)[1].requires_grad
    with torch.no_grad():
        assert not response_logprobs(policy, *padded(0, 0, 0), entropy_gradient=True)[0].requires_grad


# ---- scalar models


def test_the_score_is_read_at_the_last_real_token():
    class ReadsIds(ScalarModel):
        def __init__(self):
            nn.Module.__init__(self)

        def forward(self, ids, mask):
            return ids.float()

    ids = torch.tensor([[5, 6, 1, 1], [5, 6, 7, 8], [9, 1, 1, 1]])  # token 1 is EOS and, here, the pad token too
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    assert ReadsIds().scores(ids, mask).tolist() == [1.0, 8.0, 9.0]


def test_the_score_is_that_of_the_sequence_classifier_whose_folder_is_saved(make_scalar):
    """Hugging Face's own pooling of the same weights is the expected value."""
    reward_model = make_scalar(3)
    ids = torch.tensor([PROMPT + RESPONSE])
    expected = reward_model.model(input_ids=ids).logits[0, 0].item()
    assert reward_model.scores(ids, torch.ones_like(ids).bool()).item() == pytest.approx(expected, abs=1e-5)


def test_scores_and_values_are_normalised_by_mean_and_std(make_scalar):
    ids, mask, _ = padded(0, 0, 0)
    raw = make_scalar(3)(ids, mask)
    assert torch.allclose(make_scalar(3, mean=2.0, std=4.0)(ids, mask), (raw - 2) / 4)


def test_a_new_head_is_normal_with_standard_deviation_one_over_the_root_of_d_plus_one(make_policy, tmp_path):
    make_policy(hidden_size=1024, intermediate_size=16, num_layers=1).save_pretrained(tmp_path)
    torch.manual_seed(0)
    head = scalar_model_from_policy(tmp_path, Reading(torch.float32, "sdpa"), zero_head=False).model.score.weight
    assert head.std().item() == pytest.approx(1 / math.sqrt(1025), rel=0.1)  # of 1024 numbers: rel. error about 0.02
    assert head.mean().item() == pytest.approx(0, abs=5 / 1025)


def test_a_zero_head_on_the_policys_trunk_says_zero_everywhere(policy, tmp_path):
    policy.save_pretrained(tmp_path)
    critic = scalar_model_from_policy(tmp_path, Reading(torch.float32, "sdpa"), zero_head=True)
    ids, mask, _ = padded(0, 2, 2)
    assert (critic(ids, mask) == 0).all()
    trunk, own = critic.model.base_model.state_dict(), policy.base_model.state_dict()
    assert all(torch.equal(trunk[name], own[name]) for name in own)


def test_a_saved_scalar_model_gives_the_same_scores(make_scalar, tmp_path):
    reward_model = make_scalar(3)
    reward_model.model.save_pretrained(tmp_path)
    ids, mask, _ = padded(0, 0, 3)
    loaded = load_scalar_model(tmp_path, Reading(torch.float32))
    assert torch.equal(loaded.scores(ids, mask), reward_model.scores(ids, mask))


# ---- loading and settings


def test_a_loaded_policy_gives_the_same_logits_in_evaluation_mode(policy, tmp_path):
    policy.save_pretrained(tmp_path)
    loaded = load_policy(tmp_path, Reading(torch.float32))
    assert not loaded.training
    ids, mask, size = padded(0, 0, 0)
    assert torch.equal(response_logprobs(loaded, ids, mask, size)[0], response_logprobs(policy, ids, mask, size)[0])


def test_a_policy_is_loaded_in_the_dtype_asked_for_and_scored_in_float32(policy, tmp_path):
    policy.save_pretrained(tmp_path)
    loaded = load_policy(tmp_path, Reading(torch.bfloat16))
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert response_logprobs(loaded, *padded(0, 0, 0))[0].dtype is torch.float32


SMALL = {"vocab_size": 100, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
BODY = {**SMALL, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
DROPOUTS = {
    "LlamaConfig": {**BODY, "attention_dropout": 0.5},
    "GPTNeoXConfig": {**BODY, "attention_dropout": 0.5, "hidden_dropout": 0.5},
    "GPT2Config": {**SMALL, "n_embd": 32, "n_layer": 1, "n_head": 2, "attn_pdrop": 0.5, "resid_pdrop": 0.5},
    "OPTConfig": {**BODY, "ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.5, "attention_dropout": 0.5},
    "BloomConfig": {**SMALL, "hidden_size": 32, "n_layer": 1, "n_head": 2, "hidden_dropout": 0.5},
    "FalconConfig": {**BODY, "hidden_dropout": 0.5},  # read from the config in the forward
    "PhiConfig": {**BODY, "resid_pdrop": 0.5, "embd_pdrop": 0.5, "attention_dropout": 0.5},
}


@pytest.mark.parametrize("kind", DROPOUTS)
def test_dropout_set_to_zero_makes_training_mode_equal_evaluation_mode(kind):
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**DROPOUTS[kind]))
    assert drops(model)
    set_dropout(model, 0.0)
    assert not drops(model)
    set_dropout(model, 0.5)
    assert drops(model)


NOISES = {
    "OPTConfig": {**BODY, "ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0, "layerdrop": 1.0},
    "MixtralConfig": {**BODY, "num_key_value_heads": 2, "num_local_experts": 4, "router_jitter_noise": 0.9},
}


@pytest.mark.parametrize("kind", NOISES)
def test_dropped_layers_and_noise_before_a_router_are_off(kind):
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**NOISES[kind]))
    assert drops(model)
    set_dropout(model, 0.0)
    assert not drops(model)


def drops(model):
    """Whether the model says something else in training mode."""
    ids = torch.arange(5, 25).unsqueeze(0)
    torch.manual_seed(0)
    return not torch.equal(model.train()(ids).logits, model.eval()(ids).logits)


def test_a_policy_saved_with_dropout_is_loaded_without(tmp_path):
    config = transformers.GPT2Config(**DROPOUTS["GPT2Config"])
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert not drops(load_policy(tmp_path, Reading(torch.float32)))


def test_gradient_checkpointing_recomputes_and_changes_no_gradient(make_policy):
    gradients = []
    for checkpointing in (False, True):
        policy, forwards = make_policy(0), []
        norm = policy.model.layers[0].input_layernorm
        norm.register_forward_pre_hook(lambda module, inputs, forwards=forwards: forwards.append(1))
        if checkpointing:
            enable_gradient_checkpointing(policy)
        response_logprobs(policy.train(), *padded(0, 2, 2))[0].sum().backward()
        assert len(forwards) == (2 if checkpointing else 1)
        gradients.append([p.grad for p in policy.parameters()])
    for x, y in zip(*gradients, strict=True):
        assert torch.allclose(x, y, rtol=1e-5, atol=1e-6)


def test_all_stop_ids_of_a_chat_model_are_found(policy, tokenizer):
    policy.generation_config.eos_token_id = [9, 7]
    assert stop_ids(policy, tokenizer) == sorted([9, 7, tokenizer.eos_token_id])
    policy.generation_config.eos_token_id = 9
    assert stop_ids(policy, tokenizer) == sorted([9, tokenizer.eos_token_id])
    policy.generation_config.eos_token_id = None
    assert stop_ids(policy, tokenizer) == [tokenizer.eos_token_id]


def test_embeddings_grow_for_a_new_pad_token_and_never_shrink(make_policy, tokenizer):
    policy = make_policy(0)
    size, old = len(tokenizer), policy.get_input_embeddings().weight.clone()
    fit_embeddings(policy, Sized(size + 1, pad_token_id=size))
    assert policy.get_input_embeddings().num_embeddings == policy.get_output_embeddings().out_features == size + 1
    assert torch.equal(policy.get_input_embeddings().weight[:size], old)
    assert policy.config.pad_token_id == size
    for layer in (policy.get_input_embeddings(), policy.get_output_embeddings()):  # no chance in it: adapters need that
        assert torch.allclose(layer.weight[size], layer.weight[:size].mean(0), atol=1e-6)
    fit_embeddings(policy, Sized(size - 10, pad_token_id=0))
    assert policy.get_input_embeddings().num_embeddings == size + 1


class Sized:
    """As much of a tokenizer as embeddings need to know."""

    def __init__(self, size, pad_token_id):
        self.size, self.pad_token_id = size, pad_token_id

    def __len__(self):
        return self.size


def test_a_model_knows_how_far_its_positions_reach(policy):
    assert context_length(policy) == 128


def test_a_model_that_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(UserError, match=r"model.path=.*/absent: cannot load it"):
        load_policy(tmp_path / "absent", Reading(torch.float32))


def test_a_folder_that_lacks_some_weights_is_refused(policy, tmp_path):
    """The library would fill them in at random, with a warning."""
    weights = {name: value for name, value in policy.state_dict().items() if name != "model.norm.weight"}
    policy.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(UserError, match=r"lack 1 of the model's weights \(e.g. model.norm.weight\)"):
        load_policy(tmp_path, Reading(torch.float32))


def test_a_reward_model_is_not_loaded_from_a_policys_folder(policy, tmp_path):
    policy.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lack 1 of the model's weights \(e.g. score.weight\)"):
        load_scalar_model(tmp_path, Reading(torch.float32))


def test_pickled_weights_are_refused_unread(policy, tmp_path):
    policy.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"not even a pickle")
    with pytest.raises(UserError, match=r"only pickled weights \(pytorch_model.bin\).*Convert them to safetensors"):
        load_policy(tmp_path, Reading(torch.float32))


def test_a_prompt_and_a_response_must_fit_the_models_positions(policy):
    require_context(policy, SimpleNamespace(max_prompt_tokens=100, max_response_tokens=28))
    with pytest.raises(UserError, match=r"= 129 is more than the 128 tokens"):
        require_context(policy, SimpleNamespace(max_prompt_tokens=100, max_response_tokens=29))


SCALINGS = {
    "longrope": {"rope_type": "longrope", "original_max_position_embeddings": 64, "rope_theta": 1e4}
    | {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
}


@pytest.mark.parametrize("kind, border", [("longrope", 64), ("dynamic", 128)])
def test_a_position_scaling_that_depends_on_length_is_refused_across_its_border(kind, border):
    """The expected border is where the library's own forward says something else of the same tokens."""
    options = {**BODY, "num_key_value_heads": 2, "max_position_embeddings": 128, "rope_parameters": SCALINGS[kind]}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**options)).eval()
    ids = torch.arange(border + 1).unsqueeze(0) % 100

    def beginning(length):
        with torch.no_grad():
            return model(ids[:, :length]).logits[:, :40]

    assert torch.allclose(beginning(40), beginning(border), atol=1e-6)
    assert not torch.allclose(beginning(40), beginning(border + 1), atol=1e-6)
    require_context(model, SimpleNamespace(max_prompt_tokens=40, max_response_tokens=border - 40))
    with pytest.raises(UserError, match=rf"= {border + 1} is more than the {border} tokens .*{kind}"):
        require_context(model, SimpleNamespace(max_prompt_tokens=41, max_response_tokens=border - 40))


def test_attention_that_an_architecture_lacks_is_refused_with_what_to_set(tmp_path):
    sizes = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "attention_types": [[["global"], 1]]}
    config = transformers.GPTNeoConfig(**SMALL, **sizes)
    transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no attention of the kind model.attention=sdpa; set model.attention=eager"):
        load_policy(tmp_path, Reading(torch.float32, "sdpa"))
    assert load_policy(tmp_path, Reading(torch.float32)).config._attn_implementation == "eager"


def test_a_routers_own_loss_is_off_in_a_loaded_model(tmp_path):
    options = {**BODY, "num_key_value_heads": 2, "num_local_experts": 4, "output_router_logits": True}
    transformers.MixtralForCausalLM(transformers.MixtralConfig(**options)).save_pretrained(tmp_path)
    ids = torch.arange(5, 15).unsqueeze(0)
    assert load_policy(tmp_path, Reading(torch.float32))(ids, labels=ids).aux_loss is None


def test_a_model_with_code_of_its_own_is_refused_unless_trusted(policy, tmp_path):
    policy.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "own.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('this code must not run')")
    with pytest.raises(UserError, match=r"own.Model.*model.trust_remote_code=true"):
        load_policy(tmp_path, Reading(torch.float32))


def test_a_response_ends_with_the_token_that_stops_it(policy, tokenizer):
    context = context_of(tokenizer, [{"role": "user", "content": "hi"}])
    assert encode_answer(tokenizer, context, "yes")[-1] in stop_ids(policy, tokenizer)
