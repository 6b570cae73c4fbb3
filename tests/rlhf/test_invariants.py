"""What must hold while PPO runs: each rule is broken for real here, and the run stops with the likely causes.

Those of the ratio and the KL before the first update are in test_ppo.py.
"""

import os
import socket

import pytest
import torch
from peft import LoraConfig
from torch import nn

from rlhf.engines.engine import TorchEngine
from rlhf.errors import NumericsError
from rlhf.models.trunk import PolicyView, Trunk
from rlhf.ppo.experience import Collector, PromptBatch
from rlhf.ppo.invariants import (
    FirstStep,
    FrozenWeights,
    check_equal_counts,
    check_same_weights,
    check_sampled_is_scored,
    checksums,
)
from rlhf.ppo.scores import Scored, ScoreShaping


def number_of_e(prompts, texts, records):
    return Scored(torch.tensor([float(text.count("e")) for text in texts]))


# ---- what was sampled is what is scored


class Decoder(nn.Module):
    """A policy that goes wrong where tokens are sampled, with its cache, and nowhere else."""

    def __init__(self, policy, mistake):
        super().__init__()
        self.policy, self.mistake, self.config, self.device = policy, mistake, policy.config, policy.device

    def forward(self, **inputs):
        if not inputs["use_cache"]:
            return self.policy(**inputs)
        if self.mistake == "padding":
            inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
        if self.mistake == "positions":
            inputs["position_ids"] = inputs["position_ids"] + (inputs["past_key_values"].get_seq_length() > 0)
        output = self.policy(**inputs)
        if self.mistake == "dtype":
            output.logits = output.logits.bfloat16()
        return output


@pytest.mark.parametrize("mistake", [None, "padding", "positions", "dtype"])
def test_a_decoder_that_draws_from_another_distribution_than_is_scored_stops_the_run(
    mistake, policy, ref_policy, prompts, prompt_ids, make_sampler
):
    batch = PromptBatch.of(0, prompts, prompt_ids)
    collect = Collector(make_sampler(0.8), ScoreShaping(False, None, 0.0), micro_batch_size=8)
    rollout = collect(Decoder(policy, mistake), ref_policy, number_of_e, batch)
    if mistake is None:
        check_sampled_is_scored(rollout, 1e-5)
        return
    with pytest.raises(NumericsError, match=r"were sampled differ by .* (positions or padding).* (another dtype)"):
        check_sampled_is_scored(rollout, 1e-3)


# ---- the first step


def run(ppo_log, learner, options, make_sampler, make_policy):
    return ppo_log(learner, make_policy(0), number_of_e, make_sampler(), options, range(1))


@pytest.mark.parametrize("name", ["policy", "critic"])
def test_an_optimizer_that_has_other_weights_than_the_model_stops_the_run(
    name, ppo_log, make_learner, make_options, make_sampler, make_policy, make_scalar
):
    options = make_options()
    learner = make_learner(options)
    engine = {"policy": learner.policy, "critic": learner.critic.engine}[name]
    engine.module = {"policy": make_policy(0), "critic": make_scalar(1)}[name]
    with pytest.raises(NumericsError, match=f"the first gradient of the {name} is 0, .* not those that the optimizer"):
        run(ppo_log, learner, options, make_sampler, make_policy)


def test_equal_rewards_give_no_gradient_and_that_is_no_fault(
    ppo_log, make_learner, make_options, make_sampler, make_policy
):
    """A critic that is right about equal scores leaves nothing to learn."""
    options = make_options(kl_coef=0.0, gamma=1.0, lam=1.0)
    learner = make_learner(options)
    nn.init.zeros_(learner.critic.engine.module.model.score.weight)

    def nothing(prompts, texts, records):
        return Scored(torch.zeros(len(texts)))

    (metrics,) = ppo_log(learner, make_policy(0), nothing, make_sampler(), options, range(1))
    assert metrics["policy/grad_norm"] == metrics["critic/grad_norm"] == 0


def one_weight(dtype=torch.float32, learning_rate=0.1):
    module = nn.Linear(1, 1, bias=False, dtype=dtype)
    nn.init.ones_(module.weight)
    return TorchEngine("policy", module, learning_rate, adam_eps=1e-5, max_grad_norm=1.0)


def with_gradient(engine, value):
    engine.backward(engine(torch.full((1,), value, dtype=engine.module.weight.dtype)).sum())
    return engine


def test_steps_without_a_signal_are_not_watched_and_the_next_one_with_a_signal_is():
    step, engine = FirstStep(), one_weight()
    assert step(with_gradient(engine, 0.0), has_signal=False) == 0
    with pytest.raises(NumericsError, match="the first gradient of the policy is 0"):
        step(with_gradient(engine, 0.0), has_signal=True)


def test_later_steps_are_not_watched():
    step, engine = FirstStep(), one_weight()
    step(with_gradient(engine, 1.0), has_signal=True)
    assert step(with_gradient(engine, 0.0), has_signal=True) == 0


def test_a_step_that_rounds_away_stops_the_run():
    engine = with_gradient(one_weight(torch.bfloat16, learning_rate=1e-4), 1.0)  # the next number is 2^-8 below 1
    with pytest.raises(NumericsError, match=r"learning rate 1.0e-04\) changed no weight. .* rounds it away"):
        FirstStep()(engine, has_signal=True)
    large = with_gradient(one_weight(torch.bfloat16, learning_rate=1e-2), 1.0)
    assert FirstStep()(large, has_signal=True) == 1


