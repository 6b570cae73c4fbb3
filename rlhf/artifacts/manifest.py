"""manifest.json: reading it, and checking an artifact against it. It is what makes a folder an artifact."""

import json
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from rlhf.errors import ArtifactError
from rlhf.files import parse_json, read_text, reading
from rlhf.hashing import file_sha256, json_sha256, short

SCHEMA = 1
MANIFEST = "manifest.json"
CHECKPOINTS = "checkpoints"
TRAIN_PROMPTS = "train_prompts.txt"  # the keys of the prompts that a stage trained on, one a line
COMMANDS = Path(__file__).parents[2] / "stages"  # python -m stages.NAME is the file NAME.py there
COLLECT = "collect"  # a version of a collection: rankings that people made
PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
FIELDS = {"stage": str, "status": str, "inputs": list, "data": list, "files": dict, "sizes": dict, "config": dict}


def load_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of the artifact in a folder, once the manifest itself is found whole. Weights are not read."""
    folder = Path(path)
    with reading(folder):
        _require_finished(folder)
    text = read_text(folder / MANIFEST)
    manifest = parse_json(text, folder / MANIFEST)
    _require_known_schema(folder / MANIFEST, manifest)
    if render(manifest) != text:
        raise ArtifactError(f"{folder / MANIFEST}: was altered after it was written; {_remedy(folder.absolute().name)}")
    for name, kind in FIELDS.items():
        if not isinstance(manifest.get(name), kind):
            raise ArtifactError(f"{folder / MANIFEST}: field '{name}' is missing or not a {kind.__name__}")
    if manifest["status"] != "complete":
        raise ArtifactError(f"{folder}: status is {manifest['status']}, not complete; {_remedy(manifest['stage'])}")
    return manifest


def verify(path: str | Path) -> dict[str, Any]:
    """The manifest of an artifact whose every file is as it was written. ArtifactError names the first that is not."""
    folder = Path(path)
    manifest = load_manifest(folder)
    remedy = _remedy(manifest["stage"])
    with reading(folder):
        for name in manifest["files"]:
            require_safe_name(folder, name)
        _require_no_strangers(folder, manifest["files"])
        for name in manifest["files"]:  # sizes first: a cut file is found without reading gigabytes
            _require_size(folder / name, manifest["sizes"].get(name), remedy)
        for name, digest in manifest["files"].items():
            _require_digest(folder / name, digest, remedy)
    return manifest


def manifest_sha256(path: str | Path) -> str:
    """The digest by which an artifact is known to its consumers."""
    return file_sha256(Path(path) / MANIFEST)


def stage_named(path: str | Path) -> str | None:
    """The stage that made a folder, as its manifest says, whole or not; None where no manifest of an artifact is there.

    Raises ArtifactError where manifest.json is no JSON: nobody can say what the folder is.
    """
    file = Path(path) / MANIFEST
    if not os.path.isfile(file):  # a hub id, say, or a name that is too long for a file
        return None
    manifest = parse_json(read_text(file), file)
    return manifest.get("stage") if isinstance(manifest, dict) else None


def is_complete(path: str | Path) -> bool:
    return (Path(path) / MANIFEST).is_file()


def _remedy(stage: str) -> str:
    anew = " run.force=true" if _is_command(stage) else ""  # without it a stage does not replace what is there
    return f"copy it again or rerun {_command(stage)}{anew}"


def _command(stage: str) -> str:
    if stage == COLLECT:
        return "python -m reward.collect export"
    return f"python -m stages.{stage}" if _is_command(stage) else "its stage"


def _is_command(stage: str) -> bool:
    return stage.isidentifier() and (COMMANDS / f"{stage}.py").is_file()


def _require_finished(folder: Path) -> None:
    rerun = f"run {_command(folder.absolute().name)}"
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: not there; {rerun} first or point to a finished artifact")
    if not is_complete(folder):
        saved = sorted((folder / CHECKPOINTS).glob("[!.]*-[0-9]*"), key=lambda path: path.stat().st_mtime)
        stopped = f"; the stage was stopped, last checkpoint {CHECKPOINTS}/{saved[-1].name}" if saved else ""
        raise ArtifactError(f"{folder}: not a finished artifact (no {MANIFEST}{stopped}); {rerun} to finish it")


def _require_known_schema(path: Path, manifest: Any) -> None:
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if not isinstance(schema, int):
        raise ArtifactError(
            f"{path}: not the manifest of an artifact ('schema' is {schema!r}); point to a finished one"
        )
    if schema > SCHEMA:
        raise ArtifactError(f"{path}: schema is {schema}, this version knows {SCHEMA}; update the program")


def require_safe_name(folder: Path, name: str) -> None:
    """A listed file lies inside the artifact, is no link out of it, and holds no pickle, which can run code."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or not name.isprintable():
        raise ArtifactError(f"{folder / MANIFEST}: file {name!r} is not a path inside the artifact; do not use it")
    steps = [folder.joinpath(*parts[: depth + 1]) for depth in range(len(parts))]
    link = next((step for step in steps if step.is_symlink()), None)
    if link:
        raise ArtifactError(f"{link}: is a symbolic link; an artifact holds files only, put a copy in its place")
    if parts[0] == "model" and PurePosixPath(name).suffix in PICKLED:
        raise ArtifactError(f"{folder / name}: is a pickle; a model holds safetensors only, remove it or convert it")


def _require_no_strangers(folder: Path, listed: Iterable[str]) -> None:
    """Under model/ a file that nobody listed could be loaded in place of one that was."""
    known = set(listed)
    for path in sorted((folder / "model").rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name not in known and (path.is_symlink() or not path.is_dir()):
            raise ArtifactError(f"{path}: is not listed in {MANIFEST} and could shadow the model's files; remove it")


def _require_size(path: Path, size: int | None, remedy: str) -> None:
    if not path.is_file():
        raise ArtifactError(f"{path}: is missing; {remedy}")
    found = path.stat().st_size
    if found != size:
        what = "truncated" if size is None or found < size else "altered"
        raise ArtifactError(f"{path}: {what}, {found} bytes, {MANIFEST} says {size}; {remedy}")


def _require_digest(path: Path, digest: str, remedy: str) -> None:
    found = file_sha256(path)
    if found != digest:
        raise ArtifactError(f"{path}: altered, sha256 is {short(found)}, {MANIFEST} says {short(digest)}; {remedy}")


def render(manifest: dict) -> str:
    """The manifest file's exact text. Its checksum covers all other fields, so that no edit goes unseen."""
    body = {key: value for key, value in manifest.items() if key != "checksum"}
    return json.dumps({**body, "checksum": json_sha256(body)}, indent=2, allow_nan=False) + "\n"
