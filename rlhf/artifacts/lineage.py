"""Where an artifact comes from: itself and its ancestors as a tree in the terminal."""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from rlhf.artifacts.manifest import is_complete, load_manifest, manifest_sha256, verify
from rlhf.errors import ArtifactError, RlhfError
from rlhf.hashing import short
from rlhf.tables import short_number


def main(arguments: list[str]) -> int:
    """`python -m rlhf.artifacts show PATH`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m rlhf.artifacts")
    show = parser.add_subparsers(required=True, metavar="show").add_parser(
        "show", help="print an artifact and its ancestors"
    )
    show.add_argument("path", type=Path, metavar="PATH", help="an artifact, or a run's folder for its last artifacts")
    path = parser.parse_args(arguments).path
    try:
        for artifact in final_artifacts(path):
            _print(Lineage().tree(artifact))
            verify(artifact)  # the exit code speaks of the artifact itself; the tree shows what became of its ancestors
    except RlhfError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def final_artifacts(path: Path) -> list[Path]:
    """The artifact in a folder, or of a run's folder the artifacts that no other of them consumed."""
    stages = [] if is_complete(path) else sorted(child for child in path.glob("*") if is_complete(child))
    if not stages:
        load_manifest(path)  # says what is wrong where there is no artifact either
        return [path]
    consumed = {entry["sha256"] for stage in stages for entry in load_manifest(stage)["inputs"]}
    return [stage for stage in stages if manifest_sha256(stage) not in consumed]


def find_input(artifact: Path, entry: dict) -> Path | None:
    """Where the artifact that a manifest's input entry names is now: in its place, moved to replaced/, or None."""
    run_dir = artifact.absolute().parent
    patterns = ("*", "replaced/*", "../*", "../*/versions/*", "../../*/versions/*")  # the last two are of collections
    nearby = [path for pattern in patterns for path in sorted(run_dir.glob(pattern))]
    places = [_recorded_place(artifact, entry), *(Path(os.path.normpath(path)) for path in nearby)]
    return next((path for path in places if is_complete(path) and manifest_sha256(path) == entry["sha256"]), None)


def ancestry(artifact: Path) -> list[Path]:
    """The artifact and all its ancestors that are still to be found, each once, nearest first."""
    found = [artifact]
    for path in found:
        inputs = (find_input(path, entry) for entry in load_manifest(path)["inputs"])
        found += [parent for parent in inputs if parent is not None and parent not in found]
    return found


def _recorded_place(artifact: Path, entry: dict) -> Path:
    return Path(os.path.normpath(artifact / entry["path"]))


class Lineage:
    """Builds the tree. An ancestor that is reached twice is verified and described once."""

    def __init__(self):
        self._described: set[str] = set()

    def tree(self, artifact: Path, role: str | None = None) -> Tree:
        try:
            digest, manifest = manifest_sha256(artifact), load_manifest(artifact)
        except ArtifactError as error:
            return Tree(_line(role or artifact.name, (str(error), "red")))
        title = [role] if role and role != manifest["stage"] else []
        title += [manifest["stage"], str(artifact), manifest["created"], short(digest)]
        if digest in self._described:
            return Tree(_line(*title, ("as above", "dim")))
        self._described.add(digest)
        node = Tree(_line(*title, _state(artifact)))
        for name, text in _facts(manifest):
            node.add(_line((name, "dim"), text))
        for entry in manifest["inputs"]:
            node.add(self._input(artifact, entry))
        return node

    def _input(self, artifact: Path, entry: dict) -> Tree:
        found, place = find_input(artifact, entry), _recorded_place(artifact, entry)
        if found is None:
            what = f"changed, was {short(entry['sha256'])}" if is_complete(place) else "vanished"
            now = f", is {short(manifest_sha256(place))}" if is_complete(place) else f", was {short(entry['sha256'])}"
            return Tree(_line(entry["role"], str(place), (what + now, "red")))
        return self.tree(Path(os.path.relpath(found)) if not artifact.is_absolute() else found, entry["role"])


def _state(artifact: Path) -> tuple[str, str]:
    try:
        verify(artifact)
    except ArtifactError as error:
        return f"altered: {error}", "red"
    return "verified", "green"


def _facts(manifest: dict) -> Iterator[tuple[str, str]]:
    base = manifest["base_model"]
    if base:
        yield "base model", f"{base['name']}  {short(base['fingerprint'])}"
    if manifest["adapter"]:
        yield "adapter", "  ".join(f"{key} {value}" for key, value in manifest["adapter"].items())
    if manifest["metrics"]:
        yield "metrics", "  ".join(f"{key} {short_number(value)}" for key, value in manifest["metrics"].items())
    for source in manifest["data"]:
        yield "data", f"{source['path']}  {source['records']} records  {short(source['sha256'])}"
    for rule in manifest.get("rules", []):
        yield "rule", f"{rule['rule']}  {rule['path']}  {short(rule['sha256'])}"


def _line(*parts: str | tuple[str, str]) -> Text:
    """Parts with two spaces between, as plain text: a path in brackets is no markup."""
    return Text("  ").join(Text(part) if isinstance(part, str) else Text(*part) for part in parts)


def _print(tree: Tree) -> None:
    width = None if sys.stdout.isatty() else 10_000  # in a file or a pipe every line stays whole
    Console(highlight=False, width=width).print(tree)
