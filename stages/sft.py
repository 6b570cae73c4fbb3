"""Stage 1: fine-tunes a model on demonstrations. `python -m stages.sft`"""

if __name__ == "__main__":  # before the imports below, which take seconds: the config is checked first
    from stages import start

    start("stages.sft")

import math
from pathlib import Path

from datasets import Dataset
from transformers import EarlyStoppingCallback, set_seed
from trl import SFTConfig

from rlhf.artifacts.dependencies import OF_THE_BASE, Needs
from rlhf.checkpoints.checkpoint import step_of
from rlhf.checkpoints.trainer import trainer_checkpoints
from rlhf.config.schema import Config
from rlhf.console import say
from rlhf.data.load import load_demonstrations, require_split
from rlhf.locks import alone_in_run_dir
from rlhf.models.perplexity import perplexity
from rlhf.models.policies import set_dropout
from rlhf.models.sharding import trained_sharding
from rlhf.preflight.forecast import Forecast, epochs, require_fit, show_needs, sizes_of
from rlhf.preflight.phases import sft_phases, trainer_disk
from rlhf.run.stage import Stage
from rlhf.run.stopping import StopRequest
from rlhf.tracking.tracker import TrackerCallback
from rlhf.training.epochs import plan, require_batch
from rlhf.training.sft import CheckedSFTTrainer, rehearsal, require_objective, sft_examples
from rlhf.training.trainer import StopCallback, num_steps, train, trained_dtype, training_arguments
from stages.models.sft import all_inputs, load_start, require_base, save

HEADLINE = ("train/loss", "eval/loss", "lr")
UNLOGGED = dict.fromkeys(["num_tokens", "eval_num_tokens"])  # TRL counts anew when a stopped stage goes on


def needs(cfg: Config) -> Needs:
    """What an SFT policy depends on beside the artifact that it may start from."""
    return Needs(
        "sft",
        sections=("seed", "model", "adapter", "sft"),
        sources=("demonstrations",),
        batches=("sft.batch_size",),
        without_effect=("sft.start_from", *unread_of_model(cfg)),  # an artifact counts by what it is
    )


def unread_of_model(cfg: Config) -> tuple[str, ...]:
    """What this run does not make its model with."""
    if cfg.sft.start_from is not None:
        return OF_THE_BASE
    return ("model.revision",) if cfg.model.path is None else ("model.scratch",)


@alone_in_run_dir
def run(cfg: Config, replace: bool = False) -> Path:
    """Trains the SFT policy and returns its artifact."""
    stage = Stage(needs(cfg), cfg, all_inputs(cfg))
    require_base(cfg, stage)
    if cfg.preflight:
        return preflight(cfg, stage, len(load_demonstrations(cfg.data, stage.report)["train"]))
    if not stage.open(replace):
        return stage.folder
    require_fit(stage, lambda: forecast(cfg, stage))
    set_seed(cfg.seed)
    demonstrations = load_training_data(cfg, stage)
    stage.note(f"loading {cfg.sft.start_from or cfg.model.path or 'a new model'}")
    start = load_start(cfg, stage, demonstrations["train"])
    examples = {
        split: sft_examples(start.tokenizer, part, cfg.sft.objective, cfg.data, split, stage.report)
        for split, part in demonstrations.items()
    }
    stage.print_report()
    require_a_batch(cfg, len(examples["train"]))
    require_split(examples, "valid", "data.demonstrations")
    total = num_steps(len(examples["train"]), cfg.sft)
    checkpoint = trainer_checkpoints(stage.checkpoint_folder).newest(say)
    stage.note(plan(total, len(examples["train"]), cfg.sft))
    with StopRequest(cfg.run) as request, stage.tracker(total, HEADLINE, step_of(checkpoint)) as tracker:
        metrics = fit(cfg, stage, start.model, start.tokenizer, examples, checkpoint, tracker, request)
        adapter = save(cfg, stage, start)
        return stage.finish(tracker, base_model=start.base_model, metrics=metrics, adapter=adapter)


def preflight(cfg: Config, stage, num_records: int) -> Path:
    """Shows what the stage will take; returns its folder, where nothing was written. UserError at too few records."""
    show_needs(stage, forecast(cfg, stage, num_records))
    if cfg.sft.rehearsal_share == 0:  # else the rehearsed ones are not among them yet
        require_a_batch(cfg, num_records)
    return stage.folder


def forecast(cfg: Config, stage, num_records: int = 0) -> Forecast:
    """What the stage will take. num_records: training demonstrations."""
    sizes = sizes_of(cfg, stage)
    return Forecast(sft_phases(sizes), trainer_disk(sizes), [epochs(num_records, cfg.sft)])


def require_a_batch(cfg: Config, num_examples: int) -> None:
    """Raises UserError when there are fewer training demonstrations than one step takes."""
    require_batch(num_examples, cfg.sft.batch_size, "sft.batch_size", "training demonstrations")


def load_training_data(cfg: Config, stage: Stage) -> dict[str, list]:
    """Demonstrations by split; the training ones with the share of earlier data that is rehearsed."""
    splits = load_demonstrations(cfg.data, stage.report)
    require_objective(splits, cfg.sft.objective)
    require_split(splits, "valid", "data.demonstrations")
    if cfg.sft.rehearsal_share > 0:
        earlier = stage.manifests["start_from"]
        num_new = len(splits["train"])
        splits["train"] += rehearsal(cfg.data, cfg.sft.rehearsal_share, earlier, num_new, stage.report, cfg.seed)
        stage.report.count_splits("demonstrations", splits)
    stage.claim_prompts(splits["train"])
    return splits


def fit(
    cfg: Config, stage: Stage, model, tokenizer, examples: dict, checkpoint: Path | None, tracker, request
) -> dict[str, float]:
    """Trains to the best validation loss; returns loss and perplexity of the validation and test splits."""
    set_dropout(model, cfg.sft.dropout)
    datasets = {split: Dataset.from_list(part) for split, part in examples.items() if part}
    arguments = SFTConfig(
        **training_arguments(
            stage.checkpoint_folder,
            cfg.sft,
            seed=cfg.seed,
            log_steps=cfg.tracking.log_steps,
            deepspeed=trained_sharding(cfg),
            dtype=trained_dtype(model),
        ),
        metric_for_best_model="eval_loss",
        gradient_checkpointing=False,  # TRL would switch it on; model.gradient_checkpointing decides
        packing=cfg.sft.packing,
        router_aux_loss_coef=0.0,  # an expert's share of a micro-batch: it changes with how a batch is split
        max_length=cfg.data.max_prompt_tokens + cfg.data.max_response_tokens,
    )
    trainer = CheckedSFTTrainer(
        model=model,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=datasets["train"],
        eval_dataset=datasets["valid"],
        callbacks=[EarlyStoppingCallback(cfg.sft.patience), TrackerCallback(tracker, UNLOGGED)],
    )
    train(trainer, checkpoint, StopCallback(request))
    stage.note("measuring the perplexity of the best checkpoint")
    set_dropout(model.eval(), 0.0)  # in evaluation mode an adapter's dropout does not act either
    metrics = {}
    for split in ("valid", "test"):
        value = perplexity(model, examples[split], tokenizer.pad_token_id, cfg.sft.micro_batch_size)
        metrics |= {f"{split}_perplexity": value, f"{split}_loss": value and math.log(value)}
    return metrics
