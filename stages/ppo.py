"""Stage 3: optimises the policy with PPO against the reward. `python -m stages.ppo`"""

from contextlib import contextmanager
from pathlib import Path

import hydra
import torch

from reward.scorer import Score, load_reward
from rlhf import cli
from rlhf.advantages import gae, kl_penalised_rewards
from rlhf.artifacts import check_parent, check_same_tokenizer
from rlhf.batches import encode_prompts
from rlhf.checkpoint import Checkpoints
from rlhf.config import Config, Engine, KlControl
from rlhf.data import distinct, load_prompts, require_split
from rlhf.engine import TorchEngine
from rlhf.errors import NumericsError
from rlhf.experience import Collector, prompt_batches
from rlhf.hashing import weights_fingerprint
from rlhf.heldout import BestPolicy, Evaluation
from rlhf.kl import AdaptiveKL, FixedKL
from rlhf.learner import Learner
from rlhf.metrics import rollout_metrics
from rlhf.models import (
    device,
    enable_gradient_checkpointing,
    load_policy,
    load_scalar_model,
    require_context,
    scalar_model_from_policy,
    stop_ids,
)
from rlhf.ops import whiten
from rlhf.ppo import Ppo, check_starts_at_reference
from rlhf.rollout.sampling import Sampler
from rlhf.scores import ScoreShaping
from rlhf.stage import Stage
from rlhf.tokenizer import load_tokenizer
from rlhf.trainer import require_batch

ENGINES = {Engine.torch: TorchEngine}
HEADLINE = ("objective/scores", "objective/kl", "response/length_mean", "eval/scores", "eval/win_rate")
# Log-probabilities of one token in two batches of different padding differ by rounding; by no more than this, in nats.
ROUNDING = {"float32": 1e-3, "bfloat16": 0.25}


def run(cfg: Config, replace: bool = False) -> Path:
    """Trains the policy and returns its artifact: the best evaluated policy within the KL budget."""
    stage = Stage("ppo", cfg, input_artifacts(cfg, [term.source for term in cfg.ppo.rewards]))
    check_fit(cfg, stage)
    if not stage.open(replace):
        return stage.folder
    sft_folder = stage.input_paths["sft"] / "model"
    tokenizer = load_tokenizer(str(sft_folder))
    prompts = load_prompts(cfg.data, stage.report)
    stage.claim_prompts(prompts["train"])
    require_split(prompts, "valid", "data.prompts")
    require_batch(len(prompts["train"]), cfg.ppo.batch_size, "ppo.batch_size", "training prompts")
    # the report's own prompts choose nothing: the exported policy is chosen on the validation split
    prompts["valid"] = distinct(prompts["valid"], cfg.ppo.eval_prompts)
    ids = {split: encode_prompts(tokenizer, part, cfg.data, stage.report) for split, part in prompts.items()}
    stage.print_report()
    terms = [(term.source, term.weight) for term in cfg.ppo.rewards]
    score = load_reward(terms, cfg.inputs.reward, cfg.rollout.batch_size, device())
    learner, ref_policy = load_learner(cfg, stage)
    limits = (cfg.rollout.temperature, cfg.data.max_response_tokens, cfg.rollout.batch_size)
    sampler = Sampler(tokenizer, stop_ids(ref_policy, tokenizer), *limits, cfg.seed)
    evaluate = Evaluation(ref_policy, score, sampler, prompts["valid"], ids["valid"], cfg.ppo.micro_batch_size)
    checkpoints = Checkpoints(stage.checkpoint_folder, cfg.ppo.keep_checkpoints)
    first_step = learner.restore(checkpoints, cli.say)
    batches = prompt_batches(prompts["train"], ids["train"], cfg.ppo.batch_size, cfg.seed, first_step)
    with cli.StopRequest() as request, stage.tracker(cfg.ppo.num_steps, HEADLINE, first_step) as tracker:
        after_step = AfterStep(cfg, learner, evaluate, checkpoints, tracker, request)
        train(cfg, learner, ref_policy, score, sampler, batches, first_step, after_step)
        learner.best.restore(learner.policy.module)
        learner.policy.module.save_pretrained(stage.model_folder)
        tokenizer.save_pretrained(stage.model_folder)
        metrics = {"best_step": learner.best.step, "best_score": learner.best.score, "best_kl": learner.best.kl}
        base_model = {"name": "sft", "fingerprint": weights_fingerprint(sft_folder)}
        return stage.finish(tracker, base_model=base_model, metrics=metrics)


def train(cfg: Config, learner, ref_policy, score: Score, sampler, prompts, first_step: int, after_step) -> None:
    """The PPO loop. Ziegler et al. 2019, https://arxiv.org/abs/1909.08593; Ouyang et al. 2022, section 3.5."""
    policy, critic, kl = learner.policy, learner.critic, learner.kl
    collect = Collector(sampler, learner.shaping, cfg.ppo.micro_batch_size)
    ppo = Ppo(cfg.ppo, cfg.rollout.temperature, cfg.seed, ROUNDING[cfg.model.dtype.value])
    if first_step == 0:
        after_step.evaluate_start()
    for step in range(first_step, cfg.ppo.num_steps):
        batch = next(prompts)  # B prompts
        with numerics_at(step, batch):
            rollout = collect(policy.module, critic.module, ref_policy, score, batch)
            if step == 0:
                check_starts_at_reference(rollout, ppo.tolerance)
            rewards = kl_penalised_rewards(
                rollout.scores, rollout.logprobs, rollout.ref_logprobs, rollout.mask, kl.coef
            )
            advantages, returns = gae(rewards, rollout.values, rollout.mask, cfg.ppo.gamma, cfg.ppo.lam)
            if cfg.ppo.whiten_advantages:
                advantages = whiten(advantages, rollout.mask)
            stats = ppo.update(policy, critic, rollout, advantages, returns, step)
        metrics = rollout_metrics(rollout, returns, kl.coef) | stats
        kl.update(rollout.mean_kl, len(batch))
        after_step(step + 1, metrics)


