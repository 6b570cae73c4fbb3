"""Adapters on one trunk: what each view says, what trains, and what their files are held to."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel
from torch import nn

from rlhf.config.schema import AdapterConfig, AdapterKind
from rlhf.errors import ArtifactError, UserError
from rlhf.hashing import weights_fingerprint
from rlhf.models.adapters import (
    base_of,
    folder_base,
    load_base_model,
    lora_config,
    read_adapter,
    require_same_base,
    write_adapter,
)
from rlhf.models.policies import load_policy, set_dropout
from rlhf.models.reading import Reading
from rlhf.models.saving import probe, require_same_forward
from rlhf.models.trunk import PolicyView, ScalarView, Trunk, adapter_weights

TARGETS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
IDS = torch.tensor([[3, 40, 50, 4, 60, 61]])
MASK = torch.ones_like(IDS).bool()


def config(**changes):
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": TARGETS, "task_type": "CAUSAL_LM", **changes})


def weights_like(trunk, name, seed):
    random = torch.Generator().manual_seed(seed)
    return {key: torch.randn(p.shape, generator=random) * 0.2 for key, p in trunk.parameters(name).items()}


@pytest.fixture
def trunk(make_policy):
    """The test model with the adapters "policy", which trains, "critic", which trains too, and "reference"."""
    trunk = Trunk(make_policy(0))
    for seed, name in enumerate(("policy", "critic", "reference")):
        trunk.add(name, config(), trains=name != "reference")
        trunk._copy(name, weights_like(trunk, name, seed))
    return trunk


@pytest.fixture
def views(trunk):
    critic = ScalarView(trunk, "critic", nn.Linear(32, 1, bias=False))
    return SimpleNamespace(
        policy=PolicyView(trunk, "policy"),
        critic=critic,
        reference=PolicyView(trunk, "reference"),
        base=PolicyView(trunk, None),
    )


def logits(view):
    return view(input_ids=IDS, attention_mask=MASK.long()).logits


def test_a_fresh_adapter_changes_no_output(make_policy):
    model = make_policy(0)
    before = model(IDS).logits
    trunk = Trunk(model)
    trunk.add("policy", config(), trains=True)
    assert torch.equal(logits(PolicyView(trunk, "policy")), before)


def test_without_its_adapters_the_trunk_is_the_base(views, make_policy):
    assert torch.equal(logits(views.base), make_policy(0)(IDS).logits)


def test_each_view_speaks_as_peft_makes_of_its_files(trunk, views, make_policy, tmp_path):
    make_policy(0).save_pretrained(tmp_path / "base")
    for name in ("policy", "reference"):
        base = folder_base(tmp_path / "base", "base")
        write_adapter(tmp_path / name, trunk.configs[name], trunk.parameters(name), base)
        expected = PeftModel.from_pretrained(make_policy(0), tmp_path / name)(input_ids=IDS).logits
        assert torch.allclose(logits(getattr(views, name)), expected, atol=1e-5)
    assert (logits(views.policy) - logits(views.reference)).abs().max() > 0.1


def test_a_view_shows_its_own_adapter_and_head_and_nothing_else(views):
    adapters = [{id(p) for p in view.parameters()} for view in vars(views).values()]
    assert [len(own) for own in adapters] == [2 * 7 * 2, 2 * 7 * 2 + 1, 2 * 7 * 2, 0]  # A and B of 7 layers in 2 blocks
    assert len(set().union(*adapters)) == sum(len(own) for own in adapters)


def test_forwards_of_all_views_leave_what_trains_as_it_was(trunk, views):
    for view in (views.reference, views.policy, views.base, views.critic):
        view(IDS, MASK) if isinstance(view, ScalarView) else logits(view)
        assert all(p.requires_grad for p in views.policy.parameters())
        assert all(p.requires_grad for p in views.critic.parameters())
        assert not any(p.requires_grad for p in views.reference.parameters())
        frozen = [p for name, p in trunk.model.named_parameters() if "lora_" not in name]
        assert not any(p.requires_grad for p in frozen)


def test_the_loss_of_one_view_gives_no_other_a_gradient(trunk, views):
    logits(views.policy).sum().backward()
    assert all(p.grad is not None for p in views.policy.parameters())
    others = [p for p in trunk.model.parameters() if id(p) not in {id(own) for own in views.policy.parameters()}]
    assert all(p.grad is None for p in others)


def test_gradient_checkpointing_recomputes_with_the_adapter_of_the_forward(trunk, views):
    """Even where another view's forward came between."""
    logits(views.policy).pow(2).sum().backward()
    expected = [p.grad.clone() for p in views.policy.parameters()]
    views.policy.zero_grad()
    trunk.enable_gradient_checkpointing()
    loss = logits(views.policy.train()).pow(2).sum()
    logits(views.reference)
    loss.backward()
    for found, parameter in zip(expected, views.policy.parameters(), strict=True):
        assert torch.allclose(parameter.grad, found, rtol=1e-4, atol=1e-5)


