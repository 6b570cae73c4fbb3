"""The phases of each stage, with all that is in memory in them. The names are those of the code that does it."""

from collections.abc import Callable

from rlhf.preflight.dryrun import logprobs, scalars
from rlhf.preflight.memory import Item, Phase, Sizes, Trained

MICRO = "ppo.micro_batch_size"


def update_phases(trained: Trained, kept: list[Item], passed: Callable, repeats: bool, is_fused: bool) -> list[Phase]:
    """Forward and backward of one micro-batch, then the step. passed(keeps_gradients) gives what the pass adds."""
    gradients = [trained.gradients()] if repeats or trained.split.stage >= 1 else []
    items = [*kept, *gradients, *trained.bucket(), *passed(bool(gradients))]
    step = [*kept, trained.gradients(), *trained.step(is_fused)]
    return [Phase(f"{trained.role} forward, backward", tuple(items)), Phase(f"{trained.role} step", tuple(step))]


def sft_phases(sizes: Sizes) -> list[Phase]:
    """SFT: TRL's fused head makes no logits in training; the perplexity at the end makes them all."""
    options = sizes.cfg.sft
    rows = min(options.micro_batch_size, sizes.own(options.batch_size))
    trained, base = sizes.trained("policy"), sizes.base() if sizes.has_adapter else []
    kept = [*base, *trained.state()]

    def passed(keeps_gradients: bool) -> list[Item]:
        body = sizes.passed("policy", scalars(rows, sizes.length, True, keeps_gradients), "sft.micro_batch_size")
        return [*body, *sizes.head_tiles(rows)]

    repeats = options.batch_size > rows * sizes.split.ranks
    tried = logprobs(options.micro_batch_size, sizes.length, sizes.length - 1, trains=False)
    validation = sizes.passed("validation", tried, "sft.micro_batch_size")
    return [
        *update_phases(trained, kept, passed, repeats, is_fused=True),
        Phase("validation", (*kept, *validation)),
        Phase("saving", (*kept, sizes.frozen("saved policy", is_shared_out=False))),
    ]


def reward_phases(sizes: Sizes, num_answers: int) -> list[Phase]:
    """The reward stage. num_answers: of a prompt."""
    options, knob = sizes.cfg.reward, "reward.micro_batch_size"
    rows = min(options.micro_batch_size, sizes.own(options.batch_size))
    trained, base = sizes.trained("reward", is_scalar=True), sizes.base() if sizes.has_adapter else []
    kept = [*base, *trained.state()]

    def passed(keeps_gradients: bool) -> list[Item]:
        return sizes.passed("reward", scalars(rows * num_answers, sizes.length, True, keeps_gradients), knob)

    validation = sizes.passed("reward", scalars(rows * num_answers, sizes.length, False), knob)
    sampled = min(sizes.cfg.rollout.batch_size, options.norm_samples)
    own = [*base, Item("reward weights", trained.count * trained.width)]
    return [
        *update_phases(trained, kept, passed, options.batch_size > rows * sizes.split.ranks, is_fused=True),
        Phase("validation", (*kept, *validation)),
        Phase("scores of SFT samples", (*own, sizes.frozen("SFT policy", False, False), *sizes.sampling(sampled))),
    ]


def ppo_phases(sizes: Sizes, reward_models: list[bool]) -> list[Phase]:
    """PPO. reward_models: of each reward that is a model, whether it is an adapter on the policy's base."""
    options, base = sizes.cfg.ppo, sizes.base() if sizes.has_adapter else []
    policy, critic = (sizes.trained(role, role == "critic") for role in ("policy", "critic"))
    models = [sizes.frozen("reference")]
    models += [sizes.frozen("reward", True) if is_shared else _whole_reward(sizes) for is_shared in reward_models]
    copies = _copies(policy, options.ema_decay is not None)
    kept = [*base, *policy.state(), *critic.state(), *models, *copies]
    micro = min(options.micro_batch_size, sizes.own(options.minibatch_size))
    repeats = options.minibatch_size > micro * sizes.split.ranks

    def policy_pass(keeps: bool) -> list[Item]:
        has_bonus = options.entropy_coef > 0
        return sizes.passed("policy", logprobs(micro, sizes.length, sizes.num_response, True, keeps, has_bonus), MICRO)

    def critic_pass(keeps: bool) -> list[Item]:
        return sizes.passed("critic", scalars(micro, sizes.length, True, keeps), MICRO)

    again = [Item(f"{copy.name}, a second", copy.size, on_host=True, once=True) for copy in copies]
    return [
        Phase("rollout", (*kept, *sizes.sampling(_rollout_rows(sizes)))),
        Phase("scoring", (*kept, *_scoring(sizes, reward_models))),
        *update_phases(policy, kept, policy_pass, repeats or options.ptx_coef > 0, is_fused=False),
        *([Phase("policy on demonstrations", (*kept, *_ptx(sizes, policy)))] if options.ptx_coef > 0 else []),
        *update_phases(critic, kept, critic_pass, repeats, is_fused=False),
        Phase("evaluation, saving", (*kept, *again, sizes.frozen("saved policy", is_shared_out=False))),
    ]


