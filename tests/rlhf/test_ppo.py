"""The PPO update: on-policy at the start, the right gradient, the right number of steps, every option acting."""

import math
from dataclasses import replace

import pytest
import torch

from rlhf.advantages import kl_penalised_rewards
from rlhf.checkpoints.learner import LearnerCheckpoints
from rlhf.config.schema import KlControl
from rlhf.engines.engine import TorchEngine
from rlhf.errors import NumericsError
from rlhf.models.policies import enable_gradient_checkpointing, response_logprobs, set_dropout
from rlhf.models.scalars import response_values
from rlhf.ops import whiten
from rlhf.ppo.critic import Critic
from rlhf.ppo.estimates import gae_of
from rlhf.ppo.experience import Collector, PromptBatch, Sequences, join
from rlhf.ppo.invariants import check_on_policy, check_starts_at_reference
from rlhf.ppo.learner import Learner
from rlhf.ppo.ptx import PtxMix
from rlhf.ppo.scores import Scored, ScoreShaping
from rlhf.ppo.update import Ppo
from rlhf.rollout.responses import Responses
from rlhf.text.batches import pad_right

TEMPERATURE = 0.8


class RecordingEngine(TorchEngine):
    """An engine that keeps the gradient, the learning rate and the sequences of each of its steps."""

    def __init__(self, name, module, learning_rate=3e-3, max_grad_norm=1e9):
        super().__init__(name, module, learning_rate, adam_eps=1e-5, max_grad_norm=max_grad_norm)
        self.gradients, self.learning_rates, self.sequences, self.forwarded = [], [], [], []

    def __call__(self, *args, **kwargs):
        ids, mask = args or (kwargs["input_ids"], kwargs["attention_mask"])
        self.forwarded += [tuple(row[real.bool()].tolist()) for row, real in zip(ids, mask, strict=True)]
        return super().__call__(*args, **kwargs)

    def step(self):
        self.gradients.append(torch.cat([p.grad.flatten() for p in self.parameters.values()]))
        self.learning_rates.append(self.learning_rate)
        self.sequences.append(self.forwarded)
        self.forwarded = []
        return super().step()


def number_of_e(prompts, texts, records):
    return Scored(torch.tensor([float(text.count("e")) for text in texts]))


@pytest.fixture
def collect(prompts, prompt_ids, make_sampler):
    """collect(policy, ref_policy) -> a rollout of eight responses of different lengths."""
    batch = PromptBatch.of(0, prompts, prompt_ids)
    sampler = make_sampler(TEMPERATURE, max_tokens=9, stop_ids=[1, *range(60, 90)])
    collector = Collector(sampler, ScoreShaping(False, None, 0.0), micro_batch_size=3)
    return lambda policy, ref_policy: collector(policy, ref_policy, number_of_e, batch)


@pytest.fixture
def experience(collect, policy, critic, ref_policy, make_engine, make_options):
    """A rollout with its advantages and the critic's lesson."""
    rollout = collect(policy, ref_policy)
    rewards = kl_penalised_rewards(rollout.scores, rollout.logprobs, rollout.ref_logprobs, rollout.mask, 0.05)
    options = make_options(gamma=1.0, lam=0.95)
    advantages, lesson = gae_of(Critic(make_engine("critic", critic), options), options)(rollout, rewards)
    return rollout, whiten(advantages, rollout.mask), lesson


@pytest.fixture
def update(experience, make_options, make_policy, make_scalar):
    """update(step=0, **options) -> (policy engine, critic engine, metrics) after one update of fresh models."""

    def run(step=0, experience=experience, engines=None, temperature=TEMPERATURE, ptx=None, **options):
        options = make_options(**options)
        policy, critic = engines or (
            RecordingEngine("policy", make_policy(0), options.learning_rate, options.max_grad_norm),
            RecordingEngine("critic", make_scalar(1), options.critic_learning_rate, options.max_grad_norm),
        )
        ppo = Ppo(options, temperature, seed=0, tolerance=1e-4, ptx=ptx)
        learner = Learner.fresh(options, policy, Critic(critic, options))
        metrics = ppo.update(learner, *experience, step)
        return policy, critic, metrics

    return run


def whole_batch(**changes):
    return {"minibatch_size": 8, "micro_batch_size": 8, "num_epochs": 1, "max_grad_norm": 1e9, **changes}