# ---- every micro-batch


class Forgetful(TorchEngine):
    """Keeps the gradient of the last micro-batch alone, as DeepSpeed does where it is not told better."""

    def backward(self, loss, is_last=True):
        if is_last:
            super().backward(loss)


@pytest.mark.parametrize("name", ["policy", "critic"])
def test_a_micro_batch_that_gives_no_gradient_stops_the_run(
    name, ppo_log, make_learner, make_options, make_sampler, make_policy
):
    options = make_options(minibatch_size=8, micro_batch_size=2)
    learner = make_learner(options)
    holder, part = {"policy": (learner, "policy"), "critic": (learner.critic, "engine")}[name]
    module = getattr(holder, part).module
    setattr(holder, part, Forgetful(name, module, 1e-3, adam_eps=1e-5, max_grad_norm=1.0))
    message = rf"the {name} came from (\d+) tokens in 1 backward passes, .* has \1 tokens in 4 micro-batches"
    with pytest.raises(NumericsError, match=message):
        run(ppo_log, learner, options, make_sampler, make_policy)


# ---- frozen weights


def test_a_reference_that_is_the_policy_itself_stops_the_run(
    ppo_log, make_learner, make_options, make_sampler, make_policy
):
    options = make_options()
    learner, ref_policy = make_learner(options), make_policy(0)
    right = FrozenWeights(learner.engines, ref_policy)
    wrong = FrozenWeights(learner.engines, learner.policy.module)
    for frozen in (right, wrong):
        frozen.check()
    run(ppo_log, learner, options, make_sampler, make_policy)
    right.check()
    with pytest.raises(NumericsError, match=r"21 of 21 frozen weights .* a reference that shares its weights"):
        wrong.check()


@pytest.mark.parametrize("is_given_too_much", [False, True])
def test_an_optimizer_that_moves_the_base_under_an_adapter_stops_the_run(make_policy, make_engine, is_given_too_much):
    trunk = Trunk(make_policy(0))
    trunk.add("policy", LoraConfig(r=2, target_modules="all-linear"), trains=True)
    engine, critic = make_engine("policy", PolicyView(trunk, "policy")), make_engine("critic", nn.Linear(1, 1))
    frozen = FrozenWeights([engine, critic], PolicyView(trunk, None))
    if is_given_too_much:
        norm = trunk.model.base_model.norm.weight.requires_grad_(True)
        engine.optimizer.add_param_group({"params": [norm]})
    ids = torch.arange(3, 9).unsqueeze(0)
    engine.backward(engine(input_ids=ids).logits.square().sum())
    engine.step()
    if not is_given_too_much:
        frozen.check()
        return
    with pytest.raises(NumericsError, match=r"1 of \d+ frozen weights .*an optimizer that was given too much"):
        frozen.check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_a_checksum_sees_one_bit_in_any_precision(dtype):
    weight = torch.arange(100).to(dtype)
    before = checksums([weight, weight])
    weight.view(torch.uint8)[7] ^= 1
    assert before[0] == before[1] != checksums([weight])[0]


# ---- ranks


def on_one_of_two_ranks(rank, port, folder):
    """Each rule broken by rank 1 alone, on two gloo ranks; writes what this rank is told."""
    meeting = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in meeting.items()}, GLOO_SOCKET_IFNAME="lo")
    torch.distributed.init_process_group("gloo")
    policy, critic, reference = one_weight(), one_weight(), nn.Linear(1, 1)
    frozen = FrozenWeights([policy, critic], reference)
    checks = (lambda: check_equal_counts({"forwards": 3 + rank}), lambda: check_same_weights(policy), frozen.check)
    told = ["" if fails(check) is None else "too early" for check in checks[1:]]
    if rank == 1:
        policy.module.weight.data += 1
        reference.weight.data += 1
    told += [str(fails(check)) for check in checks]
    (folder / f"{rank}.txt").write_text("\n".join(told))
    torch.distributed.destroy_process_group()


def fails(check):
    """The error that the check raises, or None."""
    try:
        check()
    except NumericsError as error:
        return error
    return None


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What each of two ranks is told, line by line."""
    folder = tmp_path_factory.mktemp("told")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(on_one_of_two_ranks, (port, folder), nprocs=2)
    return [(folder / f"{rank}.txt").read_text().split("\n") for rank in (0, 1)]


@pytest.mark.slow
def test_ranks_that_agree_are_told_nothing(told):
    assert told[0][:2] == told[1][:2] == ["", ""]


@pytest.mark.slow
@pytest.mark.parametrize(
    "line, message",
    [
        (2, "the ranks made unequal numbers of forwards: [3, 4] by rank. Likely causes"),
        (3, "rank 1 holds other weights of the policy than rank 0 (first: weight). Likely causes"),
        (4, "1 of 2 frozen weights"),
    ],
)
def test_what_goes_wrong_on_one_rank_is_told_to_all(told, line, message):
    assert message in told[0][line]
    assert told[0][line] == told[1][line]


def test_a_single_process_agrees_with_itself():
    check_equal_counts({"forwards": 3})
    check_same_weights(one_weight())