def test_an_adapter_of_another_size_is_refused(trunk):
    with pytest.raises(ArtifactError, match=r"does not fit its base at model.layers.0"):
        trunk.add("other", config(r=2), trunk.parameters("policy"))


def test_weights_by_a_views_names_are_the_adapters_by_the_bases(trunk, views):
    named = dict(views.critic.named_parameters())
    assert adapter_weights(named).keys() == trunk.parameters("critic").keys()


def test_what_is_written_is_read_again(trunk, make_policy, tmp_path):
    make_policy(0).save_pretrained(tmp_path / "base")
    write_adapter(
        tmp_path / "a", trunk.configs["policy"], trunk.parameters("policy"), folder_base(tmp_path / "base", "b")
    )
    settings, weights = read_adapter(tmp_path / "a")
    assert settings.r == 4 and all(torch.equal(weights[k], p) for k, p in trunk.parameters("policy").items())


@pytest.mark.parametrize("value, words", [(torch.zeros(0), "is empty"), (torch.tensor([float("nan")]), "not finite")])
def test_an_empty_or_broken_weight_is_not_written(value, words, tmp_path):
    with pytest.raises(ArtifactError, match=words):
        write_adapter(tmp_path, config(), {"a": value}, None)
    assert list(tmp_path.iterdir()) == []


def test_a_saved_model_that_speaks_otherwise_is_refused(views):
    with pytest.raises(ArtifactError, match=r"differs from the one that was trained by .*the stage is not done"):
        require_same_forward(probe(views.policy), probe(views.reference), "folder", torch.float32)


# ---- the base


def artifact(tmp_path, make_policy):
    """(artifact, manifest) of an adapter on the model in tmp_path/base."""
    make_policy(0).save_pretrained(tmp_path / "base")
    base = folder_base(tmp_path / "base", "small")
    path = tmp_path / "run" / "sft"
    return path, {"adapter": base.adapter_record("lora", config(), path), "base_model": base.record}


def test_a_base_is_found_from_the_artifact_wherever_both_were_moved_to(tmp_path, make_policy):
    _, manifest = artifact(tmp_path / "old", make_policy)
    (tmp_path / "old").rename(tmp_path / "new")
    assert base_of(tmp_path / "new" / "run" / "sft", manifest).path == str(tmp_path / "new" / "base")


def test_another_base_is_refused_unread_with_both_fingerprints(tmp_path, make_policy):
    path, manifest = artifact(tmp_path, make_policy)
    was = weights_fingerprint(tmp_path / "base")
    make_policy(1).save_pretrained(tmp_path / "base")
    now = weights_fingerprint(tmp_path / "base")
    with pytest.raises(ArtifactError, match=rf"{was[:12]}.*holds {now[:12]}; put the old weights back"):
        base_of(path, manifest)


def test_a_missing_base_is_named(tmp_path, make_policy):
    path, manifest = artifact(tmp_path, make_policy)
    (tmp_path / "base").rename(tmp_path / "gone")
    with pytest.raises(ArtifactError, match=r"/base, which is not there; put small \("):
        base_of(path, manifest)


def test_two_adapters_on_different_bases_share_no_trunk(tmp_path, make_policy):
    for seed in (0, 1):
        make_policy(seed).save_pretrained(tmp_path / str(seed))
    bases = [folder_base(tmp_path / str(seed), f"model {seed}") for seed in (0, 1)]
    with pytest.raises(ArtifactError, match=r"reward stands on model 0 .*policy on model 1"):
        require_same_base("reward", bases[0], "policy", bases[1])


# ---- where adapters attach


def options(**changes):
    values = {"kind": AdapterKind.lora, "rank": 4, "alpha": 8.0, "dropout": 0.0, "targets": "all-linear"}
    return AdapterConfig(**{**values, **changes})