def bare_sequences(rollout):
    """(ids [1, T], mask, number of response tokens, columns of the response) of each response, without any padding."""
    s = rollout.sequences
    for i, size in enumerate(rollout.lengths.tolist()):
        ids = s.ids[i][s.attention_mask[i]].unsqueeze(0)
        yield i, ids, torch.ones_like(ids).bool(), size


# ---- before the first update


def test_a_policy_that_does_not_start_from_its_reference_is_refused(collect, policy, ref_policy):
    with pytest.raises(NumericsError, match=r"differ by .* from the reference's .* two different checkpoints"):
        check_starts_at_reference(collect(policy, ref_policy), 1e-5)


def test_ratio_is_one_before_the_first_update(update, experience):
    _, _, metrics = update(**whole_batch())
    assert metrics["val/ratio"] == pytest.approx(1, abs=1e-5)
    assert metrics["val/ratio_max"] == pytest.approx(1, abs=1e-5)
    assert metrics["policy/clipfrac_avg"] == 0
    assert metrics["val/clipfrac_avg"] == 0
    assert metrics["policy/approxkl_avg"] == pytest.approx(0, abs=1e-9)
    rollout, advantages, lesson = experience
    assert metrics["loss/policy_avg"] == pytest.approx(-advantages[rollout.mask].mean().item(), abs=1e-6)
    error = (lesson.old_values - lesson.returns)[rollout.mask]
    assert metrics["loss/value_avg"] == pytest.approx(0.5 * (error**2).mean().item(), rel=1e-5)
    assert metrics["policy/entropy_avg"] == pytest.approx(rollout.entropies[rollout.mask].mean().item(), rel=1e-5)


def test_kl_is_zero_before_the_first_update(collect, policy, make_policy):
    rollout = collect(policy, make_policy(0))
    assert rollout.kl.abs().max().item() == pytest.approx(0, abs=1e-5)
    check_starts_at_reference(rollout, 1e-5)


def with_dropout(engine, rollout):
    set_dropout(engine.module, 0.1)
    return rollout


def with_a_shift_by_one_token(engine, rollout):
    return replace(rollout, logprobs=torch.where(rollout.mask, rollout.logprobs.roll(1, dims=1), 0))


def with_another_dtype(engine, rollout):
    engine.module.to(torch.bfloat16)
    return rollout


@pytest.mark.parametrize("mistake", [with_dropout, with_a_shift_by_one_token, with_another_dtype])
def test_a_ratio_that_is_not_one_stops_the_run_before_a_weight_changes(
    update, experience, make_scalar, policy, mistake
):
    engines = RecordingEngine("policy", policy), RecordingEngine("critic", make_scalar(1))
    rollout, advantages, lesson = experience
    wrong = mistake(engines[0], rollout), advantages, lesson
    before = [p.clone() for p in policy.parameters()]
    with pytest.raises(NumericsError) as error:
        update(experience=wrong, engines=engines)
    for cause in ("dropout that is not 0", "another temperature", "another dtype", "a shift by one token"):
        assert cause in str(error.value)
    assert all(torch.equal(p, old) for p, old in zip(policy.parameters(), before, strict=True))


def test_another_temperature_than_that_of_sampling_stops_the_run(update):
    with pytest.raises(NumericsError, match="another temperature"):
        update(temperature=TEMPERATURE * 1.05)


def test_what_is_said_of_padding_is_no_difference_from_the_rollout(update, experience):
    rollout, advantages, lesson = experience
    assert not rollout.mask.all()
    beside = replace(rollout, logprobs=torch.where(rollout.mask, rollout.logprobs, -9.0))
    assert update(experience=(beside, advantages, lesson))[2]["val/ratio"] == pytest.approx(update()[2]["val/ratio"])


def test_a_policy_that_says_nan_is_seen_before_its_gradient_is_applied(update, experience, policy, make_scalar):
    """A comparison that NaN passes would let it through."""
    engines = RecordingEngine("policy", policy), RecordingEngine("critic", make_scalar(1))
    torch.nn.init.constant_(policy.base_model.norm.weight, math.nan)
    with pytest.raises(NumericsError, match="differ by nan nats per token from those of the rollout"):
        update(engines=engines)
    assert not engines[0].gradients


@pytest.mark.parametrize("difference", [2e-4, math.inf, math.nan])
def test_a_difference_above_rounding_or_no_number_is_refused(difference):
    check_on_policy(1e-4, 1e-4)
    with pytest.raises(NumericsError, match=f"differ by {difference:.2e} nats per token from those"):
        check_on_policy(difference, 1e-4)


