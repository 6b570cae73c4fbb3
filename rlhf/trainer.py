"""What the SFT and the reward trainer share: arguments, stopping, checkpoints, the check of the loss."""

import math
from pathlib import Path

import torch
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback

from rlhf.batches import decode_response
from rlhf.cli import Stopped, say
from rlhf.errors import NumericsError, UserError

COMPLETE = "complete"  # an empty file, the last one written into a checkpoint


def training_arguments(folder, section, seed: int, log_steps: int, **options) -> dict:
    """What the SFT and the reward trainer share. section: `sft` or `reward` of the config; options: what differs."""
    return {
        "output_dir": str(folder),
        "num_train_epochs": section.num_epochs,
        "per_device_train_batch_size": section.micro_batch_size,
        "per_device_eval_batch_size": section.micro_batch_size,
        "gradient_accumulation_steps": section.batch_size // section.micro_batch_size,
        "learning_rate": section.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": section.warmup_share,  # below 1 it is a share of the steps
        "weight_decay": section.weight_decay,
        "max_grad_norm": section.max_grad_norm,
        "eval_strategy": "steps",
        "eval_steps": section.eval_steps,
        "save_strategy": "steps",
        "save_steps": section.eval_steps,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "restore_callback_states_from_checkpoint": True,  # or patience would count anew after a stop
        "logging_nan_inf_filter": False,  # the filter would hide a NaN loss behind a running mean
        "bf16": False,  # the weights already have model.dtype
        "logging_steps": log_steps,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": seed,
        "use_cpu": not torch.cuda.is_available(),
        **options,
    }


class StopCallback(TrainerCallback):
    """Saves and stops at the next step once a stop was asked for; marks each checkpoint that is complete."""

    def __init__(self, request):
        self.request = request

    def on_step_end(self, args, state, control, **kwargs):
        if self.request.received is not None:
            control.should_save = control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs):
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()


def num_steps(num_examples: int, section) -> int:
    """Optimizer steps that transformers.Trainer makes of num_examples. section: `sft` or `reward` of the config."""
    per_epoch = math.ceil(
        math.ceil(num_examples / section.micro_batch_size) / (section.batch_size // section.micro_batch_size)
    )
    return math.ceil(per_epoch * section.num_epochs)


def require_batch(num_examples: int, batch_size: int, key: str, what: str) -> None:
    """Raises UserError when there is less data than one batch."""
    if num_examples == 0:
        raise UserError(f"no {what} are left within data.max_prompt_tokens and data.max_response_tokens; raise these")
    if num_examples < batch_size:
        raise UserError(
            f"{key}={batch_size} is more than the {num_examples} {what} there are; lower it or give more data"
        )


def train(trainer, folder: Path, request) -> None:
    """Trains to the end, going on from the last complete checkpoint. Raises Stopped when a stop was asked for."""
    checkpoint = last_checkpoint(folder)
    trainer.remove_callback(PrinterCallback)
    if checkpoint:
        say(f"going on from {checkpoint}")
    trainer.train(resume_from_checkpoint=checkpoint)
    if request.received is not None:
        raise Stopped(f"stopped at step {trainer.state.global_step}, saved; the same command goes on from there")


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint in folder that is complete, or None."""
    complete = [path.parent for path in Path(folder).glob(f"checkpoint-*/{COMPLETE}")]
    return str(max(complete, key=lambda path: int(path.name.split("-")[1]))) if complete else None


def steps_done(folder: Path) -> int:
    """Steps that the last complete checkpoint in folder holds, 0 where there is none."""
    checkpoint = last_checkpoint(folder)
    return int(checkpoint.split("-")[-1]) if checkpoint else 0


def check_loss(loss: Tensor, step: int, tokenizer, ids: Tensor) -> None:
    """Raises NumericsError naming the step and the batch's first text when its loss is not finite. ids: [T]."""
    _require_finite("loss", loss, step, tokenizer, ids)


def check_gradient(model, step: int, tokenizer, ids: Tensor) -> None:
    """The same for the gradient, before it reaches the weights."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    _require_finite("norm of the gradient", norm, step, tokenizer, ids)


def _require_finite(name: str, value: Tensor, step: int, tokenizer, ids: Tensor) -> None:
    if not torch.isfinite(value):
        text = decode_response(tokenizer, ids.tolist())
        raise NumericsError(
            f"step {step}: the {name} is {value.item()} on the batch that begins with {text[:80]!r}. "
            "The last checkpoint is kept; a lower learning rate or a look at that record may help"
        )