def _copies(policy: Trained, has_ema: bool) -> list[Item]:
    """Of the policy, in CPU memory: the best one, and its moving average in float32."""
    copies = [("best policy", policy.width), *([("average policy", 4)] if has_ema else [])]
    return [Item(name, policy.count * width, "adapter", on_host=True, once=True) for name, width in copies]


def _rollout_rows(sizes: Sizes) -> int:
    return min(sizes.cfg.rollout.batch_size, sizes.own(sizes.cfg.ppo.batch_size))


def _scoring(sizes: Sizes, reward_models: list[bool]) -> list[Item]:
    """The larger of the policy's forward and that of a reward model, which takes as many rows as sampling does."""
    rows = min(sizes.cfg.ppo.micro_batch_size, sizes.own(sizes.cfg.ppo.batch_size))
    passes = [sizes.passed("policy", logprobs(rows, sizes.length, sizes.num_response, False), MICRO)]
    if reward_models:
        passes.append(sizes.passed("reward", scalars(_rollout_rows(sizes), sizes.length, False), "rollout.batch_size"))
    return max(passes, key=lambda items: sum(item.size for item in items))


def _ptx(sizes: Sizes, policy: Trained) -> list[Item]:
    """The policy's gradient on demonstrations: logits of all tokens, prompts too."""
    rows = min(sizes.cfg.ppo.micro_batch_size, sizes.own(sizes.cfg.ppo.ptx_batch_size))
    tried = logprobs(rows, sizes.length, sizes.length - 1, True, True)
    return [policy.gradients(), *policy.bucket(), *sizes.passed("demonstrations", tried, MICRO)]


def _whole_reward(sizes: Sizes) -> Item:
    return Item("reward weights", sizes.scalar_count * sizes.width / sizes.split.part(3), "adapter")


def evaluate_phases(sizes: Sizes, reward_models: list[bool]) -> list[Phase]:
    """The comparison of two policies. Every model is read for itself, an adapter with a base of its own."""
    rows, knob, length = sizes.cfg.rollout.batch_size, "rollout.batch_size", sizes.length
    base = sizes.base() if sizes.has_adapter else []
    kept = [item for role in ("SFT policy", "PPO policy") for item in (*base, sizes.frozen(role, False, False))]
    for is_adapter in reward_models:
        kept += [*base, sizes.frozen("reward", True)] if is_adapter else [_whole_reward(sizes)]
    scoring = [sizes.passed("policy", logprobs(rows, length, sizes.num_response, False), knob)]
    scoring += [sizes.passed("reward", scalars(rows, length, False), knob)] if reward_models else []
    perplexity = sizes.passed("demonstrations", logprobs(rows, length, length - 1, False), knob)
    return [
        Phase("answers", (*kept, *sizes.sampling(rows))),
        Phase("scoring", (*kept, *max(scoring, key=lambda items: sum(item.size for item in items)))),
        Phase("perplexity", (*kept, *perplexity)),
    ]


def trainer_disk(sizes: Sizes, is_scalar: bool = False) -> dict[str, float]:
    """Bytes by what a stage writes that trains one model, and keeps the best checkpoint and the two newest."""
    return _disk([sizes.trained("model", is_scalar)], num_kept=3)


def ppo_disk(sizes: Sizes) -> dict[str, float]:
    """Bytes by what PPO writes; each checkpoint has the copies of the policy too."""
    options, policy = sizes.cfg.ppo, sizes.trained("policy")
    copies = sum(copy.size for copy in _copies(policy, options.ema_decay is not None))
    return _disk([policy, sizes.trained("critic", True)], options.keep_checkpoints, copies)


def _disk(trained: list[Trained], num_kept: int, copies: float = 0.0) -> dict[str, float]:
    """Checkpoints, one more than are kept while a new one is written, and the artifact, which is of the first."""
    one = sum(part.checkpoint() for part in trained) + copies
    return {"checkpoints": (num_kept + 1) * one, "artifact": trained[0].count * trained[0].width}