# ---- the gradient


@pytest.mark.parametrize("micro_batch_size", [1, 2, 8])
@pytest.mark.parametrize("entropy_coef", [0.0, 0.5])
def test_the_policys_gradient_is_that_of_one_batch_whatever_the_micro_batch(
    update, experience, make_policy, micro_batch_size, entropy_coef
):
    """At ratio 1 the gradient is -sum(A * grad logprob) / tokens, here from one bare sequence at a time."""
    rollout, advantages, _ = experience
    policy = make_policy(0)
    for i, ids, mask, size in bare_sequences(rollout):
        logprobs, entropies = response_logprobs(policy, ids, mask, size, TEMPERATURE, entropy_gradient=True)
        objective = (advantages[i, :size] * logprobs[0]).sum() + entropy_coef * entropies.sum()
        (-objective / rollout.mask.sum()).backward()
    expected = torch.cat([p.grad.flatten() for p in policy.parameters()])
    options = whole_batch(micro_batch_size=micro_batch_size, entropy_coef=entropy_coef)
    found = update(**options)[0].gradients[0]
    assert (found - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("micro_batch_size", [1, 2, 8])
def test_the_critics_gradient_is_that_of_one_batch_whatever_the_micro_batch(
    update, experience, make_scalar, micro_batch_size
):
    """At V = V_old it is value_coef * sum((V - R) * grad V) / tokens."""
    rollout, _, lesson = experience
    critic = make_scalar(1)
    for i, ids, mask, size in bare_sequences(rollout):
        error = response_values(critic, ids, mask, size)[0] - lesson.returns[i, :size]
        (0.3 * 0.5 * (error**2).sum() / rollout.mask.sum()).backward()
    expected = torch.cat([p.grad.flatten() for p in critic.parameters()])
    found = update(**whole_batch(micro_batch_size=micro_batch_size, value_coef=0.3))[1].gradients[0]
    assert (found - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.slow
@pytest.mark.parametrize("pad_id", [0, 1])
def test_extra_padding_changes_no_gradient_even_when_eos_is_the_pad_token(update, experience, pad_id):
    rollout, advantages, lesson = experience
    s = rollout.sequences
    wide = Sequences(
        torch.nn.functional.pad(torch.where(s.attention_mask, s.ids, pad_id), (7, 7), value=pad_id),
        torch.nn.functional.pad(s.attention_mask, (7, 7)),
        torch.nn.functional.pad(s.mask, (0, 7)),
    )

    def wider(part, *tokens):
        padded = {name: torch.nn.functional.pad(getattr(part, name), (0, 7)) for name in tokens}
        return replace(part, sequences=wide, **padded)

    padded = (
        wider(rollout, "logprobs", "sampled_logprobs", "ref_logprobs", "entropies"),
        torch.nn.functional.pad(advantages, (0, 7)),
        wider(lesson, "old_values", "returns"),
    )
    for found, expected in zip(update(experience=padded)[:2], update()[:2], strict=True):
        for x, y in zip(found.gradients, expected.gradients, strict=True):
            assert (x - y).norm() <= 1e-3 * y.norm()


def test_the_reported_gradient_norms_are_those_before_clipping(update):
    free = update(**whole_batch())
    clipped = update(**whole_batch(max_grad_norm=1e-3))
    for place, name in enumerate(("policy/grad_norm", "critic/grad_norm")):
        norm = free[place].gradients[0].norm().item()
        assert norm > 0.01
        assert free[2][name] == pytest.approx(norm, rel=1e-5)
        assert clipped[2][name] == pytest.approx(norm, rel=1e-5)


# ---- the number of steps


@pytest.mark.slow
@pytest.mark.parametrize("num_epochs, minibatch_size", [(1, 8), (3, 4), (2, 2)])
def test_optimizer_steps_are_epochs_times_minibatches_exactly(update, num_epochs, minibatch_size):
    policy, critic, metrics = update(num_epochs=num_epochs, minibatch_size=minibatch_size, micro_batch_size=1)
    count = num_epochs * 8 // minibatch_size
    assert len(policy.gradients) == len(critic.gradients) == metrics["val/num_updates"] == count
    for engine in (policy, critic):
        assert {int(state["step"]) for state in engine.optimizer.state.values()} == {count}


@pytest.mark.slow
def test_every_epoch_sees_every_response_once_in_a_fresh_order(update, experience):
    everything = sorted(tuple(ids[0].tolist()) for _, ids, _, _ in bare_sequences(experience[0]))
    policy, critic, _ = update(num_epochs=3)
    assert policy.sequences == critic.sequences
    assert [len(seen) for seen in policy.sequences] == [4] * 6
    epochs = [policy.sequences[i] + policy.sequences[i + 1] for i in (0, 2, 4)]
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert update(step=1, num_epochs=1)[0].sequences != policy.sequences[:2]


@pytest.mark.slow
def test_metrics_are_means_over_minibatches_whatever_their_number(update):
    """With a learning rate of nearly nothing each pass finds what the first one found."""
    still = {"learning_rate": 1e-9, "critic_learning_rate": 1e-9}
    once, thrice = (update(**whole_batch(num_epochs=n, **still))[2] for n in (1, 3))
    for name in once.keys() - {"val/num_updates", "time/update"}:
        assert thrice[name] == pytest.approx(once[name], rel=1e-4, abs=1e-6), name
    for minibatch_size in (2, 4):
        metrics = update(num_epochs=2, minibatch_size=minibatch_size, **still)[2]
        assert metrics["val/ratio"] == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_the_greatest_ratio_is_that_of_all_minibatches(update):
    one_epoch, two_epochs = (update(num_epochs=n, learning_rate=0.03)[2] for n in (1, 2))
    assert two_epochs["val/ratio_max"] > one_epoch["val/ratio_max"] > 1.01


@pytest.mark.slow
def test_the_learning_rate_falls_linearly_over_the_steps(update):
    for step, share in ((0, 1.0), (5, 0.5), (9, 0.1)):
        policy, critic, metrics = update(step=step, learning_rate=0.01, critic_learning_rate=0.02)
        assert policy.learning_rates == pytest.approx([0.01 * share] * 4)
        assert critic.learning_rates == pytest.approx([0.02 * share] * 4)
        assert metrics["lr"] == pytest.approx(0.01 * share)


@pytest.mark.slow
def test_epochs_stop_early_when_the_policy_went_too_far(update):
    """The first minibatch is on-policy; the second one finds what the first step has moved."""
    moves = {"learning_rate": 0.03, "num_epochs": 4}
    assert update(target_kl=1e-3, **moves)[2]["val/num_updates"] == 2
    assert update(target_kl=1e3, **moves)[2]["val/num_updates"] == 8
    assert update(target_kl=None, **moves)[2]["val/num_updates"] == 8


def test_critic_warm_up_leaves_the_policy_as_it_was(update, make_policy, make_scalar):
    policy, critic, metrics = update(step=1, critic_warmup_steps=2)
    assert not policy.gradients and len(critic.gradients) == 4
    assert all(torch.equal(p, q) for p, q in zip(policy.parameters.values(), make_policy(0).parameters(), strict=True))
    assert not all(
        torch.equal(p, q) for p, q in zip(critic.parameters.values(), make_scalar(1).parameters(), strict=True)
    )
    assert "loss/policy_avg" not in metrics and metrics["loss/value_avg"] > 0
    assert update(step=2, critic_warmup_steps=2)[0].gradients


# ---- options


@pytest.mark.slow
@pytest.mark.parametrize(
    "option",
    [
        {"clip_range": 0.01},
        {"clip_range_high": 0.9},
        {"dual_clip": 1.01},
        {"value_clip_range": 0.01},
        {"value_coef": 0.5},
        {"entropy_coef": 0.1},
        {"learning_rate": 0.01},
        {"critic_learning_rate": 0.01},
        {"num_epochs": 2},
        {"minibatch_size": 2},
        {"target_kl": 1e-4},
        {"max_grad_norm": 0.01},
        {"num_steps": 4},
        {"critic_warmup_steps": 3},
    ],
    ids=str,
)
def test_every_option_of_the_update_acts(update, option):
    base = {"learning_rate": 0.02, "critic_learning_rate": 0.03, "num_epochs": 3, "max_grad_norm": 1.0}
    plain, changed = (update(step=2, **options)[:2] for options in (base, {**base, **option}))
    same = [
        torch.equal(p, q)
        for engine, other in zip(plain, changed, strict=True)
        for p, q in zip(engine.parameters.values(), other.parameters.values(), strict=True)
    ]
    assert not all(same)


def test_the_entropy_bonus_raises_the_entropy(update, experience):
    rollout, advantages, lesson = experience
    no_advantage = rollout, torch.zeros_like(advantages), lesson
    policy, _, _ = update(experience=no_advantage, entropy_coef=1.0, learning_rate=0.01)
    ids, mask = rollout.sequences.ids, rollout.sequences.attention_mask
    entropies = response_logprobs(policy.module, ids, mask, rollout.mask.shape[1], TEMPERATURE)[1]
    assert entropies[rollout.mask].mean() > rollout.entropies[rollout.mask].mean() + 0.01


DEMONSTRATIONS = [
    {"input_ids": [3, 40 + i, 4, *range(60, 60 + i), 1], "labels": [-100] * 3 + [*range(60, 60 + i), 1]}
    for i in range(1, 7)
]


def mixed_in(coef=2.0, micro_batch_size=2):
    return PtxMix(DEMONSTRATIONS, coef, batch_size=3, micro_batch_size=micro_batch_size, seed=0, pad_id=0)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 8])
