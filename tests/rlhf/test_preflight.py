"""Memory before there are weights: counted by hand here, and by the rules of ZeRO and of adapters."""

import pytest
from hydra import compose, initialize_config_module
from transformers import LlamaConfig

from rlhf.config.checks import resolve
from rlhf.errors import UserError
from rlhf.preflight import forecast as preflight
from rlhf.preflight.dryrun import Skeleton, logprobs, scalars
from rlhf.preflight.memory import Item, Phase, Sizes, Split, Trained
from rlhf.preflight.phases import ppo_disk, ppo_phases, reward_phases, sft_phases

D, F, V, HEADS = 32, 64, 320, 2  # width, feed-forward width, vocabulary
LAYER = 4 * D * D + 3 * D * F + 2 * D  # q, k, v, o; gate, up, down; two norms
B, T = 4, 16


def llama(num_layers=2):
    return LlamaConfig(
        vocab_size=V,
        hidden_size=D,
        intermediate_size=F,
        num_hidden_layers=num_layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        tie_word_embeddings=False,
    )


def config(*overrides):
    with initialize_config_module("conf", version_base="1.3"):
        return resolve(
            compose("config", overrides=["data.max_prompt_tokens=10", "data.max_response_tokens=6", *overrides])
        )


def sizes(*overrides, num_layers=2):
    return Sizes(config(*overrides), llama(num_layers))


def skeleton(*overrides, num_layers=2):
    return Skeleton(llama(num_layers), config(*overrides).model)


def item(phases, phase, name):
    found = next(part for part in phases if part.name == phase)
    return next(part for part in found.items if part.name == name).size


def test_weights_are_counted_without_being_made():
    assert sizes().count == 2 * V * D + 2 * LAYER + D
    assert sizes().scalar_count == V * D + 2 * LAYER + D + D  # no output layer, but a head of one row


def test_a_llama_layer_keeps_ten_widths_and_four_feed_forward_widths_per_token():
    """Each norm keeps its input, its normalised input and its output (3 d); attention q, k, v and its output (4 d); the
    feed-forward part gate, silu(gate), up and their product (4 f)."""
    small_numbers = B * T * (2 + HEADS) + B * T * T  # of the norms and of the rows of scores; the additive mask
    expected = 4 * (B * T * (10 * D + 4 * F) + small_numbers)
    found = [skeleton(num_layers=n).peak(scalars(B, T, trains=True, keeps_gradients=True)).total for n in (6, 7)]
    assert found[1] - found[0] == expected


def test_eager_attention_keeps_its_scores_as_well():
    passes = [
        skeleton(f"model.attention={kind}", num_layers=6).peak(scalars(B, T, True)).total for kind in ("eager", "sdpa")
    ]
    assert passes[0] > passes[1]


def test_logits_are_made_for_response_tokens_alone():
    few, many = (skeleton().peak(logprobs(B, T, num_response, trains=False)).logits for num_response in (7, 15))
    assert many > few > 0


def test_gradient_checkpointing_keeps_less():
    plain, checkpointed = (
        skeleton(f"model.gradient_checkpointing={on}", num_layers=8).peak(scalars(B, T, trains=True)).total
        for on in ("false", "true")
    )
    assert checkpointed < plain / 2


def test_a_cache_holds_keys_and_values_of_all_tokens_in_all_layers():
    cache = next(part for part in sizes().sampling(B) if part.name == "cache")
    assert cache.size == 2 * 2 * B * 16 * D * 4  # keys and values, layers, rows, tokens, width, float32


def test_bfloat16_halves_weights_and_adam_works_on_float32_copies():
    state = {part.name: part.size for part in Trained("policy", 100, 2, Split()).state()}
    assert state == {"policy weights": 200, "policy float32 copy": 400, "policy Adam moments": 800}


@pytest.mark.parametrize(
    ("stage", "weights", "moments", "gradients"),
    [(0, 400, 800, 400), (1, 400, 200, 400), (2, 400, 200, 100), (3, 100, 200, 100)],
)
def test_four_ranks_share_out_moments_then_gradients_then_weights(stage, weights, moments, gradients):
    trained = Trained("policy", 100, 4, Split(stage, ranks=4))
    state = {part.name: part.size for part in trained.state()}
    assert (state["policy weights"], state["policy Adam moments"]) == (weights, moments)
    assert trained.gradients().size == gradients


def test_offload_moves_adam_to_cpu_memory():
    state = Trained("policy", 100, 4, Split(2, 4, offload=True)).state()
    phase = Phase("step", tuple(state))
    assert phase.device() == 400
    assert phase.host(ranks=4) == 4 * (100 + 200)  # each rank's share of the float32 copy and of the moments


