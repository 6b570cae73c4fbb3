"""Weights & Biases as a guest: it sees neither secrets nor home paths, and when it fails the training goes on.

A failed W&B costs one warning. Nothing that a run computes depends on it.
"""

import json
import os
import re
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf.files import plain

SECRET_NAME = re.compile(
    r"(^|[_.-])(api_?key|access_?key|private_?key|token|password|passwd|secret|credentials?)($|[_.-])", re.I
)
USER_IN_URL = re.compile(r"(\w+://)[^/@\s]+@")


def scrub(values: Any) -> Any:
    """The same values without what must not be published.

    Entries named like a secret are dropped; the values of secret environment variables, the user part of URLs and the
    path of the home folder are taken out of every text.
    """
    hidden = [value for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) >= 8]
    homes = {str(Path.home()), os.path.realpath(Path.home())} - {"/"}
    home = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, homes))})(?![\w.-])") if homes else None
    return _scrub(values, hidden, home)


def _scrub(value: Any, hidden: list[str], home: re.Pattern | None) -> Any:
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if not _names_a_secret(str(key))}
        return {key: _scrub(item, hidden, home) for key, item in kept.items()}
    if isinstance(value, list | tuple):
        return [_scrub(item, hidden, home) for item in value]
    if not isinstance(value, str):
        return value
    for secret in hidden:
        value = value.replace(secret, "***")
    value = USER_IN_URL.sub(r"\1***@", value)
    return home.sub("~", value) if home else value


def _names_a_secret(key: str) -> bool:
    return bool(SECRET_NAME.search(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key)))  # apiKey -> api_Key


class WandbRun:
    """One W&B run of a stage. Every call is safe: the first failure is told once and ends W&B for this stage.

    Online without a key or a network it is an offline run, which keeps everything for `wandb sync`.
    """

    def __init__(
        self, stage_dir: Path, stage: str, group: str, *, mode: str, project: str, config: dict, resumed: bool
    ):
        self._folder, self._stage, self._group = stage_dir, stage, _as_name(scrub(group))
        self._run = None
        if mode == "online" and (reason := _failure(lambda: self._start(mode, project, config, resumed))):
            where = f"{os.path.relpath(stage_dir)}/wandb/offline-run-*"
            _tell(f"W&B cannot go online ({reason}); this run is kept offline, `wandb sync {where}` sends it later")
            mode = "offline"
            self._guard(lambda: self._start(mode, project, config, resumed=True))  # under the id that is there now
        elif mode == "offline":
            self._guard(lambda: self._start(mode, project, config, resumed))

    def log(self, step: int, values: dict) -> None:
        self._when_running(lambda run: run.log(values, step=step))

    def log_table(self, step: int, name: str, rows: list[dict]) -> None:
        self._when_running(lambda run: _log_table(run, step, name, rows))

    def link_artifact(self, manifest_path: Path, kind: str) -> None:
        """Attaches an artifact's manifest, scrubbed, to the run. kind: W&B's word for what it is, e.g. "model"."""
        self._when_running(lambda run: self._link(run, Path(manifest_path), kind))

    def finish(self, failed: bool) -> None:
        self._when_running(lambda run: run.finish(exit_code=1 if failed else 0))

    def _start(self, mode: str, project: str, config: dict, resumed: bool) -> None:
        import wandb

        wandb.setup(settings=wandb.Settings(silent=True))  # no questions about an account, nothing on our terminal
        self._run = wandb.init(
            project=project,
            group=self._group,
            job_type=self._stage,
            name=f"{self._group}-{self._stage}",
            dir=os.path.relpath(self._folder),  # an absolute path would be written into the run's logs
            id=_run_id(self._folder, resumed),
            resume="allow",
            config=scrub(plain(config)),
            settings=_settings(wandb, mode, program=f"stages.{self._stage}"),
        )

    def _link(self, run, manifest_path: Path, kind: str) -> None:
        import wandb

        manifest = json.loads(manifest_path.read_text())
        copy = self._folder / "wandb" / f"{run.id}-manifest.json"
        copy.write_text(json.dumps(scrub(manifest), indent=2))
        artifact = wandb.Artifact(f"{self._group}-{self._stage}", kind, metadata=scrub(manifest.get("metrics", {})))
        # "immutable" uploads this very file; the other policy copies it below the home folder and records that path.
        artifact.add_file(os.path.relpath(copy), name=manifest_path.name, policy="immutable", skip_cache=True)
        run.log_artifact(artifact)

    def _when_running(self, call: Callable) -> None:
        if self._run is not None:
            self._guard(lambda: call(self._run))

    def _guard(self, call: Callable[[], None]) -> None:
        if reason := _failure(call):
            self._run = None
            _tell(f"W&B stopped ({reason}); the run goes on without it")


def _failure(call: Callable[[], None]) -> str | None:
    """Why a call of W&B failed, in a line; None where it did not."""
    try:
        call()
        return None
    except Exception as error:  # network, disk, a dead service process, a changed API: W&B has no common base class
        reason = (str(error).strip().splitlines() or [""])[0]
        _tear_down()
        return f"{type(error).__name__}: {scrub(reason)}"


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def _settings(wandb, mode: str, program: str):
    return wandb.Settings(
        mode=mode,
        silent=True,
        console="off",  # our terminal stays ours
        program=program,
        host="",
        username="",
        disable_git=True,
        disable_code=True,
        save_code=False,
        x_disable_meta=True,  # command line, folders, user
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,  # can name local paths
        init_timeout=30,  # seconds to wait for the server before the run goes on without it
        finish_timeout=60,
    )


def _run_id(folder: Path, resumed: bool) -> str:
    """The id under which W&B knows this stage of this run, kept so that a resumed stage goes on in the same W&B run."""
    path = folder / "checkpoints" / "wandb_id"
    if not (resumed and path.exists()):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(4))
    return path.read_text()


def _as_name(text: str) -> str:
    """Text with only the characters that W&B allows in a name."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-") or "run"


def _log_table(run, step: int, name: str, rows: list[dict]) -> None:
    import wandb

    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = wandb.Table(columns=columns, data=[[_cell(row.get(column)) for column in columns] for row in rows])
    table.bind_to_run(run, name, step)  # else W&B also makes an artifact of it, copied below the home folder
    run.log({name: table}, step=step)


def _cell(value: Any) -> Any:
    """A dialogue as text, a turn a paragraph; anything else as it is."""
    is_dialogue = isinstance(value, list) and all(isinstance(turn, dict) for turn in value)
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in value) if is_dialogue else value


def _tear_down() -> None:
    """Takes W&B's exit hook away, which would print a traceback when its service has died."""
    wandb = sys.modules.get("wandb")
    try:
        wandb and wandb.teardown(exit_code=1)
    except Exception:  # the same failure again, already told
        return