def test_the_ptx_mix_adds_its_gradient_to_that_of_ppo(update, make_policy, micro_batch_size):
    """Of the demonstrations of optimizer step 5, at temperature 1, one bare sequence at a time."""
    policy, minibatch = make_policy(0), mixed_in().minibatch(5)
    losses = [-policy(torch.tensor([e["input_ids"]])).logits[0].log_softmax(-1) for e in minibatch]
    learned = [
        loss[t - 1, i] for e, loss in zip(minibatch, losses, strict=True) for t, i in enumerate(e["labels"]) if i >= 0
    ]
    loss = sum(learned) / len(learned)
    (2.0 * loss).backward()
    options = whole_batch(micro_batch_size=micro_batch_size)
    alone = update(step=5, **options)[0].gradients[0]
    engine, _, metrics = update(step=5, ptx=mixed_in(2.0, micro_batch_size), **options)
    expected = torch.cat([p.grad.flatten() for p in policy.parameters()])
    assert (engine.gradients[0] - alone - expected).norm() <= 1e-4 * expected.norm()
    assert metrics["loss/ptx_avg"] == pytest.approx(loss.item(), rel=1e-5)


def test_the_ptx_mix_takes_other_demonstrations_at_each_optimizer_step(update):
    seen = update(step=1, ptx=mixed_in(), num_epochs=2, minibatch_size=4)[0].sequences  # optimizer steps 4 to 7
    whole = [tuple(e["input_ids"]) for number in range(4, 8) for e in mixed_in().minibatch(number)]
    assert [row for step in seen for row in step[:3]] == whole
    assert len(set(whole)) == len(DEMONSTRATIONS)