def test_an_adapter_has_rank_times_inputs_and_outputs_of_each_linear_layer():
    by_hand = 2 * 8 * (4 * (D + D) + 3 * (D + F))  # layers, rank; q, k, v, o; gate, up, down
    assert sizes("adapter=lora", "adapter.rank=8").skeleton.num_adapter == by_hand


def test_four_roles_on_one_base_need_its_weights_once():
    whole, lora = (ppo_phases(sizes(f"adapter={kind}"), [kind == "lora"]) for kind in ("none", "lora"))
    count = 2 * V * D + 2 * LAYER + D
    assert item(lora, "rollout", "base weights") == item(whole, "rollout", "policy weights") == count * 4
    assert {part.name for part in lora[0].items if "weights" in part.name} == {
        "base weights",
        "policy weights",
        "critic weights",
    }


def test_qlora_packs_linear_layers_into_half_a_byte_and_a_little_per_number():
    linears = 2 * (4 * D * D + 3 * D * F)
    packed = ppo_phases(sizes("adapter=qlora"), [True])
    others = 2 * V * D + 2 * 2 * D + D  # embeddings, output layer, norms
    assert item(packed, "rollout", "base weights, 4 bits") == pytest.approx(linears * 0.516 + others * 4, rel=1e-3)


def test_ppo_trains_two_models_and_keeps_two_frozen():
    phases = ppo_phases(sizes(), [False])
    names = {part.name for part in phases[0].items if part.name.endswith("weights")}
    assert names == {"policy weights", "critic weights", "reference weights", "reward weights"}
    assert "policy gradients" in {part.name for part in phases[3].items}


def test_more_micro_batches_than_one_keep_gradients_through_the_next_forward():
    one, four = (ppo_phases(sizes(f"ppo.micro_batch_size={size}"), [False])[2] for size in (32, 8))
    assert one.name == four.name == "policy forward, backward"
    assert "policy gradients" not in {part.name for part in one.items}
    assert "policy gradients" in {part.name for part in four.items}


def test_an_average_of_the_policy_lives_in_cpu_memory_in_float32():
    phases = ppo_phases(sizes("ppo.ema_decay=0.99"), [False])
    average = next(part for part in phases[0].items if part.name == "average policy")
    assert (average.size, average.on_host, average.once) == (4 * (2 * V * D + 2 * LAYER + D), True, True)


def test_rankings_of_more_answers_take_more_memory():
    two, four = (reward_phases(sizes(), num_answers)[0].device() for num_answers in (2, 4))
    assert four > two


def test_sft_checks_its_perplexity_with_all_logits():
    validation = next(phase for phase in sft_phases(sizes()) if phase.name == "validation")
    assert validation.largest.name == "validation logits"


def test_disk_holds_one_checkpoint_more_than_are_kept():
    policy, critic = 2 * V * D + 2 * LAYER + D, V * D + 2 * LAYER + 2 * D
    one = 3 * 4 * (policy + critic) + 4 * policy  # weights and two moments of both; the best policy
    assert ppo_disk(sizes("ppo.keep_checkpoints=2")) == {"checkpoints": 3 * one, "artifact": 4 * policy}


FITS = Phase("policy step", (Item("policy weights", 1e9, "adapter"), Item("activations", 4e9, "ppo.x", varies=True)))


def test_what_cannot_fit_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(preflight, "host_memory", lambda: 0.5e9)
    with pytest.raises(UserError) as refused:
        preflight.check_memory([FITS])
    message = str(refused.value)
    for part in ("0.50 GB", "1.80 GB", "policy step", "activations", "ppo.x"):  # 1 + a quarter of 4, less a tenth
        assert part in message
    assert "\n" not in message


def test_what_fits_with_short_sequences_is_told_and_not_refused(monkeypatch, capsys):
    monkeypatch.setattr(preflight, "host_memory", lambda: 3e9)
    preflight.check_memory([FITS])
    assert "may run out of memory: 'policy step' takes 5.00 GB" in capsys.readouterr().err


def test_what_fits_is_not_spoken_of(monkeypatch, capsys):
    monkeypatch.setattr(preflight, "host_memory", lambda: 6e9)
    preflight.check_memory([FITS])
    assert capsys.readouterr().err == ""


def test_memory_of_a_control_group_counts_where_it_is_less(monkeypatch, tmp_path):
    for name, text in (
        ("memory.max", "1000000"),
        ("memory.current", "700000"),
        ("memory.stat", "inactive_file 200000\n"),
    ):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(preflight, "GROUPS", [(str(tmp_path / "memory.max"), str(tmp_path / "memory.current"))])
    assert preflight.host_memory() == 500_000  # the limit, less what is used, but files in memory can go
