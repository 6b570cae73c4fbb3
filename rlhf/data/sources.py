"""What a path of the config is: a file (files.py), a folder, a saved `datasets` folder, a hub id.

A folder may also be a version that `python -m reward.collect export` made: verified, and read by what is asked for.

Each is read a row or a batch of rows at a time, and hashed for the manifest.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from rlhf.artifacts.manifest import COLLECT, MANIFEST, stage_named, verify
from rlhf.data.files import FILE_SUFFIXES, READ, read_file, readable
from rlhf.errors import ArtifactError, UserError, first_line
from rlhf.hashing import text_sha256

OTHER_SUFFIXES = (".gz", ".txt", ".arrow", ".zip", ".zst", ".xlsx", ".bz2", ".xz")  # files, but none that we read
DEMONSTRATIONS, RANKINGS = "demonstrations.jsonl", "rankings.jsonl"  # in a version of a collection
DESCRIPTIONS = (MANIFEST, "dataset_info.json", "dataset_infos.json")  # of a folder: no records are in them
HUB_ID = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?")


def open_source(path: str, key: str) -> tuple[Iterator, str]:
    """(raw rows, sha256) of whatever `path`, the value of `key`, is. What a raw row is: files.py."""
    local = os.path.expanduser(path)
    name, _, split = (local, "", "") if os.path.exists(local) else local.partition("#")
    with readable(path):
        if os.path.isfile(local):
            return read_file(path, local), _files_sha256([Path(local)])
        if is_version(local):
            return _open_version(path, Path(local), key)
        if os.path.isdir(name):
            return _open_folder(path, Path(name), split, key)
    if looks_like_hub_id(name):
        return open_hub(path, name, split, key)
    if os.path.exists(name):
        raise UserError(
            f"{key}={path}: " + (f"a file has no splits; use {name}" if split else "not a file or a folder")
        )
    raise UserError(f"{key}={path}: no such file. Paths are relative to the folder you start from ({os.getcwd()})")


def source_sha256(path: str, key: str) -> str:
    """What the report gives for a source: the hash of its bytes, or of a hub id and the fingerprint of its data set."""
    return open_source(path, key)[1]


def is_version(path: str) -> bool:
    """Whether a folder is an export of a collection, whole or not: its manifest names that stage."""
    try:
        return stage_named(os.path.expanduser(path)) == COLLECT
    except ArtifactError as error:
        remedy = "where the folder is no export of a collection, take that file out of it"
        raise ArtifactError(f"{error}; {remedy}") from error


def looks_like_hub_id(name: str) -> bool:
    """owner/name[@revision], unless it ends like a file or begins with a folder that is here: a mistyped path."""
    is_file = name.lower().endswith(FILE_SUFFIXES + OTHER_SUFFIXES)
    return HUB_ID.fullmatch(name) is not None and not is_file and not os.path.isdir(name.split("/")[0])


def _open_version(path, folder, key):
    """The rankings of a version, or the answers that annotators wrote. Raises ArtifactError where it was altered."""
    verify(folder)
    name = DEMONSTRATIONS if key == "data.demonstrations" else RANKINGS
    if not (folder / name).exists():
        raise UserError(f"{key}={path}: there is no {name} in this version; nobody entered any before it was exported")
    return read_file(os.path.join(path, name), str(folder / name)), _files_sha256([folder / name])


def _open_folder(path, folder, split, key):
    """A `datasets` folder (save_to_disk), or all data files of a folder in order of name."""
    if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        return _open_saved_dataset(path, folder, split, key)
    files = sorted(file for file in folder.iterdir() if _has_records(file))
    if not files:
        raise UserError(f"{key}={path}: no data file ({READ}) and no saved data set in this folder")
    if split:
        raise UserError(f"{key}={path}: a folder of files has no splits; use {folder}")
    rows = (row for file in files for row in read_file(os.path.join(path, file.name), str(file)))
    return rows, _files_sha256(files)


def _has_records(file):
    return file.name.lower().endswith(FILE_SUFFIXES) and file.name not in DESCRIPTIONS and file.is_file()


def _files_sha256(files):
    """The sha256 of one file, or of the names and hashes of several."""
    digests = []
    for file in files:
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    if len(files) == 1:
        return digests[0]
    listing = "".join(f"{file.name} {digest}\n" for file, digest in zip(files, digests, strict=True))
    return hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()


def _open_saved_dataset(path, folder, split, key):
    import datasets

    # cache-*.arrow are what `datasets` leaves behind when it works on a folder, not part of the data.
    files = [f for f in folder.rglob("*") if f.suffix in (".arrow", ".json") and not f.name.startswith("cache-")]
    dataset = _choose_split(datasets.load_from_disk(str(folder)), path, split, key)
    return _read_dataset(path, dataset), _files_sha256(sorted(files))


def open_hub(path: str, name: str, split: str, key: str) -> tuple[Iterator, str]:
    """(rows, sha256) of a data set that `datasets` loads by its id."""
    import datasets

    hub_id = HUB_ID.fullmatch(name)
    try:
        loaded = datasets.load_dataset(hub_id["name"], revision=hub_id["revision"])  # runs no code of the data set
    except Exception as error:  # network, hub and builder errors share no base class
        raise UserError(
            f"{key}={path}: no such folder here, and the hub data set '{hub_id['name']}' cannot be loaded "
            f"({type(error).__name__}: {first_line(error)}). Check the name and the network, or give a local path"
        ) from error
    dataset = _choose_split(loaded, path, split, key)
    # The fingerprint stands for the content: the library derives it from the resolved revision and the split.
    return _read_dataset(path, dataset), text_sha256(f"{name} {dataset._fingerprint}")


def _choose_split(loaded, path, split, key):
    """The data set itself, or of several splits the one asked for as path#split (or the only one there is)."""
    names = list(loaded) if isinstance(loaded, dict) else []
    if not names and not split:
        return loaded
    if split in names or (len(names) == 1 and not split):
        return loaded[split or names[0]]
    name = path.removesuffix(f"#{split}")
    if not names:
        raise UserError(f"{key}={path}: this data set has no splits; use {name}")
    raise UserError(f"{key}={path}: choose one of the splits {', '.join(names)}, e.g. \"{key}='{name}#{names[0]}'\"")


def _read_dataset(path, dataset):
    first = 0
    with readable(path):
        for batch in dataset.with_format(None).iter(batch_size=1000):
            rows = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
            yield from ((f"{path}[{first + i}]", values) for i, values in enumerate(rows))
            first += len(rows)
