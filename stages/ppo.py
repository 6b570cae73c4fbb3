"""Stage 3: optimises the policy with PPO against the reward. `python -m stages.ppo`"""

if __name__ == "__main__":  # before the imports below, which take seconds: the config is checked first
    from stages import start

    start("stages.ppo")

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from reward.scale import scale_warnings
from rlhf.artifacts.dependencies import OF_THE_BASE, Needs
from rlhf.checkpoints.learner import LearnerCheckpoints
from rlhf.config.schema import Config, Engine
from rlhf.console import say
from rlhf.data.load import DataReport, Demonstration, Prompt, distinct, load_demonstrations, load_prompts, require_split
from rlhf.engines.engine import DeepspeedEngine, TorchEngine
from rlhf.engines.zero import bare, fits
from rlhf.errors import RlhfError, Stopped, UserError
from rlhf.kl import BELOW_ZERO, NEGATIVE
from rlhf.locks import alone_in_run_dir
from rlhf.models.sharding import trained_sharding
from rlhf.models.trunk import all_weights
from rlhf.ppo.critic import Critic
from rlhf.ppo.estimates import gae_of
from rlhf.ppo.experience import Collector, PromptBatch, Rollout, prompt_batches
from rlhf.ppo.heldout import BestPolicy, Evaluation
from rlhf.ppo.invariants import FrozenWeights, check_same_weights
from rlhf.ppo.learner import Learner
from rlhf.ppo.loop import ppo_steps
from rlhf.ppo.ptx import PtxMix, ptx_examples
from rlhf.ppo.scores import Score
from rlhf.ppo.update import Ppo
from rlhf.preflight.forecast import require_fit
from rlhf.rollout.choose import choose
from rlhf.run.stage import Stage
from rlhf.run.stopping import StopRequest
from rlhf.text.prompts import encode_prompts
from rlhf.text.tokenizer import load_tokenizer
from rlhf.training.epochs import require_batch
from stages.models.ppo import all_inputs, check_fit, load_models, save_policy
from stages.models.ppo_forecast import forecast, num_prompts, preflight, require_a_batch

HEADLINE = ("objective/scores", "objective/kl", "response/length_mean", "eval/scores", "eval/win_rate")
WITHOUT_EFFECT = (
    *("ppo.save_steps", "ppo.keep_checkpoints", "ppo.reward_retries", "ppo.reward_timeout", "ppo.reward_cache"),
    "ppo.start_from",  # an artifact counts by what it is, not by where it lies
)
# Log-probabilities in two batches of different padding differ by rounding; by no more than this, in nats per token.
ROUNDING = {"float32": 1e-3, "bfloat16": 0.1}
# Those of the decoder, with its cache, and of the training forward: by no more than this in the mean over tokens. Seen
# were 1e-7 in float32, and 0.003 to 0.04 in bfloat16 with random models of 8 layers.
SAMPLING_ROUNDING = {"float32": 1e-3, "bfloat16": 0.1}


def needs(cfg: Config) -> Needs:
    """What a PPO policy depends on beside the SFT policy and the reward models."""
    has_ptx = cfg.ppo.ptx_coef > 0
    return Needs(
        "ppo",
        sections=("seed", "model", "adapter", "rollout", "ppo"),
        sources=("prompts", "heldout", *(["demonstrations"] if has_ptx else [])),
        rules=("ppo.rewards",),
        batches=("ppo.minibatch_size", *(["ppo.ptx_batch_size"] if has_ptx else [])),
        without_effect=(*OF_THE_BASE, "adapter.dropout", *WITHOUT_EFFECT),
    )


