"""What the SFT and the reward trainer share: arguments, global steps, stopping, checkpoints, the checks of numbers."""

import gc
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from rlhf import distributed
from rlhf.checkpoints.trainer import PortableCheckpoints
from rlhf.config.schema import DeepspeedConfig, Engine
from rlhf.console import say
from rlhf.engines.adam import MasterAdamW, sum_in_float32
from rlhf.engines.deepspeed_config import deepspeed_config
from rlhf.errors import NumericsError, Stopped
from rlhf.text.encoding import decode_ids
from rlhf.training.epochs import EpochBatches, WithBlanks, steps_per_epoch


def training_arguments(
    folder,
    section,
    seed: int,
    log_steps: int,
    deepspeed: DeepspeedConfig | None = None,
    dtype: torch.dtype = torch.float32,
    **options,
) -> dict:
    """What the SFT and the reward trainer share. section: `sft` or `reward` of the config; options: what differs.

    deepspeed: that section of the config; dtype: of the weights that train (`trained_dtype`).
    """
    micro_batch_size = min(section.micro_batch_size, section.batch_size // distributed.world_size())
    accumulation = section.batch_size // (micro_batch_size * distributed.world_size())
    engine = {"bf16": False}  # the weights already have model.dtype
    if deepspeed is not None and deepspeed.engine is Engine.deepspeed:
        _meet_in_accelerate()
        told = deepspeed_config(deepspeed, micro_batch_size, accumulation, section.max_grad_norm, dtype)
        engine = _deepspeed_arguments(told, dtype)
    return {
        "output_dir": str(folder),
        "num_train_epochs": section.num_epochs,
        "per_device_train_batch_size": micro_batch_size,
        "per_device_eval_batch_size": section.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": section.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": section.warmup_share,  # below 1 it is a share of the steps
        "weight_decay": section.weight_decay,
        "max_grad_norm": section.max_grad_norm,
        "eval_strategy": "steps",
        "eval_steps": section.eval_steps,
        "save_strategy": "steps",
        "save_steps": section.eval_steps,
        "save_total_limit": None,  # the Trainer would remove old ones before the new one is on the disk
        "load_best_model_at_end": True,
        "restore_callback_states_from_checkpoint": True,  # or patience would count anew after a stop
        "logging_nan_inf_filter": False,  # the filter would hide a NaN loss behind a running mean
        "logging_steps": log_steps,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": seed,
        "use_cpu": not torch.cuda.is_available(),  # else bfloat16 is refused where there is no GPU
        **engine,
        **options,
    }


def trained_dtype(model: nn.Module) -> torch.dtype:
    """bfloat16 where weights that train are: Adam then works on float32 copies. Adapters are float32 on any base."""
    low = any(p.dtype is torch.bfloat16 for p in model.parameters() if p.requires_grad)
    return torch.bfloat16 if low else torch.float32


def _deepspeed_arguments(told: dict, dtype: torch.dtype) -> dict:
    return {
        "deepspeed": told,
        "accelerator_config": {"use_configured_state": True},
        "bf16": dtype is torch.bfloat16,  # must repeat what DeepSpeed is told; it does not autocast
    }


def _meet_in_accelerate() -> None:
    """Tells accelerate of the ranks that have met.

    TrainingArguments would do so without a backend when DeepSpeed is on, and accelerate then takes every CPU rank for
    rank 0 of 1. A state made beforehand is the documented way round (use_configured_state).
    """
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)  # as TrainingArguments does: an earlier stage's stays else
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    try:
        PartialState(backend=torch.distributed.get_backend())
    finally:
        del os.environ["ACCELERATE_USE_DEEPSPEED"]


