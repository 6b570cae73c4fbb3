"""Every architecture in its forwards; a few, chosen for their differences, through every stage."""

import pytest
import tiny_world
import torch

from rlhf.config.schema import AdapterKind
from rlhf.errors import UserError
from rlhf.models.policies import set_dropout
from rlhf.models.scalars import ScalarModel, classifier_class, response_values
from rlhf.training.trial import require_usable
from stages.benches import architectures as bench_architectures
from stages.benches.imitations import ARCHITECTURES, small_model

TOKENS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
REFUSED = {"mamba": "draws tokens from another distribution"}
USED = sorted(ARCHITECTURES.keys() - REFUSED.keys())
SEQUENCE, NUM_RESPONSE = [3, 40, 50, 4, 60, 61, 70, 80, 90, 100, 110, 120], 5


def spread(model):
    """Wide weights, so that a wrong mask or position shows; no dropout, as a model that was loaded."""
    random = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0.0, 0.2, generator=random)
    set_dropout(model, 0.0)
    model.config.output_router_logits = False
    return model.eval()


@pytest.mark.parametrize("name", USED)
def test_padding_training_mode_and_decoding_change_no_logprob(name):
    require_usable(spread(small_model(name, 320, TOKENS)))


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_train_on_wrong_numbers_is_refused(name):
    with pytest.raises(UserError, match=REFUSED[name]):
        require_usable(spread(small_model(name, 320, TOKENS)))


@pytest.mark.parametrize("name", USED)
def test_padding_changes_no_value_and_no_score(name):
    config = small_model(name, 320, TOKENS).config
    model = ScalarModel(spread(classifier_class(config, "")(config))).eval()
    ids = torch.tensor([[0] * 5 + SEQUENCE + [0] * 3, [0] * 8 + SEQUENCE])
    mask = torch.tensor([[0] * 5 + [1] * 12 + [0] * 3, [0] * 8 + [1] * 12]).bool()
    alone, whole = torch.tensor([SEQUENCE]), torch.ones(1, len(SEQUENCE)).bool()
    with torch.no_grad():
        expected = response_values(model, alone, whole, NUM_RESPONSE)
        assert torch.allclose(response_values(model, ids, mask, NUM_RESPONSE)[1:], expected, atol=1e-4)
        assert torch.allclose(
            response_values(model, ids, mask, NUM_RESPONSE + 3)[:1, :NUM_RESPONSE], expected, atol=1e-4
        )
        right = ids[:1, 5:], mask[:1, 5:]
        assert torch.allclose(model.scores(*right), model.scores(alone, whole), atol=1e-4)
    assert expected.std() > 1e-3  # or nothing would be told apart


@pytest.mark.parametrize(
    "name, kind",
    [
        ("gemma-2", "none"),  # no sdpa
        ("granite", "none"),  # no sequence classifier in the library
        ("opt", "lora"),  # hidden states narrower than hidden_size, layers that drop out
        ("qwen2-moe", "none"),  # routers with a loss of their own
        ("gpt-2", "qlora"),  # transposed layers
    ],
)
def test_an_architecture_goes_through_every_stage(name, kind, tmp_path):
    if kind == "qlora":
        pytest.importorskip("bitsandbytes", reason="the extra [quant] is not installed")
    config = tiny_world.composed("experiment=architectures", f"run.dir={tmp_path}")
    bench_architectures.write_data(config)
    row = bench_architectures.row_of(config, name, AdapterKind(kind))
    assert (row["stage"], row["outcome"], row["reason"]) == ("export", "passes", None)
    assert row["loss_difference"] < 1e-4


def test_the_matrix_has_a_cell_per_architecture_and_adapter_and_a_reason_for_each_that_did_not_pass():
    passed = {"architecture": "opt", "adapter": "none", "stage": "export", "outcome": "passes", "reason": None}
    refused = {"architecture": "opt", "adapter": "lora", "stage": "sft", "outcome": "refused", "reason": "for a reason"}
    rows = [{**passed, "seconds": 1.2}, {**refused, "seconds": 0.6}]
    assert bench_architectures.markdown(rows) == [
        "| architecture | none | lora |",
        "|---|---|---|",
        "| opt | passes, 1 s | refused in sft, 1 s |",
        "",
        "- opt, lora, sft: for a reason",
    ]