@alone_in_run_dir
def run(cfg: Config, replace: bool = False) -> Path:
    """Trains the policy and returns its artifact: the best evaluated policy within the KL budget."""
    stage = Stage(needs(cfg), cfg, all_inputs(cfg))
    check_fit(cfg, stage)
    if cfg.preflight:
        return preflight(cfg, stage, num_prompts(cfg))
    if not stage.open(replace):
        return stage.folder
    require_fit(stage, lambda: forecast(cfg, stage))
    sft_folder = stage.input_paths["sft"] / "model"
    tokenizer = load_tokenizer(str(sft_folder), trust_remote_code=cfg.model.trust_remote_code)
    demonstrations = load_demonstrations(cfg.data, stage.report)["train"] if cfg.ppo.ptx_coef > 0 else []
    prompts, ids = load_prompt_ids(cfg, stage, tokenizer, demonstrations)
    ptx = make_ptx(cfg, tokenizer, demonstrations, stage.report) if demonstrations else None
    stage.print_report()
    models = load_models(cfg, stage)
    learner, ref_policy = make_learner(cfg, models), models.ref_policy
    if not fits(all_weights(bare(learner.policy.module)), cfg.deepspeed.gather_share):
        say("  sampling gathers weights at each token, many times slower: they do not fit (deepspeed.gather_share)")
    sampler = choose(cfg, ref_policy, tokenizer)
    evaluate = Evaluation(ref_policy, models.score, sampler, prompts["valid"], ids["valid"], cfg.ppo.micro_batch_size)
    for warning in scale_warnings(cfg.ppo.rewards, evaluate.baseline.scores, evaluate.baseline.term_scores):
        say(f"  warning: {warning}")
    checkpoints = LearnerCheckpoints(stage.checkpoint_folder, cfg.ppo.keep_checkpoints)
    first_step = learner.restore(checkpoints, say)
    batches = make_batches(cfg, prompts["train"], ids["train"], first_step)
    frozen = FrozenWeights(learner.engines, ref_policy)
    with StopRequest(cfg.run) as request, stage.tracker(cfg.ppo.num_steps, HEADLINE, first_step) as tracker:
        after_step = AfterStep(cfg, learner, frozen, evaluate, checkpoints, tracker, request, first_step)
        train(cfg, learner, ref_policy, models.score, sampler, batches, ptx, first_step, after_step)
        adapter = save_policy(models, learner.best.weights, stage, tokenizer)
        return stage.finish(
            tracker,
            base_model=models.base.record,
            metrics=headline(learner.best),
            adapter=adapter,
            remark=remark(learner.best, cfg.ppo.start_from),
        )


def headline(best: BestPolicy) -> dict[str, float]:
    """The figures that the manifest carries. best_score: of what PPO optimises; best_raw_score: before shaping."""
    return {
        "best_step": best.step,
        "best_score": best.score,
        "best_raw_score": best.raw_score,
        "best_kl": best.kl,
    }


def remark(best: BestPolicy, start_from: str | None = None) -> str:
    """What to try where training brought nothing that could be exported; else nothing."""
    if best.step > 0:
        return ""
    said = f"No later policy was better on held-out prompts (eval/scores) within ppo.kl_budget={best.kl_budget:g}: the "
    said += f"artifact holds the {'SFT policy' if start_from is None else f'policy of {start_from}'} itself. "
    if best.num_over_budget:
        said += f"{best.num_over_budget} evaluations were beyond that budget: raise ppo.kl_budget or ppo.kl_coef, or "
        return said + "lower ppo.learning_rate"
    return said + "Try more ppo.num_steps, a higher ppo.learning_rate or a lower ppo.kl_coef; look at samples.jsonl"


def load_prompt_ids(cfg: Config, stage: Stage, tokenizer, demonstrations: list) -> tuple[dict, dict]:
    """Prompts, and their token ids, by split."""
    loaded = load_prompts(cfg.data, stage.report)
    stage.claim_prompts([*loaded["train"], *demonstrations])
    return encode(cfg, tokenizer, loaded, stage.report)


