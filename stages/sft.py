"""Stage 1: fine-tunes a model on demonstrations. `python -m stages.sft`"""

import math
from pathlib import Path

import hydra
import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, set_seed
from trl import SFTConfig

from rlhf import cli
from rlhf.config import Config
from rlhf.data import load_demonstrations, require_split
from rlhf.hashing import json_sha256, weights_fingerprint
from rlhf.heldout import perplexity
from rlhf.models import (
    build_policy,
    enable_gradient_checkpointing,
    fit_embeddings,
    load_policy,
    require_context,
    set_dropout,
)
from rlhf.sft import CheckedSFTTrainer, rehearsal, sft_examples, texts_of
from rlhf.stage import Stage, as_dict
from rlhf.tokenizer import load_tokenizer, train_tokenizer
from rlhf.tracking import TrackerCallback
from rlhf.trainer import StopCallback, num_steps, require_batch, steps_done, train, training_arguments

HEADLINE = ("train/loss", "eval/loss", "lr")
UNLOGGED = dict.fromkeys(["num_tokens", "eval_num_tokens"])  # TRL counts anew when a stopped stage goes on


def run(cfg: Config, replace: bool = False) -> Path:
    """Trains the SFT policy and returns its artifact."""
    stage = Stage("sft", cfg, {} if cfg.sft.start_from is None else {"start_from": cfg.sft.start_from})
    if not stage.open(replace):
        return stage.folder
    set_seed(cfg.seed)
    demonstrations = load_training_data(cfg, stage)
    model, tokenizer, base_model = load_base(cfg, stage, demonstrations["train"])
    examples = {
        split: sft_examples(tokenizer, part, cfg.sft.objective, cfg.data, split, stage.report)
        for split, part in demonstrations.items()
    }
    stage.print_report()
    require_batch(len(examples["train"]), cfg.sft.batch_size, "sft.batch_size", "training demonstrations")
    require_split(examples, "valid", "data.demonstrations")
    total = num_steps(len(examples["train"]), cfg.sft)
    first_step = steps_done(stage.checkpoint_folder)
    with cli.StopRequest() as request, stage.tracker(total, HEADLINE, first_step) as tracker:
        metrics = fit(cfg, stage, model, tokenizer, examples, tracker, request)
        model.save_pretrained(stage.model_folder)
        tokenizer.save_pretrained(stage.model_folder)
        return stage.finish(tracker, base_model=base_model, metrics=metrics)


def load_training_data(cfg: Config, stage: Stage) -> dict[str, list]:
    """Demonstrations by split; the training ones with the share of earlier data that is rehearsed."""
    splits = load_demonstrations(cfg.data, stage.report)
    require_split(splits, "valid", "data.demonstrations")
    if cfg.sft.rehearsal_share > 0:
        earlier = stage.manifests["start_from"]
        num_new = len(splits["train"])
        splits["train"] += rehearsal(cfg.data, cfg.sft.rehearsal_share, earlier, num_new, stage.report, cfg.seed)
        stage.report.count_splits("demonstrations", splits)
    stage.claim_prompts(splits["train"])
    return splits


def load_base(cfg: Config, stage: Stage, demonstrations: list):
    """The model to start from, its tokenizer, and what the manifest says of it: {name, fingerprint}."""
    dtype, attention = getattr(torch, cfg.model.dtype.value), cfg.model.attention.value
    if "start_from" in stage.manifests:
        folder = stage.input_paths["start_from"] / "model"
        model, tokenizer = load_policy(folder, dtype, attention), load_tokenizer(str(folder))
        base_model = stage.manifests["start_from"]["base_model"]
    elif cfg.model.path is None:
        tokenizer = train_tokenizer(texts_of(demonstrations), cfg.model.scratch.vocab_size)
        model = build_policy(cfg.model.scratch, tokenizer, dtype, attention)
        base_model = {"name": "scratch", "fingerprint": json_sha256({**as_dict(cfg.model.scratch), "seed": cfg.seed})}
    else:
        options = {"revision": cfg.model.revision, "trust_remote_code": cfg.model.trust_remote_code}
        tokenizer = load_tokenizer(cfg.model.path, chat_template=cfg.model.chat_template, **options)
        model = load_policy(cfg.model.path, dtype, attention, **options)
        base_model = {"name": cfg.model.path, "fingerprint": fingerprint(cfg.model.path, model)}
    require_context(model, cfg.data)
    fit_embeddings(model, tokenizer)
    if cfg.model.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    return model, tokenizer, base_model


def fingerprint(path: str, model) -> str:
    """What the base model is: the hash of its weights, or the hub's commit."""
    return weights_fingerprint(path) if Path(path).is_dir() else model.config._commit_hash


def fit(cfg: Config, stage: Stage, model, tokenizer, examples: dict, tracker, request) -> dict[str, float]:
    """Trains to the best validation loss; returns loss and perplexity of the validation and test splits."""
    set_dropout(model, cfg.sft.dropout)
    datasets = {split: Dataset.from_list(part) for split, part in examples.items() if part}
    arguments = SFTConfig(
        **training_arguments(stage.checkpoint_folder, cfg.sft, cfg.seed, cfg.tracking.log_steps),
        metric_for_best_model="eval_loss",
        gradient_checkpointing=False,  # TRL would switch it on; model.gradient_checkpointing decides
        packing=cfg.sft.packing,
        max_length=cfg.data.max_prompt_tokens + cfg.data.max_response_tokens,
    )
    trainer = CheckedSFTTrainer(
        model=model,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=datasets["train"],
        eval_dataset=datasets["valid"],
        callbacks=[EarlyStoppingCallback(cfg.sft.patience), StopCallback(request), TrackerCallback(tracker, UNLOGGED)],
    )
    train(trainer, stage.checkpoint_folder, request)
    set_dropout(model, 0.0)
    metrics = {}
    for split in ("valid", "test"):
        value = perplexity(model, examples[split], tokenizer.pad_token_id, cfg.sft.micro_batch_size)
        metrics |= {f"{split}_perplexity": value, f"{split}_loss": value and math.log(value)}
    return metrics


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def main(cfg) -> None:
    cli.run_stage(run, cfg)


if __name__ == "__main__":
    cli.entry(main)
