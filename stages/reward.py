"""Stage 2: trains a reward model on whole rankings, starting from the SFT policy. `python -m stages.reward`"""

if __name__ == "__main__":  # before the imports below, which take seconds: the config is checked first
    from stages import start

    start("stages.reward")

import json
import math
from pathlib import Path

from transformers import EarlyStoppingCallback, TrainingArguments, set_seed

from reward.asking import Asking, ask
from reward.examples import RankingExample, ranking_examples, require_order
from reward.rankings import load_rankings
from reward.report.card import lines, report_card
from reward.rules import load_rule
from reward.scorer import RewardScorer
from reward.trainer import TIE_MODELS, RankingModel, RankingTrainer, judged, score_examples
from rlhf import distributed
from rlhf.artifacts.dependencies import OF_THE_BASE, Needs
from rlhf.checkpoints.checkpoint import step_of
from rlhf.checkpoints.trainer import trainer_checkpoints
from rlhf.config.schema import Config
from rlhf.console import say
from rlhf.data.load import DataReport, require_split
from rlhf.errors import NumericsError
from rlhf.files import write_durably
from rlhf.locks import alone_in_run_dir
from rlhf.models.adapters import require_same_kind
from rlhf.models.opening import require_trust
from rlhf.models.sharding import trained_sharding
from rlhf.preflight.forecast import Forecast, epochs, require_fit, show_needs, sizes_of
from rlhf.preflight.phases import reward_phases, trainer_disk
from rlhf.rollout.choose import choose
from rlhf.run.stage import Stage
from rlhf.run.stopping import StopRequest
from rlhf.text.prompts import within
from rlhf.text.tokenizer import load_tokenizer
from rlhf.tracking.display import counting
from rlhf.tracking.tracker import TrackerCallback
from rlhf.training.epochs import plan, require_batch
from rlhf.training.trainer import StopCallback, num_steps, train, trained_dtype, training_arguments
from stages.models.reward import load_start, save

FEWEST_ANSWERS = 2  # of a ranking
HEADLINE = ("train/loss", "eval/pair_accuracy", "lr")


def needs(cfg: Config) -> Needs:
    """What a reward model depends on beside the SFT policy."""
    return Needs(
        "reward",
        sections=("seed", "model", "adapter", "rollout", "reward"),
        sources=("rankings",),
        data=("gold_rule",),
        rules=("data.gold_rule",),
        batches=("reward.batch_size",),
        without_effect=OF_THE_BASE,
        after_training=("data.gold_rule", "reward.norm_samples", "rollout"),
    )


def all_inputs(cfg: Config) -> dict[str, str]:
    """The artifacts that it consumes, by role."""
    return {"sft": cfg.inputs.sft}


@alone_in_run_dir
def run(cfg: Config, replace: bool = False) -> Path:
    """Trains the reward model and returns its artifact."""
    stage = Stage(needs(cfg), cfg, all_inputs(cfg))
    require_trust(cfg, "sft", stage.manifests["sft"])
    require_same_kind("sft", stage.manifests["sft"], cfg.adapter.kind)
    if cfg.preflight:
        num_records, num_answers = num_rankings(cfg)
        return preflight(cfg, stage, num_records, num_answers)
    if not stage.open(replace):
        return stage.folder
    require_fit(stage, lambda: forecast(cfg, stage))
    set_seed(cfg.seed)
    sft_folder = stage.input_paths["sft"] / "model"
    tokenizer = load_tokenizer(str(sft_folder), trust_remote_code=cfg.model.trust_remote_code)
    examples = load_examples(cfg, stage, tokenizer)
    # Now: a rule that fails must not do so when training is over.
    gold = distributed.on_main(lambda: gold_utilities(cfg, examples["test"]))
    stage.note(f"loading {sft_folder}")
    start = load_start(cfg, stage, tokenizer)
    model = RankingModel(start.scalar, learns_ties=cfg.reward.loss in TIE_MODELS)
    total = num_steps(len(examples["train"]), cfg.reward)
    checkpoint = trainer_checkpoints(stage.checkpoint_folder).newest(say)
    stage.note(plan(total, len(examples["train"]), cfg.reward))
    with StopRequest(cfg.run) as request, stage.tracker(total, HEADLINE, step_of(checkpoint)) as tracker:
        fit(cfg, stage, model, tokenizer, examples, checkpoint, tracker, request)
        card = judge(cfg, stage, model, tokenizer, examples["test"], gold)
        reward_norm = measure_norm(cfg, model, tokenizer, start.sft_policy(), examples["train"])
        adapter = save(cfg, stage, start, tokenizer)
        return stage.finish(
            tracker,
            base_model=start.base.record,
            adapter=adapter,
            metrics=headline(card, model, cfg),
            reward_norm=reward_norm,
        )


def preflight(cfg: Config, stage, num_records: int, num_answers: int) -> Path:
    """Shows what the stage will take; returns its folder, where nothing was written. UserError at too few rankings."""
    show_needs(stage, forecast(cfg, stage, num_records, num_answers))
    require_a_batch(cfg, num_records)
    return stage.folder


def forecast(cfg: Config, stage, num_records: int = 0, num_answers: int = FEWEST_ANSWERS) -> Forecast:
    """What the stage will take. num_records: training rankings; num_answers: the most that one of them has."""
    sizes = sizes_of(cfg, stage)
    disk = trainer_disk(sizes, is_scalar=True)
    return Forecast(reward_phases(sizes, num_answers), disk, [epochs(num_records, cfg.reward)])


def require_a_batch(cfg: Config, num_examples: int) -> None:
    """Raises UserError when there are fewer training prompts than one step takes."""
    require_batch(num_examples, cfg.reward.batch_size, "reward.batch_size", "training prompts with rankings")


