"""Tracking: what a stage measures goes to metrics.jsonl, to the terminal and to W&B."""

import json
import math
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from transformers import TrainerCallback

from rlhf.errors import NumericsError
from rlhf.files import nan_to_null, writing
from rlhf.tracking.display import open_display
from rlhf.tracking.meanings import Meaning
from rlhf.tracking.wandb_run import WandbRun, scrub

__all__ = ["SilentTracker", "Tracker", "TrackerCallback", "scrub"]

METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"


class Tracker:
    """Records a stage while it runs; a context manager.

    A step is a count of finished steps: 1 after the first. Log a step before its checkpoint is saved: a stage that goes
    on from first_step keeps the lines up to it and repeats the later ones, so its files equal those of a run that was
    never stopped. headline: the names of the four to six metrics to show in the terminal.
    """

    def __init__(
        self,
        stage_dir: str | Path,
        stage: str,
        total_steps: int,
        tracking_cfg,
        resolved_config: dict,
        group: str,
        first_step: int = 0,
        headline: Sequence[str] = (),
    ):
        self.folder, self.stage = Path(stage_dir), stage
        self._total_steps, self._first_step, self._headline = total_steps, first_step, headline
        self._tracking, self._config, self._group = tracking_cfg, resolved_config, group

    def __enter__(self) -> "Tracker":
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in (METRICS, SAMPLES):
                _cut(self.folder / name, self._first_step)
            self._metrics = (self.folder / METRICS).open("a", encoding="utf-8")
        cfg = self._tracking
        self._wandb = WandbRun(
            self.folder,
            self.stage,
            self._group,
            mode=getattr(cfg.wandb, "value", cfg.wandb),
            project=cfg.project,
            config=self._config,
            resumed=self._first_step > 0,
        )
        self._display = open_display(self.stage, self._total_steps, self._first_step, self._headline)
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._display.close()
        self._wandb.finish(failed=error is not None)
        with suppress(OSError):  # each line is flushed when it is written; on a full disk that has failed already
            self._metrics.close()

    def log(self, step: int, metrics: dict) -> None:
        """Records metrics, numbers under their names, of the state after `step` steps. NaN and infinity become null."""
        values = nan_to_null(metrics)
        with writing(self.folder / METRICS):
            self._metrics.write(_json_line({"step": step, "time": round(time.time(), 3), **values}))
            self._metrics.flush()
        self._display.update(step, values)
        self._wandb.log(step, {name: value for name, value in values.items() if value is not None})

    def log_samples(self, step: int, rows: list[dict]) -> None:
        """Records samples, e.g. {"prompt", "response", "score"}, to samples.jsonl and as a table in W&B."""
        rows = nan_to_null(rows)
        path = self.folder / SAMPLES
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.writelines(_json_line({"step": step, **row}) for row in rows)
        self._wandb.log_table(step, "samples", rows)

    def advance(self, step: int) -> None:
        """Moves the progress bar to `step` finished steps."""
        self._display.update(step, {})

    def link_artifact(self, manifest_path: str | Path, kind: str = "model") -> None:
        """Attaches a finished artifact's manifest to the W&B run."""
        self._wandb.link_artifact(Path(manifest_path), kind)

    def end_display(self) -> None:
        """Shows the last step and ends the progress bar: what follows is not counted in steps."""
        self._display.close()

    def expect(self, total_steps: int) -> None:
        """Sets the number of steps, where it is known only once training has begun."""
        self._display.expect(total_steps)


class SilentTracker:
    """Takes what a Tracker takes and records nothing: what ranks above 0 have in its place."""

    def __init__(self, stage: str):
        self.stage = stage

    def __enter__(self) -> "SilentTracker":
        return self

    def __exit__(self, kind, error, trace) -> None:
        pass

    def _ignore(self, *args, **kwargs) -> None:
        pass

    log = log_samples = advance = link_artifact = expect = end_display = _ignore


def _json_line(record: dict) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _cut(path: Path, first_step: int) -> None:
    """Takes the lines of steps that will be done again off a log; all of them where the stage starts anew."""
    if not path.exists():
        return
    kept = _bytes_up_to(path, first_step) if first_step else 0
    if kept:
        os.truncate(path, kept)
    else:
        path.unlink()


def _bytes_up_to(path: Path, last_step: int) -> int:
    """Length of a log's lines of steps up to last_step."""
    kept = 0
    with path.open("rb") as file:
        for line in file:
            if _step_of(line) > last_step:
                break
            kept += len(line)
    return kept


def _step_of(line: bytes) -> float:
    try:
        return json.loads(line)["step"] if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):  # what a kill or a full disk left of a line
        return math.inf


class TrackerCallback(TrainerCallback):
    """Forwards what a Hugging Face Trainer logs to a Tracker, under our names, and stops at a loss that is not finite.

    Set logging_nan_inf_filter=False, or the Trainer replaces a NaN by the mean of the losses before it.
    rename: {their name: ours} beyond loss -> train/loss, eval_x -> eval/x, learning_rate -> lr; None leaves one out.
    """

    def __init__(self, tracker: Tracker, rename: dict[str, str | None] | None = None):
        self.tracker = tracker
        self.rename = {"loss": "train/loss", "learning_rate": "lr", "grad_norm": "grad_norm", "epoch": "epoch"} | (
            rename or {}
        )

    def on_train_begin(self, args, state, control, **kwargs):
        self.tracker.expect(state.max_steps)

    def on_train_end(self, args, state, control, **kwargs):
        self.tracker.end_display()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "train_runtime" in logs:
            return  # the Trainer's closing summary of itself
        names = {name: self._our_name(name) for name in logs}
        metrics = {names[name]: value for name, value in logs.items() if names[name]}
        self.tracker.log(state.global_step, metrics)
        self._require_finite(state.global_step, logs)

    def on_step_end(self, args, state, control, **kwargs):
        self.tracker.advance(state.global_step)

    def _our_name(self, name: str) -> str | None:
        if name in self.rename:
            return self.rename[name]
        if name.endswith(("_runtime", "_per_second")):
            return None
        return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"

    def _require_finite(self, step: int, logs: dict) -> None:
        for name in ("loss", "eval_loss", "grad_norm"):
            value = logs.get(name)
            if value is not None and not math.isfinite(value):
                stage = self.tracker.stage
                raise NumericsError(
                    f"{stage} step {step}: {name} is {value}. The last checkpoint is kept; lower {stage}.learning_rate "
                    "or mend the records of this step, and start again with run.resume=never"
                )


EVERY_STAGE = {
    "step": Meaning(
        "optimizer steps; rollouts in PPO", "finished steps; the state after them is measured", "the x axis in W&B"
    ),
    "time": Meaning("seconds since 1970", "when the line was written", ""),
}
TRAINERS = {
    "lr": Meaning(
        "",
        "learning rate of the step",
        "rises over warmup_share of the steps, then falls to 0 as a cosine",
    ),
    "grad_norm": Meaning(
        "norm, >= 0",
        "of the gradient, before max_grad_norm clips it",
        "steady, with single peaks. Growing without end: lower the learning rate",
    ),
    "epoch": Meaning("passes", "over the training data so far", ""),
}