class GlobalSteps(PortableCheckpoints):
    """A mixin for trainers: what an optimizer step does, logs and saves is the same however its batch is split.

    A subclass defines `blank(example)`, an example that counts for nothing, and `first_ids(inputs)`, the token ids that
    name a batch in an error. Its compute_loss gives a micro-batch's share of the loss of the whole step, times the
    number of ranks, as DeepSpeed takes the mean over ranks. `note` adds to the sums behind the metrics.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.remove_callback(PrinterCallback)
        self.add_callback(Window())
        self._sums: dict[str, float] = {}  # of this rank, since the last step
        self._require_ranks()
        if not self.is_deepspeed_enabled:  # which has float32 sums of its own
            sum_in_float32(self.trained.values())

    def _require_ranks(self) -> None:
        """Raises where accelerate has dropped ranks or DeepSpeed, which it does in silence."""
        ranks = (self.args.world_size, self.args.process_index)
        expected = (distributed.world_size(), distributed.rank() if distributed.world_size() > 1 else 0)
        if ranks != expected or self.is_deepspeed_enabled != (self.args.deepspeed is not None):
            raise RuntimeError(
                f"the trainer sees {ranks[0]} processes and is number {ranks[1]}, torch.distributed {expected}; "
                f"DeepSpeed is {'on' if self.is_deepspeed_enabled else 'off'}"
            )

    @property
    def window(self) -> "Window":
        return next(callback for callback in self.callback_handler.callbacks if isinstance(callback, Window))

    @staticmethod
    def get_optimizer_cls_and_kwargs(args, model=None) -> tuple[type, dict]:
        """The Trainer's AdamW, with float32 copies of bfloat16 weights."""
        return MasterAdamW, Trainer.get_optimizer_cls_and_kwargs(args, model)[1]

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        args = self.args
        batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        return torch.utils.data.DataLoader(
            WithBlanks(self.train_dataset, self.blank),
            batch_sampler=EpochBatches(
                num_examples=len(self.train_dataset),
                batch_size=batch_size,
                micro_batch_size=args.per_device_train_batch_size,
                seed=args.seed,
                step=lambda: self.state.global_step,
            ),
            collate_fn=self.data_collator,
            generator=torch.Generator(),  # or each epoch would draw from the RNG of dropout
        )

    def get_batch_samples(self, *args, **kwargs):
        if self._has_stopped_early():  # in a run that was killed between that and its end
            return [], None
        return super().get_batch_samples(*args, **kwargs)

    def _has_stopped_early(self) -> bool:
        patient = [c for c in self.callback_handler.callbacks if isinstance(c, EarlyStoppingCallback)]
        return any(c.early_stopping_patience_counter >= c.early_stopping_patience for c in patient)

    def note(self, **values: float) -> None:
        """Adds this rank's numbers to the sums of the present step."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def check_loss(self, loss: Tensor, inputs: dict) -> None:
        """Raises NumericsError on all ranks when the loss of any is not finite."""
        with distributed.failing_together():
            check_loss(loss, self.state.global_step + 1, self.processing_class, self.first_ids(inputs))

    def training_step(self, model, inputs, *args, **kwargs):
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.note(loss=loss.item() / distributed.world_size())
        self._check_gradient(inputs)
        if self.accelerator.sync_gradients:
            self.window.add(self._sums)
            self._sums = {}
        return loss

    def _check_gradient(self, inputs: dict) -> None:
        step = self.state.global_step + 1
        if self.engine is None:
            check_gradient(self.model, step, self.processing_class, self.first_ids(inputs))
        elif self.accelerator.sync_gradients:
            check_step(self.engine, step)

    def log(self, logs: dict, *args, **kwargs) -> None:
        if "loss" in logs:
            sums = self.window.close()
            self.fill_in(logs, sums)
        super().log(logs, *args, **kwargs)

    def fill_in(self, logs: dict, sums: dict[str, float]) -> None:
        """Writes the metrics of the steps since the last line. The Trainer's own mean forgets those before a stop."""
        logs["loss"] = sums["loss"] / sums["steps"]


class Window(TrainerCallback, ExportableState):
    """Sums over the steps and ranks since the last line of metrics. Saved with a checkpoint, so that a run that goes on
    from between two lines logs the same ones."""

    def __init__(self):
        self.sums: dict[str, float] = {}

    def add(self, own: dict[str, float]) -> None:
        """Adds one step: the sums of this rank and of all others."""
        names = sorted(own)
        total = distributed.over_ranks(torch.tensor([own[name] for name in names], dtype=torch.float64)).tolist()
        for name, value in [*zip(names, total, strict=True), ("steps", 1.0)]:
            self.sums[name] = self.sums.get(name, 0.0) + value

    def close(self) -> dict[str, float]:
        """The sums, which begin anew."""
        sums, self.sums = self.sums, {}
        return sums

    def state(self) -> dict:
        return {"args": {}, "attributes": {"sums": dict(self.sums)}}