@pytest.mark.slow
def test_the_ptx_mix_makes_demonstrations_likelier(update):
    hardly, much = (update(ptx=mixed_in(coef), num_epochs=4)[2]["loss/ptx_avg"] for coef in (1e-9, 10.0))
    assert much < hardly - 0.1


def test_an_update_makes_good_tokens_likelier_and_bad_ones_rarer(update, experience):
    rollout, advantages, _ = experience
    policy, _, _ = update(**whole_batch(learning_rate=1e-4))
    ids, mask = rollout.sequences.ids, rollout.sequences.attention_mask
    logprobs, _ = response_logprobs(policy.module, ids, mask, rollout.mask.shape[1], TEMPERATURE)
    assert ((logprobs - rollout.logprobs) * advantages)[rollout.mask].sum() > 0


def test_an_update_brings_values_nearer_to_returns(update, experience):
    rollout, _, lesson = experience
    _, critic, _ = update(critic_learning_rate=1e-3)
    s = rollout.sequences
    values = response_values(critic.module, s.ids, s.attention_mask, rollout.mask.shape[1])
    before, after = (((v - lesson.returns)[rollout.mask] ** 2).mean() for v in (lesson.old_values, values))
    assert after < before


def test_gradient_checkpointing_acts_in_the_update_and_changes_no_number(update, make_policy, make_scalar):
    """Each layer runs once more in each backward pass; then the models are in evaluation mode again, for rollouts."""
    gradients, num_forwards = [], []
    for checkpointing in (False, True):
        policy, critic, forwards = make_policy(0), make_scalar(1), []
        for network in (policy, critic.model):
            norm = network.base_model.layers[0].input_layernorm
            norm.register_forward_pre_hook(lambda module, inputs, forwards=forwards: forwards.append(1))
            if checkpointing:
                enable_gradient_checkpointing(network)
        engines = RecordingEngine("policy", policy), RecordingEngine("critic", critic)
        update(engines=engines, **whole_batch())
        assert not policy.training and not critic.training
        gradients.append([engine.gradients[0] for engine in engines])
        num_forwards.append(len(forwards))
    assert num_forwards == [2, 4]
    for x, y in zip(*gradients, strict=True):
        assert (x - y).norm() <= 1e-4 * y.norm()


