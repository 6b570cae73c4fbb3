"""Artifacts: what a stage leaves behind, sealed by a manifest that is written last.

A folder without manifest.json is not an artifact. `verify` reads every file that the manifest lists, so that a consumer
refuses a damaged or mismatched artifact before it loads weights. `python -m rlhf.artifacts show PATH` prints an
artifact and its ancestors.
"""

import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlhf.differences import differences
from rlhf.errors import ArtifactError, NumericsError
from rlhf.files import nan_to_null, plain, sync, temporary_name, write_durably, writing
from rlhf.hashing import chat_template_sha256, config_sha256, file_sha256, flat, short, tokenizer_sha256
from rlhf.manifest import (
    CHECKPOINTS,
    MANIFEST,
    SCHEMA,
    is_complete,
    load_manifest,
    manifest_sha256,
    render,
    require_safe_name,
    verify,
)
from rlhf.provenance import git_state, package_versions

__all__ = [
    "check_parent",
    "check_same",
    "check_same_tokenizer",
    "commit",
    "file_sha256",
    "input_record",
    "is_complete",
    "load_manifest",
    "manifest_sha256",
    "move_aside",
    "stale_reasons",
    "verify",
    "writing",
]

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
    rules: [{key, rule, path, sha256}], the code of the rules that the stage asks, see rlhf/dependencies.py.
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


# ---- what fits what


def check_same(field: str, role_a: str, manifest_a: dict, role_b: str, manifest_b: dict, remedy: str) -> None:
    """Raises ArtifactError where two artifacts differ in a field of their manifests."""
    values = manifest_a[field], manifest_b[field]
    if values[0] != values[1]:
        what = field.removesuffix("_sha256").replace("_", " ")
        shown = [short(value) if isinstance(value, str | None) else value for value in values]
        raise ArtifactError(f"{what} differs: {role_a} has {shown[0]}, {role_b} has {shown[1]}; {remedy}")


def check_same_tokenizer(role_a: str, manifest_a: dict, role_b: str, manifest_b: dict, remedy: str) -> None:
    """Raises ArtifactError unless both artifacts turn dialogues into the same ids."""
    for field in ("tokenizer_sha256", "chat_template_sha256"):
        check_same(field, role_a, manifest_a, role_b, manifest_b, remedy)


def check_parent(reward_manifest: dict, sft_path: str | Path) -> None:
    """Raises ArtifactError where a reward model was trained from another SFT artifact than the policy comes from."""
    parents = [entry["sha256"] for entry in reward_manifest["inputs"] if entry["role"] == "sft"]
    policy = manifest_sha256(sft_path)
    if policy not in parents:
        parent = short(parents[0] if parents else None)
        raise ArtifactError(
            f"reward model's parent is sft {parent}, the policy is sft {short(policy)} ({sft_path}); "
            "train it again (python -m stages.reward run.force=true) or set ppo.allow_other_parent=true"
        )


# ---- what must run again


def stale_reasons(
    stage_dir: str | Path, config: dict, data: list[dict], inputs: list[dict], rules: Sequence[dict] = ()
) -> list[str]:
    """Why a stage must run again, a sentence each; [] where its artifact is up to date. Arguments as in `commit`."""
    folder = Path(stage_dir)
    if not is_complete(folder):
        stopped = folder.is_dir() and any(folder.iterdir())
        return ["stopped before it finished" if stopped else "never ran"]
    try:
        manifest = verify(folder)
    except ArtifactError as error:
        return [str(error)]
    new = {"config": flat(config), "data": plain(data), "inputs": inputs, "rules": rules}
    return [str(difference) for difference in differences(manifest, new)]


def move_aside(stage_dir: str | Path) -> Path:
    """Moves an old artifact or a stopped attempt to <run.dir>/replaced/<stage>-<time>; returns its new place."""
    folder = Path(stage_dir)
    name = f"{folder.name}-{_made_at(folder)}"
    target, number = folder.parent / "replaced" / name, 1
    while target.exists():
        number += 1
        target = target.with_name(f"{name}-{number}")
    with writing(target.parent):
        target.parent.mkdir(exist_ok=True)
        os.rename(folder, target)
        sync(folder.parent)
    return target


def _made_at(folder: Path) -> str:
    """When an artifact was made, or a stopped attempt last changed, as part of a name: 20260101T093000Z."""
    try:
        return load_manifest(folder)["created"].replace("-", "").replace(":", "")
    except ArtifactError:
        return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(folder.stat().st_mtime))


if __name__ == "__main__":
    from rlhf.lineage import main

    sys.exit(main(sys.argv[1:]))