def test_all_linear_is_every_linear_layer_but_the_one_of_the_logits(policy):
    assert set(lora_config(options(), policy).target_modules) == set(TARGETS)


def test_layers_are_named_with_spaces_or_commas(policy):
    assert set(lora_config(options(targets="q_proj, v_proj"), policy).target_modules) == {"q_proj", "v_proj"}


def test_an_unknown_layer_is_refused_with_those_there_are(policy):
    with pytest.raises(UserError, match=r"no linear layer named foo; it has down_proj, gate_proj"):
        lora_config(options(targets="q_proj foo"), policy)


def test_a_model_of_the_gpt2_kind_takes_an_adapter(absolute):
    trunk = Trunk(absolute[0])
    before = absolute[0](IDS).logits
    trunk.add("policy", lora_config(options(), trunk.model), trains=True)
    assert torch.allclose(logits(PolicyView(trunk, "policy")), before, atol=1e-5)


def test_the_bases_dropout_is_not_the_adapters(make_policy):
    trunk = Trunk(make_policy(0))
    trunk.add("policy", config(lora_dropout=0.5), trains=True)
    set_dropout(trunk.model, 0.0)
    rates = {m.p for name, m in trunk.model.named_modules() if isinstance(m, nn.Dropout) and "lora" in name}
    assert rates == {0.5}


def test_pefts_own_loader_finds_the_base_from_any_working_directory(make_policy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_policy(0).save_pretrained("base")
    trunk = Trunk(load_policy("base", Reading(torch.float32)))
    trunk.add("default", config(), trains=True)
    for parameter in trunk.parameters("default").values():
        parameter.data.fill_(0.1)
    write_adapter("adapter", trunk.configs["default"], trunk.parameters("default"), folder_base("base", "base"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = AutoPeftModelForCausalLM.from_pretrained("../adapter")
    assert torch.allclose(loaded(IDS).logits, logits(PolicyView(trunk, "default")), atol=1e-5)


# ---- four bits


@pytest.fixture
def wide(make_policy, tmp_path):
    """The folder of a model 64 wide: bitsandbytes packs blocks of 64 weights."""
    make_policy(0, hidden_size=64).save_pretrained(tmp_path / "wide")
    return folder_base(tmp_path / "wide", "wide")


def test_a_forward_without_gradients_loses_no_gradient_of_later_ones(wide, tokenizer):
    """On some CPUs bitsandbytes repacks weights in such a forward, for a kernel that has no backward."""
    pytest.importorskip("bitsandbytes", reason="the extra [quant] is not installed")
    trunk = Trunk(load_base_model(wide, tokenizer, AdapterKind.qlora, Reading(torch.float32, "sdpa")))
    trunk.add("policy", config(), trains=True)
    view = PolicyView(trunk, "policy").eval()
    gradients = []
    for _ in range(2):
        logits(view).pow(2).sum().backward()
        gradients.append([p.grad.clone() for p in view.parameters()])
        view.zero_grad()
        with torch.no_grad():
            logits(view)
    assert all(torch.allclose(x, y, rtol=1e-4, atol=1e-6) for x, y in zip(*gradients, strict=True))
    first_b = trunk.parameters("policy")["model.layers.0.self_attn.q_proj.lora_B.weight"]
    logits(view).pow(2).sum().backward()
    assert first_b.grad.abs().max() > 0  # through every 4-bit layer above it


def test_four_bits_are_the_bases_weights_but_for_rounding(wide, tokenizer):
    pytest.importorskip("bitsandbytes", reason="the extra [quant] is not installed")
    packed = (
        load_base_model(wide, tokenizer, AdapterKind.qlora, Reading(torch.float32, "sdpa")).model.layers[0].mlp.up_proj
    )
    plain = load_policy(wide.path, Reading(torch.float32)).model.layers[0].mlp.up_proj.weight
    assert packed.weight.dtype == torch.uint8
    difference = (packed(torch.eye(64)).T - plain).abs().max()
    assert 0 < difference <= 0.16 * plain.abs().max()  # half of NormalFloat4's widest gap, from -1 to -0.696


def test_qlora_without_bitsandbytes_names_the_extra(wide, tokenizer, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install -c constraints.txt -e "\.\[quant\]"'):
        load_base_model(wide, tokenizer, AdapterKind.qlora, Reading(torch.float32, "sdpa"))