# ---- the engine


def one_weight(value=1.0, **options):
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(module.weight, value)
    return TorchEngine("policy", module, **{"learning_rate": 0.1, "adam_eps": 1e-5, "max_grad_norm": 1e9, **options})


def weight(engine):
    return engine.module.weight.item()


def test_the_first_step_of_adam_by_hand():
    """Both moments are corrected to g and g^2: the step is lr * g / (|g| + eps), with no decay of the weight."""
    engine = one_weight(adam_eps=1e-3)
    engine.backward(engine(torch.tensor([1e-3])).sum())  # a gradient as small as eps
    assert engine.step() == pytest.approx(1e-3)
    assert weight(engine) == pytest.approx(1 - 0.1 / 2, rel=1e-5)


def test_no_gradient_moves_no_weight():
    engine = one_weight(5.0)
    engine.backward(engine(torch.tensor([0.0])).sum())
    engine.step()
    assert weight(engine) == 5.0


def test_gradients_of_micro_batches_add_up_and_are_forgotten_after_the_step():
    engine = one_weight()
    for part in (1.0, 2.0):
        engine.backward(engine(torch.tensor([part])).sum())
    assert engine.module.weight.grad.item() == 3.0
    engine.step()
    engine.backward(engine(torch.tensor([4.0])).sum())
    assert engine.module.weight.grad.item() == 4.0


def test_gradients_are_clipped_to_the_greatest_norm():
    """With a huge eps a step is lr * g / eps: the gradient can be read from it."""
    engine = one_weight(max_grad_norm=2.0, adam_eps=1e6, learning_rate=1e5)
    engine.backward(engine(torch.tensor([50.0])).sum())
    assert engine.step() == 50.0
    assert weight(engine) == pytest.approx(1 - 1e5 * 2.0 / 1e6, rel=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_stops_the_run_and_leaves_the_weights(bad):
    engine = one_weight()
    engine.backward(engine(torch.tensor([bad])).sum())
    with pytest.raises(
        NumericsError, match="the gradient of the policy is not finite; its weights were left as they were"
    ):
        engine.step()
    assert weight(engine) == 1.0 and not engine.optimizer.state


@pytest.mark.parametrize("name", ["policy", "critic"])
def test_a_nan_in_the_advantages_or_returns_stops_the_update_and_leaves_the_weights(
    update, experience, policy, critic, name
):
    rollout, advantages, lesson = experience
    poisoned = {"policy": advantages, "critic": lesson.returns}
    poisoned[name] = poisoned[name].clone()
    poisoned[name][0, 0] = math.nan
    wrong = rollout, poisoned["policy"], replace(lesson, returns=poisoned["critic"])
    engines = RecordingEngine("policy", policy), RecordingEngine("critic", critic)
    module = {"policy": policy, "critic": critic}[name]
    before = [p.clone() for p in module.parameters()]
    with pytest.raises(NumericsError, match=f"the gradient of the {name} is not finite"):
        update(experience=wrong, engines=engines, **whole_batch())
    assert all(torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True))


# ---- the whole loop


def test_returns_are_those_of_advantages_before_they_are_whitened(
    ppo_log, make_learner, make_options, make_sampler, make_policy
):
    def first_step(whiten):
        options = make_options(whiten_advantages=whiten)
        return ppo_log(make_learner(options), make_policy(0), number_of_e, make_sampler(), options, range(1))[0]

    plain, whitened = first_step(False), first_step(True)
    assert whitened["val/explained_var"] == plain["val/explained_var"]
    assert whitened["loss/value_avg"] == plain["loss/value_avg"]
    assert whitened["loss/policy_avg"] != plain["loss/policy_avg"]


