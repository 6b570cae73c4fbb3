"""Sealing a stage's folder as an artifact."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlhf.artifacts.manifest import (
    CHECKPOINTS,
    MANIFEST,
    SCHEMA,
    is_complete,
    load_manifest,
    manifest_sha256,
    render,
    require_safe_name,
)
from rlhf.artifacts.provenance import git_state, package_versions
from rlhf.errors import ArtifactError, NumericsError
from rlhf.files import nan_to_null, plain, sync, temporary_name, write_durably, writing
from rlhf.hashing import chat_template_sha256, config_sha256, file_sha256, flat, tokenizer_sha256

NOT_PART = {MANIFEST, temporary_name(Path(MANIFEST)).name, CHECKPOINTS, "wandb"}


def commit(
    stage_dir: str | Path,
    stage: str,
    *,
    config: dict,
    data: list[dict],
    inputs: list[dict],
    base_model: dict | None,
    metrics: dict,
    seconds: float,
    adapter: dict | None = None,
    reward_norm: dict | None = None,
    rules: Sequence[dict] = (),
    elsewhere: str = "another run.dir",
) -> dict[str, Any]:
    """Seals a stage's folder as an artifact by writing manifest.json; returns the manifest.

    config: the values that the stage's result depends on, nested or under dotted keys; `stale_reasons` compares them.
    data: [{path, records, sha256}]. inputs: [input_record(...)]. base_model: {name, fingerprint}.
    rules: [{key, rule, path, sha256}], the code of the rules that the stage asks, see rlhf/artifacts/dependencies.py.
    elsewhere: what to choose where the folder cannot be written.
    Everything in the folder becomes part of it, except checkpoints/ and wandb/.
    """
    folder = Path(stage_dir)
    if is_complete(folder):
        raise ArtifactError(f"{folder}: holds a finished artifact already; move it away or choose another run.dir")
    with writing(folder, elsewhere):
        files = {path.relative_to(folder).as_posix(): path for path in _payload(folder)}
        model = folder / "model"
        manifest = {
            "schema": SCHEMA,
            "stage": stage,
            "status": "complete",
            "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "inputs": plain(inputs),
            "data": plain(data),
            "rules": plain(list(rules)),
            "base_model": plain(base_model),
            "adapter": plain(adapter),
            "tokenizer_sha256": tokenizer_sha256(model) if model.is_dir() else None,
            "chat_template_sha256": chat_template_sha256(model) if model.is_dir() else None,
            "files": {name: _sync_and_hash(path) for name, path in files.items()},
            "sizes": {name: path.stat().st_size for name, path in files.items()},
            "metrics": nan_to_null(metrics),
            "reward_norm": _require_finite(plain(reward_norm)),
            "config": flat(config),
            "config_sha256": config_sha256(config),
            "versions": package_versions(),
            "git": git_state(),
            "seconds": round(seconds, 1),
        }
        _sync_folders(folder)
    write_durably(folder / MANIFEST, render(manifest), elsewhere)
    return load_manifest(folder)


def input_record(role: str, path: str | Path, stage_dir: str | Path) -> dict[str, str]:
    """How a manifest names an artifact that its stage consumed. Take it when the stage starts, not when it ends."""
    relative = Path(os.path.relpath(path, stage_dir)).as_posix()
    return {"role": role, "path": relative, "sha256": manifest_sha256(path)}


def _payload(folder: Path) -> list[Path]:
    """The files that belong to the artifact, sorted."""
    paths = [path for path in sorted(folder.rglob("*")) if path.relative_to(folder).parts[0] not in NOT_PART]
    for path in paths:
        require_safe_name(folder, path.relative_to(folder).as_posix())
    return [path for path in paths if not path.is_dir()]


def _sync_and_hash(path: Path) -> str:
    sync(path)  # a manifest that survives a power cut must not speak of files that do not
    return file_sha256(path)


def _sync_folders(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            sync(path)


def _require_finite(reward_norm: dict | None) -> dict | None:
    for key, value in (reward_norm or {}).items():
        if isinstance(value, str):  # NaN, inf
            raise NumericsError(f"reward_norm.{key} is {value}: PPO cannot normalise scores with it; train again")
    return reward_norm
