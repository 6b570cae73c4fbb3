"""bench.what=speed: the workload, what is counted of it, what it prints."""

import json
from types import SimpleNamespace

import pytest
import tiny_world
import torch

from reward.scorer import RewardScorer
from rlhf.errors import UserError
from rlhf.text.encoding import context_of, decode_response
from stages import bench
from stages.benches import speed, workload
from stages.benches.clock import Clock
from stages.benches.limits import Ceilings, Lengths, Model, least_seconds, pairs

TINY = workload.Size(hidden=16, feed_forward=24, layers=2, heads=2, key_heads=1, vocabulary=64, batch=4)
# By hand, of TINY: a layer has 16 x 16 for queries, twice 16 x 8 for keys and values, 16 x 16 for their output, and
# 3 x 16 x 24; two layers. The head has 16 x 64.
LINEAR, HEAD = 2 * (256 + 256 + 256 + 1152), 1024


@pytest.fixture
def folder(tmp_path):
    workload.write(tmp_path / "work", "small", TINY, response_tokens=5)
    return tmp_path / "work"


def composed(tmp_path, *overrides):
    return tiny_world.composed(f"run.dir={tmp_path / 'run'}", "bench.what=speed", *overrides)


def of_folder(tmp_path, folder, *overrides):
    return composed(tmp_path, f"bench.workload={folder}", "bench.response_tokens=5", "bench.iterations=1", *overrides)


def test_responses_that_stop_half_the_time_are_one_and_a_half_tokens_long_of_two():
    assert workload.mean_length(0.5, 2) == 1.5  # 1 with chance 1/2, else 2


@pytest.mark.parametrize("limit", [8, 64, 1024])
def test_responses_are_six_tenths_of_their_limit_long_in_the_mean(limit):
    chance = workload.stop_chance(limit, 0.6)
    assert sum((1 - chance) ** tokens for tokens in range(limit)) == pytest.approx(0.6 * limit)  # of reaching each


def test_a_policy_ends_a_response_with_about_that_chance_at_every_token():
    work = workload.Workload("tiny", response_tokens=8, rollout_batch=4)
    torch.manual_seed(0)
    model = workload.policy(TINY, work)
    with torch.no_grad():
        chances = model(torch.randint(3, 64, (16, 32))).logits.softmax(-1)
    assert chances[..., workload.EOS].mean().item() == pytest.approx(workload.stop_chance(8, 0.6), rel=0.1)
    assert chances[..., workload.PAD].max().item() < 1e-3


def test_prompts_have_16_to_128_tokens_and_no_control_token():
    made = workload.prompts(100, 500, seed=0)
    assert len(made) == 500 and {len(ids) for ids in made} <= set(range(16, 129))
    assert min(min(ids) for ids in made) >= workload.FIRST_WORD
    assert made == workload.prompts(100, 500, seed=0)


def test_the_reward_model_reads_the_very_tokens_of_prompt_and_response():
    tokenizer = workload.word_tokenizer(64)
    prompt, response = [3, 10, 63, 16, 3], [1, 10, 4, 63]
    messages = [{"role": "user", "content": workload.text_of(prompt)}]
    assert context_of(tokenizer, messages).ids == prompt
    text = decode_response(tokenizer, response)
    scorer = RewardScorer(None, tokenizer, max_prompt_tokens=128, batch_size=1)
    assert scorer._encode(messages, text) == [*prompt, *response, workload.EOS]


def test_a_folder_holds_what_was_written(folder):
    work, prompts = workload.read(folder)
    assert work == workload.Workload("small", response_tokens=5, rollout_batch=4)
    assert prompts == workload.prompts(64, workload.NUM_PROMPTS, seed=0)


def test_an_incomplete_folder_is_refused_with_what_it_lacks(folder):
    (folder / "prompts.json").unlink()
    (folder / "critic" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"incomplete: it lacks prompts.json, critic/\*.safetensors; write it again"):
        workload.read(folder)


def test_another_limit_than_the_folder_s_is_refused(tmp_path, folder):
    cfg = composed(tmp_path, f"bench.workload={folder}")
    with pytest.raises(
        UserError, match=r"bench.response_tokens=64, and the workload in .* set bench.response_tokens=5"
    ):
        speed.measure(cfg)


def test_several_processes_are_refused(tmp_path):
    with pytest.raises(UserError, match="one process: run it without the launcher"):
        speed.measure(composed(tmp_path, "deepspeed=zero1"))