def num_rankings(cfg: Config) -> tuple[int, int]:
    """Rankings of the training split, and the most answers that one of them has."""
    train = load_rankings(cfg.data, DataReport())["train"]
    return len(train), max((len(ranking.responses) for ranking in train), default=0)


def load_examples(cfg: Config, stage: Stage, tokenizer) -> dict[str, list[RankingExample]]:
    """Training examples by split, none of the splits empty."""
    splits = load_rankings(cfg.data, stage.report)
    stage.claim_prompts(splits["train"])
    examples = encode(cfg, tokenizer, splits, stage.report)
    stage.print_report()
    require_enough(cfg, examples)
    return examples


def encode(cfg: Config, tokenizer, splits: dict[str, list], report: DataReport) -> dict[str, list[RankingExample]]:
    """The rankings of each split as examples."""
    return {split: ranking_examples(tokenizer, part, cfg.data, split, report) for split, part in splits.items()}


def require_enough(cfg: Config, examples: dict[str, list[RankingExample]]) -> None:
    """Raises UserError where too few examples are left to train on, or to judge with."""
    require_a_batch(cfg, len(examples["train"]))
    for split in ("valid", "test"):
        require_split(examples, split, "data.rankings")
    require_order(examples["valid"], "valid")


def fit(
    cfg: Config,
    stage: Stage,
    model: RankingModel,
    tokenizer,
    examples: dict,
    checkpoint: Path | None,
    tracker,
    request,
) -> None:
    """Trains to the best validation pair accuracy."""
    arguments = TrainingArguments(
        **training_arguments(
            stage.checkpoint_folder,
            cfg.reward,
            seed=cfg.seed,
            log_steps=cfg.tracking.log_steps,
            deepspeed=trained_sharding(cfg),
            dtype=trained_dtype(model),
        ),
        metric_for_best_model="eval_pair_accuracy",
        greater_is_better=True,
        remove_unused_columns=False,
    )
    trainer = RankingTrainer(
        options=cfg.reward,
        tokenizer=tokenizer,
        model=model,
        args=arguments,
        train_dataset=examples["train"],
        eval_dataset=examples["valid"],
        callbacks=[EarlyStoppingCallback(cfg.reward.patience), TrackerCallback(tracker)],
    )
    train(trainer, checkpoint, StopCallback(request))


def judge(
    cfg: Config,
    stage: Stage,
    model: RankingModel,
    tokenizer,
    examples: list[RankingExample],
    gold: list[list[float]] | None,
) -> dict:
    """The report card on the test split; printed, and kept as report_card.json."""
    stage.note(f"scoring the answers of {len(examples)} test prompts")
    rankings = judged(examples, score_examples(model, examples, cfg.reward.micro_batch_size, tokenizer))
    card = report_card(rankings, gold, cfg.evaluate.num_bootstrap, cfg.seed)
    distributed.on_main(lambda: write_durably(stage.folder / "report_card.json", json.dumps(card, indent=1)))
    for line in lines(card):
        say(f"  {line}")
    return card


def gold_utilities(cfg: Config, examples: list[RankingExample]) -> list[list[float]] | None:
    """What the gold rule says of each answer, once per annotation: the ceiling that the annotators' noise leaves."""
    if cfg.data.gold_rule is None:
        return None
    name, how = cfg.data.gold_rule, Asking(cfg.ppo.reward_retries, cfg.ppo.reward_timeout)
    rule, utilities = load_rule(name), []
    for example in examples:
        answers = list(example.responses)
        messages, records = ([shared] * len(answers) for shared in (example.messages, example.meta))
        marks = ask(rule, name, how, messages, answers, records)
        if not all(map(math.isfinite, marks)):
            prompt = example.messages[-1]["content"]
            raise NumericsError(f"data.gold_rule={name} gives {marks} to answers to {prompt!r}; mend it")
        utilities += [marks] * len(example.annotations)
    return utilities


def measure_norm(cfg: Config, model: RankingModel, tokenizer, policy, examples: list[RankingExample]) -> dict:
    """Mean and std of the scores of SFT samples: what PPO normalises with. Stiennon et al. 2020, appendix B.1."""
    prompts = [examples[i % len(examples)].messages for i in range(cfg.reward.norm_samples)]
    sampler = choose(cfg, policy, tokenizer)
    limit = cfg.data.max_prompt_tokens
    ids = [within(tokenizer, prompt, limit).ids for prompt in prompts]
    with counting("reward: samples of the SFT policy", len(ids)) as sampler.after_batch:
        responses = sampler(policy, ids, "reward_norm")
    scorer = RewardScorer(model.scalar.eval(), tokenizer, limit, cfg.rollout.batch_size)
    scores = scorer(prompts, sampler.texts(responses))
    norm = {"mean": scores.mean().item(), "std": scores.std().item(), "num_samples": len(prompts)}
    if not norm["std"] > 0:
        raise NumericsError(
            f"the reward model gives {len(prompts)} SFT samples the same score {norm['mean']:.4g}: it learned nothing"
        )
    return norm


def headline(card: dict, model: RankingModel, cfg: Config) -> dict[str, float]:
    """The figures that the manifest carries."""
    metrics = {
        "pair_accuracy": card["pair_accuracy"]["value"],
        "pair_accuracy_low": card["pair_accuracy"]["low"],
        "pair_accuracy_high": card["pair_accuracy"]["high"],
        "top1": card["top1"]["value"],
        "kendall_tau_b": card["kendall_tau_b"]["value"],
    }
    return metrics | ({"eta": model.eta.item()} if cfg.reward.loss in TIE_MODELS else {})