def encode(cfg: Config, tokenizer, loaded: dict[str, list], report: DataReport) -> tuple[dict, dict]:
    """Prompts that PPO uses, and their token ids, by split. Raises UserError where too few are left.

    The report's own prompts choose nothing: the exported policy is chosen on the validation split.
    """
    loaded = loaded | {"valid": distinct(loaded["valid"], cfg.ppo.eval_prompts)}
    prompts, ids = {}, {}
    for split, part in loaded.items():
        prompts[split], ids[split] = encode_prompts(tokenizer, part, cfg.data, report)
    require_split(prompts, "valid", "data.prompts")
    require_a_batch(cfg, len(prompts["train"]))
    return prompts, ids


def make_batches(cfg: Config, prompts: list[Prompt], ids: list[list[int]], first_step: int) -> Iterator[PromptBatch]:
    """The prompts of each step that is left."""
    return prompt_batches(
        prompts,
        ids,
        batch_size=cfg.ppo.batch_size,
        seed=cfg.seed,
        first_step=first_step,
        responses_per_prompt=cfg.ppo.responses_per_prompt,
    )


def make_ptx(cfg: Config, tokenizer, demonstrations: list[Demonstration], report: DataReport) -> PtxMix:
    """The demonstrations that ppo.ptx_coef mixes in."""
    options = cfg.ppo
    examples = ptx_examples(tokenizer, demonstrations, cfg.data, report)
    require_batch(len(examples), options.ptx_batch_size, "ppo.ptx_batch_size", "training demonstrations")
    return PtxMix(
        examples,
        coef=options.ptx_coef,
        batch_size=options.ptx_batch_size,
        micro_batch_size=options.micro_batch_size,
        seed=cfg.seed,
        pad_id=tokenizer.pad_token_id,
    )


def train(
    cfg: Config, learner, ref_policy, score: Score, sampler, prompts, ptx: PtxMix | None, first_step: int, after_step
) -> None:
    """The steps that are left, each with what follows it."""
    collect = after_step.saving(Collector(sampler, learner.shaping, cfg.ppo.micro_batch_size))
    dtype = cfg.model.dtype.value
    ppo = Ppo(cfg.ppo, cfg.rollout.temperature, cfg.seed, ROUNDING[dtype], ptx)
    if first_step == 0:
        after_step.evaluate_start()
    elif learner.pending is not None:
        after_step(first_step, learner.pending)
    estimate = gae_of(learner.critic, cfg.ppo)
    tolerance = SAMPLING_ROUNDING[dtype]
    steps = ppo_steps(learner, ref_policy, score, collect, estimate, ppo, prompts, first_step, tolerance)
    for num_done, metrics in steps:
        after_step(num_done, metrics)