def tiny_model(num_trained=10_000, has_adapter=False):
    config = workload.llama(TINY, workload.Workload("tiny", response_tokens=5, rollout_batch=4))
    return Model.of(config, num_trained, has_adapter, width=4)


def test_flops_are_those_counted_by_hand():
    model = tiny_model()
    assert (model.linear, model.head, model.cache, model.attention) == (LINEAR, HEAD, 16, 16)
    assert pairs([3, 2]) == (1 + 2 + 3) + (1 + 2)
    # Two flops for a weight and a token; for a pair two for its product, two for its sum, 16 wide, in two layers.
    forward = 2 * LINEAR * 3 + 4 * 16 * 2 * 6 + 2 * HEAD * 1
    assert model.forward(tokens=3, pairs=6, logits=1) == forward
    assert model.training(tokens=3, pairs=6, logits=1) == 3 * forward


def test_frozen_weights_have_no_gradient_to_compute():
    model = tiny_model(num_trained=100, has_adapter=True)
    assert model.forward(tokens=3, pairs=0, logits=1) == 2 * (LINEAR + 100) * 3 + 2 * HEAD
    assert model.training(tokens=3, pairs=0, logits=1) == (4 * LINEAR + 6 * 100) * 3 + 4 * HEAD


def test_least_seconds_are_work_by_what_the_machine_does():
    model, lengths = tiny_model(), Lengths(prompts=[3], responses=[2])
    least = least_seconds(model, lengths, epochs=4, steps=4, ceilings=Ceilings(flops=1e6, bandwidth=1e6))
    tokens, attended = 4, 10
    trunk = 2 * LINEAR * tokens + 4 * 16 * 2 * attended
    assert least["score"] == pytest.approx((2 * trunk + 2 * HEAD * 2) / 1e6)
    assert least["update"] == pytest.approx((4 * 3 * (2 * trunk + 2 * HEAD * 2) + 2 * 4 * 10_000 * 28) / 1e6)
    prompt = 2 * LINEAR * 3 + 4 * 16 * 2 * 6 + 2 * HEAD
    read = 4 * (LINEAR + HEAD + 4 * 16 * 2)  # bytes: all weights once, and the cache of the four tokens before
    assert least["rollout"] == pytest.approx((prompt + read) / 1e6)


def test_padding_is_the_share_of_the_positions_that_hold_no_token():
    embedding = torch.nn.Embedding(10, 2)
    clock = Clock([embedding], pad_id=0)
    embedding(torch.tensor([[5]]))  # in no phase
    clock.begin("score")
    embedding(torch.tensor([[0, 0, 4], [1, 2, 3]]))
    embedding(torch.tensor([[7, 0]]))
    cost = clock.taken()["score"]
    assert (cost.positions, cost.tokens, cost.padding) == (8, 5, 0.375)


def test_figures_are_medians_over_iterations_beside_their_spread():
    def costs(seconds):
        one = SimpleNamespace(seconds=seconds, cpu_seconds=1.0, padding=0.5, peak=2e9)
        return dict.fromkeys(speed.PHASES, one)

    seen = [(Lengths([1, 1], [10, 20]), costs(seconds)) for seconds in (1.0, 5.0, 2.0)]
    record = speed.figures(seen, [dict.fromkeys(speed.PHASES, 0.5)] * 3)
    assert (record["update_s"], record["update_s_min"], record["update_s_max"]) == (2.0, 1.0, 5.0)
    assert (record["iteration_s"], record["response_tokens_per_s"]) == (6.0, 5.0)
    assert (record["fraction_of_ceiling"], record["peak_memory_gb"]) == (0.25, 2.0)


@pytest.mark.slow
@pytest.mark.parametrize("options", [("bench.profile=true",), ("bench.precision=bf16", "bench.adapter=lora")])
def test_the_last_line_is_json_with_every_figure(tmp_path, folder, options, capsys):
    cfg = of_folder(tmp_path, folder, *options)
    rows = json.loads((bench.run(cfg) / "bench.json").read_text())
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["size"] == "small" and record["precision"] == cfg.bench.precision.value
    for name in ("rollout_s", "score_s", "update_s", "iteration_s", "response_tokens_per_s", "peak_memory_gb"):
        assert record[name] > 0, name
    assert 0 < record["fraction_of_ceiling"] < 1 and 1 <= record["mean_response"] <= 5
    assert 0 < record["update_padding"] < 1
    trace = tmp_path / "run" / "trace.json.gz"
    assert trace.is_file() == cfg.bench.profile
    assert len(rows[0].get("operations", [])) == (10 if cfg.bench.profile else 0)