class AfterStep:
    """What follows each step: evaluation and checkpoint when they are due, the log, a stop where one was asked for."""

    def __init__(self, cfg: Config, learner: Learner, evaluate: Evaluation, checkpoints: Checkpoints, tracker, request):
        self.ppo, self.num_samples, self.log_steps = cfg.ppo, cfg.tracking.num_samples, cfg.tracking.log_steps
        self.learner, self.evaluate, self.checkpoints = learner, evaluate, checkpoints
        self.tracker, self.request = tracker, request

    def evaluate_start(self) -> None:
        """The SFT policy's own figures: where the curves begin."""
        self.tracker.log(0, self._evaluate(0))

    def __call__(self, num_done: int, metrics: dict[str, float]) -> None:
        """num_done: steps that are finished."""
        is_last = num_done == self.ppo.num_steps
        metrics = metrics | {"episode": num_done * self.ppo.batch_size}
        if is_last or num_done % self.ppo.eval_steps == 0:
            metrics |= self._evaluate(num_done)
        if is_last or num_done % self.log_steps == 0:
            self.tracker.log(num_done, metrics)
        if num_done % self.ppo.save_steps == 0 or self.request.received is not None:
            self.learner.save(self.checkpoints, num_done)
        if self.request.received is not None:
            raise cli.Stopped(f"stopped after {num_done} steps, saved; the same command goes on from there")

    def _evaluate(self, num_done: int) -> dict[str, float]:
        policy = self.learner.policy.module
        metrics, samples = self.evaluate(policy)
        self.learner.best.offer(num_done, metrics, policy)
        self.tracker.log_samples(num_done, samples[: self.num_samples])
        return metrics


def input_artifacts(cfg: Config, rewards: list[str]) -> dict[str, str]:
    """The artifacts that PPO against these reward sources consumes, by role. A reward that is a function needs none."""
    models = [source for source in rewards if ":" not in source]
    paths = {f"reward_{i}": source for i, source in enumerate(models) if source != "reward"}
    return {"sft": cfg.inputs.sft, **({"reward": cfg.inputs.reward} if "reward" in models else {}), **paths}


def check_fit(cfg: Config, stage: Stage) -> None:
    """Raises ArtifactError unless every reward model was trained from the SFT artifact that the policy starts from."""
    if cfg.ppo.allow_other_parent:
        return
    for role, manifest in stage.manifests.items():
        if role != "sft":
            remedy = (
                "train it from this SFT artifact, or set ppo.allow_other_parent=true (texts are then tokenised anew)"
            )
            check_same_tokenizer(role, manifest, "sft", stage.manifests["sft"], remedy)
            check_parent(manifest, stage.input_paths["sft"])


def load_learner(cfg: Config, stage: Stage):
    """What trains (policy and critic), and the frozen SFT policy beside it."""
    options, dtype = cfg.ppo, getattr(torch, cfg.model.dtype.value)
    attention, folder = cfg.model.attention.value, stage.input_paths["sft"] / "model"
    policy, ref_policy = (load_policy(folder, dtype, attention).to(device()) for _ in range(2))
    require_context(policy, cfg.data)
    ref_policy.requires_grad_(False)
    critic = load_critic(cfg, stage, dtype, attention).to(device())
    if cfg.model.gradient_checkpointing:
        enable_gradient_checkpointing(policy)
        enable_gradient_checkpointing(critic.model)
    engine = ENGINES[cfg.deepspeed.engine]
    learner = Learner(
        policy=engine("policy", policy, options.learning_rate, options.adam_eps, options.max_grad_norm),
        critic=engine("critic", critic, options.critic_learning_rate, options.adam_eps, options.max_grad_norm),
        kl=AdaptiveKL(options.kl_coef, options.kl_target, options.kl_horizon)
        if options.kl_control is KlControl.adaptive
        else FixedKL(options.kl_coef),
        shaping=ScoreShaping(options.running_score_norm, options.score_clip, options.missing_eos_penalty),
        best=BestPolicy(options.kl_budget),
    )
    return learner, ref_policy


def load_critic(cfg: Config, stage: Stage, dtype, attention: str):
    """The reward model's trunk and head where it reads the policy's tokens, else the SFT trunk with a zero head."""
    manifest, sft = stage.manifests.get("reward"), stage.manifests["sft"]
    if manifest is not None and manifest["tokenizer_sha256"] == sft["tokenizer_sha256"]:
        norm = manifest["reward_norm"]
        return load_scalar_model(stage.input_paths["reward"] / "model", dtype, attention, norm["mean"], norm["std"])
    return scalar_model_from_policy(stage.input_paths["sft"] / "model", dtype, attention, zero_head=True)


@contextmanager
def numerics_at(step: int, batch):
    """Says in which step, and on which prompts, a number went wrong."""
    try:
        yield
    except NumericsError as error:
        places = f"{batch.where[0]} and {len(batch) - 1} more"
        raise NumericsError(f"step {step} (prompts {places}): {error}. The last checkpoint is kept") from error


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def main(cfg) -> None:
    cli.run_stage(run, cfg)


if __name__ == "__main__":
    cli.entry(main)