class StopCallback(TrainerCallback):
    """Saves and stops all ranks at the next step once one was asked to stop."""

    def __init__(self, request):
        self.request = request

    def on_train_begin(self, args, state, control, **kwargs):
        control.should_save = control.should_log = control.should_evaluate = False  # as the checkpoint left them
        if state.global_step == 0:
            torch.manual_seed(args.seed + args.process_index)  # ranks drop out differently

    def on_step_end(self, args, state, control, **kwargs):
        if self.request.on_any_rank():
            control.should_save = control.should_training_stop = True


def num_steps(num_examples: int, section) -> int:
    """Optimizer steps that num_examples make. section: `sft` or `reward` of the config."""
    return math.ceil(steps_per_epoch(num_examples, section.batch_size) * section.num_epochs)


def train(trainer, checkpoint: Path | None, stop: StopCallback) -> None:
    """Trains to the end, going on from the checkpoint; then the model is a plain, whole one on every rank.

    Raises Stopped when a stop was asked for.
    """
    trainer.add_callback(stop)
    if checkpoint:
        say(f"going on from {checkpoint}")
    with _forgetting_deepspeed():
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    if stop.request.on_any_rank():
        raise Stopped(f"stopped at step {trainer.state.global_step}, saved; {stop.request.going_on} from there")
    if trainer.engine is not None:
        _leave_deepspeed(trainer)


def _leave_deepspeed(trainer) -> None:
    """Frees DeepSpeed's buffers and gives every rank the whole model, without hooks."""
    engine, model = trainer.engine, trainer.model
    sharded = trainer.args.hf_deepspeed_config.is_zero3()
    whole = _whole_parameters(model, sharded)
    engine.destroy()
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter in whole:
                module._parameters[name] = whole[parameter]
    trainer.model_wrapped = trainer.model
    trainer.deepspeed = trainer.optimizer = trainer.lr_scheduler = None
    trainer.accelerator.free_memory()
    gc.collect()


@contextmanager
def _forgetting_deepspeed() -> Iterator[None]:
    """Afterwards transformers loads models as ever; under ZeRO-3 it would share out whatever is loaded next."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    try:
        yield
    finally:
        unset_hf_deepspeed_config()


def _whole_parameters(model: nn.Module, sharded: bool) -> dict[nn.Parameter, nn.Parameter]:
    """Copies of what DeepSpeed holds: all parameters under ZeRO-3, else the trained ones, which lie in its buffers."""
    parameters = [p for p in model.parameters() if sharded or p.requires_grad]
    gathered = nullcontext()
    if sharded:
        from deepspeed.runtime.zero import GatheredParameters

        gathered = GatheredParameters(parameters)
    with gathered:
        return {p: nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad) for p in parameters}


def check_loss(loss: Tensor, step: int, tokenizer, ids: Tensor) -> None:
    """Raises NumericsError naming the step and the batch's first text when its loss is not finite. ids: [T]."""
    _require_finite("loss", loss, step, tokenizer, ids)


def check_gradient(model, step: int, tokenizer, ids: Tensor) -> None:
    """The same for the gradient, before it reaches the weights."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    _require_finite("norm of the gradient", norm, step, tokenizer, ids)


def check_step(engine, step: int) -> None:
    """Raises NumericsError where DeepSpeed met a gradient that is not finite: it would skip the step and go on."""
    norm = engine.get_global_grad_norm()
    if norm is None:  # ZeRO stage 0 does not look at it: then a bad gradient is in the weights, which are not saved
        norm = torch.nn.utils.get_total_norm(list(engine.module.parameters()))
    norm = float(norm)
    if not (engine.was_step_applied() and math.isfinite(norm)):
        raise NumericsError(
            f"step {step}: the gradient is not finite (its norm is {norm}). The last checkpoint is kept; a lower "
            "learning rate or a look at the records of this step may help"
        )


def _require_finite(name: str, value: Tensor, step: int, tokenizer, ids: Tensor) -> None:
    if not torch.isfinite(value):
        text = decode_ids(tokenizer, ids.tolist())
        raise NumericsError(
            f"step {step}: the {name} is {value.item()} on the batch that begins with {text[:80]!r}. "
            "The last checkpoint is kept; a lower learning rate or a look at that record may help"
        )