class AfterStep:
    """What follows each step: evaluation and checkpoint when they are due, the log, a stop where one was asked for."""

    def __init__(
        self,
        cfg: Config,
        learner: Learner,
        frozen: FrozenWeights,
        evaluate: Evaluation,
        checkpoints: LearnerCheckpoints,
        tracker,
        request,
        first_step: int,
    ):
        self.ppo, self.num_samples, self.log_steps = cfg.ppo, cfg.tracking.num_samples, cfg.tracking.log_steps
        self.learner, self.evaluate, self.checkpoints = learner, evaluate, checkpoints
        self.frozen, self.are_weights_checked = frozen, False
        self.tracker, self.request, self.saved_at = tracker, request, first_step
        self.is_negative_kl_told = False

    def evaluate_start(self) -> None:
        """The figures of the policy that training begins with: where the curves begin."""
        self.tracker.log(0, self._evaluate(0))
        if self.learner.best.step < 0:
            raise UserError(
                f"ppo.start_from={self.ppo.start_from}: its policy is already beyond "
                f"ppo.kl_budget={self.ppo.kl_budget:g} nats from the SFT policy on held-out prompts, so that nothing "
                "might be left to export; raise that budget"
            )

    def __call__(self, num_done: int, metrics: dict[str, float]) -> None:
        """num_done: steps that are finished."""
        is_last = num_done == self.ppo.num_steps
        is_saving = num_done % self.ppo.save_steps == 0
        if is_saving or not self.are_weights_checked:
            self._check_weights()
        metrics = metrics | {"episode": num_done * self.ppo.batch_size}
        if is_last or num_done % self.ppo.eval_steps == 0:
            self.learner.pending = metrics
            with self.saved_if_reward_fails(num_done, f"evaluation after step {num_done}: "):
                metrics = metrics | self._evaluate(num_done)
            self.learner.pending = None
        if is_last or num_done % self.log_steps == 0:
            self.tracker.log(num_done, metrics)
        self._explain_negative_kl(num_done, metrics)
        is_stopping = self.request.on_any_rank()
        if is_saving or is_stopping:
            self._save(num_done)
        if is_stopping:
            raise Stopped(f"stopped after {num_done} steps, saved; {self.request.going_on} from there")

    def _explain_negative_kl(self, num_done: int, metrics: dict[str, float]) -> None:
        """Once: a person who sees one in the terminal asks what is broken."""
        found = [
            f"{name} {metrics[name]:.3g}" for name in ("objective/kl", "eval/kl") if metrics.get(name, 0) < BELOW_ZERO
        ]
        if found and not self.is_negative_kl_told:
            say(f"step {num_done}, {found[0]}: {NEGATIVE}")
            self.is_negative_kl_told = True

    @contextmanager
    def saved_if_reward_fails(self, num_done: int, where: str):
        """Saves what was trained, whole as nothing changes inside, where the reward fails. All ranks fail alike."""
        try:
            yield
        except RlhfError as error:
            self._save(num_done)
            raise type(error)(f"{where}{error}. {kept(num_done, self.request.going_on)}") from error

    def saving(self, collect: Collector) -> Callable[..., Rollout]:
        """collect, which saves what was trained where the reward fails."""

        def collect_or_save(policy, ref_policy, score: Score, batch: PromptBatch) -> Rollout:
            with self.saved_if_reward_fails(batch.step, f"step {batch.step} ({batch.named}): "):
                return collect(policy, ref_policy, score, batch)

        return collect_or_save

    def _save(self, num_done: int) -> None:
        if num_done > self.saved_at:
            self.learner.save(self.checkpoints, num_done)
            self.saved_at = num_done

    def _check_weights(self) -> None:
        """After the first step of this process, and every save_steps."""
        self.frozen.check()
        for engine in self.learner.engines:
            check_same_weights(engine)
        self.are_weights_checked = True

    def _evaluate(self, num_done: int) -> dict[str, float]:
        with self.learner.shown() as shown:
            answers = self.evaluate(self.learner.policy.module)
            self.learner.best.offer(num_done, answers, shown)
        self.tracker.log_samples(num_done, self.evaluate.samples(answers)[: self.num_samples])
        return self.evaluate.metrics(answers, self.learner.shaping)


def make_learner(cfg: Config, models) -> Learner:
    """What trains, fresh."""
    policy = make_engine(cfg, "policy", models.policy, cfg.ppo.learning_rate)
    critic = make_engine(cfg, "critic", models.critic, cfg.ppo.critic_learning_rate)
    return Learner.fresh(cfg.ppo, policy, Critic(critic, cfg.ppo))


def make_engine(cfg: Config, name: str, module, learning_rate: float):
    """The engine that deepspeed.engine names, around a policy or a critic."""
    if cfg.deepspeed.engine is Engine.torch:
        return TorchEngine(name, module, learning_rate, cfg.ppo.adam_eps, cfg.ppo.max_grad_norm)
    return DeepspeedEngine(
        name,
        module,
        learning_rate,
        adam_eps=cfg.ppo.adam_eps,
        max_grad_norm=cfg.ppo.max_grad_norm,
        options=trained_sharding(cfg),
        micro_batch_size=cfg.ppo.micro_batch_size,
    )


def kept(num_done: int, going_on: str) -> str:
    """What is left of a run whose reward failed, and how to go on."""
    if num_done == 0:
        return "Nothing was trained yet"
    return (
        f"Saved after {num_done} steps: {going_on} from there, with run.mended_rule=true where the code "
        "of a rule was mended"
    )