@pytest.mark.slow
def test_resumed_run_equals_uninterrupted_run(ppo_log, make_learner, make_options, make_sampler, make_policy, tmp_path):
    options = make_options(
        num_steps=4, kl_control=KlControl.adaptive, kl_horizon=20, running_score_norm=True, critic_warmup_steps=1
    )
    sampler, ref_policy = make_sampler(TEMPERATURE), make_policy(0)

    def run(learner, steps):
        log = ppo_log(learner, ref_policy, number_of_e, sampler, options, steps)
        return [{k: v for k, v in m.items() if not k.startswith(("time/", "throughput/")) and k != "eps"} for m in log]

    whole = make_learner(options)
    expected = run(whole, range(4))
    stopped, resumed = make_learner(options), make_learner(options, seed=20)
    checkpoints = LearnerCheckpoints(tmp_path, keep=1)
    found = run(stopped, range(2))
    stopped.save(checkpoints, 2)
    first_step = resumed.restore(checkpoints, print)
    assert first_step == 2
    assert found + run(resumed, range(first_step, 4)) == expected
    for one, other in zip(whole.engines, resumed.engines, strict=True):
        end, same = one.tensors(), other.tensors()
        assert end.keys() == same.keys() and all(torch.equal(end[key], same[key]) for key in end), one.name
    assert resumed.kl.coef == whole.kl.coef != options.kl_coef


@pytest.fixture(scope="module")
def talker(make_policy, prompt_ids, tokenizer):
    """A policy that answers every prompt with yes, no, maybe or thanks, about equally often."""
    policy = make_policy(0)
    answers = [[*tokenizer(word).input_ids, tokenizer.eos_token_id] for word in ("yes", "no", "maybe", "thanks")]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=5e-3)
    for step in range(120):
        said = [answers[(step + i) % 4] for i in range(len(prompt_ids))]
        ids, mask = pad_right(said, tokenizer.pad_token_id)
        pairs = join(prompt_ids, Responses(ids, mask, mask.any(-1), torch.zeros(ids.shape)), tokenizer.pad_token_id)
        logprobs, _ = response_logprobs(policy, pairs.ids, pairs.attention_mask, ids.shape[1])
        optimizer.zero_grad()
        (-logprobs[mask].sum() / len(said)).backward()
        optimizer.step()
    return policy


def trained(talker, kl_coef, ppo_log, make_learner, make_options, make_sampler, make_policy):
    """The metrics of each step of a PPO run that starts from the talker and rewards the word yes."""
    options = make_options(
        num_steps=15, batch_size=32, minibatch_size=16, micro_batch_size=16, learning_rate=2e-3, kl_coef=kl_coef
    )
    learner, ref_policy = make_learner(options), make_policy(0)
    for model in (learner.policy.module, ref_policy):
        model.load_state_dict(talker.state_dict())
    torch.nn.init.zeros_(learner.critic.engine.module.model.score.weight)

    def says_yes(prompts, texts, records):
        return Scored(torch.tensor([float(text == "yes") for text in texts]))

    return ppo_log(learner, ref_policy, says_yes, make_sampler(max_tokens=6), options, range(options.num_steps))


@pytest.mark.slow
def test_policy_learns_to_say_the_rewarded_word(talker, ppo_log, make_learner, make_options, make_sampler, make_policy):
    log = trained(talker, 0.02, ppo_log, make_learner, make_options, make_sampler, make_policy)
    assert log[0]["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert log[0]["objective/scores"] < 0.5
    assert late(log, "objective/scores") > 0.9
    assert late(log, "objective/kl") == pytest.approx(math.log(4), abs=0.4)  # what had the probability 1/4 is now sure
    assert late(log, "loss/value_avg") < log[0]["loss/value_avg"]


def late(log, name):
    """The mean over the last five steps."""
    return sum(metrics[name] for metrics in log[-5:]) / 5


@pytest.mark.slow
def test_a_dear_kl_keeps_the_policy_near_its_reference(
    talker, ppo_log, make_learner, make_options, make_sampler, make_policy
):
    cheap, dear = (
        trained(talker, coef, ppo_log, make_learner, make_options, make_sampler, make_policy) for coef in (0.0, 5.0)
    )
    assert late(dear, "objective/kl") < 0.4 < 0.8 < late(cheap, "objective/kl")
    assert late(dear, "objective/scores") < 0.6 < late(cheap, "objective/scores")
