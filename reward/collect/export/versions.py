"""Versions: numbered exports of a collection that never change, each sealed as an artifact of stage "collect".

A version's folder has rankings.jsonl (canonical rows, one per annotation; reward/collect/formats/canonical.py),
demonstrations.jsonl (the answers that annotators wrote themselves) and report.json. Nothing is left out in silence:
what is not in them is counted by its reason.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from reward.collect import formats
from reward.collect.export.exported import Export, exported_rows
from reward.collect.figures.quality import agreement_report
from reward.collect.integrity.verify import require_whole
from reward.collect.refusals import Conflict, NotFound, Refusal
from reward.collect.store import audit, private
from reward.collect.store.collection import collection_of, guidelines_in_force, settings_of
from reward.collect.store.database import Database
from reward.collect.store.tables import Annotation, Version
from rlhf.artifacts.commit import commit
from rlhf.artifacts.manifest import COLLECT, is_complete, load_manifest, manifest_sha256, verify
from rlhf.data.files import read_file
from rlhf.data.records import Row, decode
from rlhf.data.sources import DEMONSTRATIONS, RANKINGS
from rlhf.errors import ArtifactError, UserError
from rlhf.files import plain, sync, writing
from rlhf.hashing import file_sha256
from rlhf.locks import locked

REPORT = "report.json"
MAKING = ".making-"  # what the name of a version begins with until it has its number
PATIENCE = 600  # seconds that an export waits for another one's end


def export_version(
    database: Database, folder: Path, actor: str, now: float, patience: float = PATIENCE
) -> tuple[Path, bool]:
    """(<folder>/versions/<number>/, whether it is new): where the newest version holds all there is, it is the one.

    A version is made under another name, and takes its own when all of it is on the disk and the database has its row:
    what a killed export leaves is finished or removed by the next one. One export at a time, whoever asks for it.
    Raises Refusal where there is nothing to export, or rows do not fit together; Conflict where a folder of the next
    number is there, or another export is not done after so many seconds of patience.
    """
    versions = Path(folder) / "versions"
    with _alone(versions, patience):
        _settle(database, versions)
        try:
            return _export(database, versions, actor, now)
        finally:
            _settle(database, versions)


def _export(database: Database, versions: Path, actor: str, now: float) -> tuple[Path, bool]:
    began, making = time.perf_counter(), versions / f"{MAKING}{uuid4().hex}"
    with writing(making, private.ELSEWHERE):
        making.mkdir(private.FOLDER)
    with database.read() as session:
        _take_snapshot(session, database)
        require_whole(session, versions)
        export = _write_rows(session, making)
        _require_content(export)
        if (newest := _newest_if_same(session, versions, making)) is not None:
            return newest, False
        report, config = version_report(session, export, now), version_config(session)
    _write_report(making, report)
    _seal(making, export, config, time.perf_counter() - began)
    with database.write() as session:
        return _number(session, making, export, actor, now), True


@contextmanager
def _alone(versions: Path, patience: float) -> Iterator[None]:
    with ExitStack() as exits:
        try:
            exits.enter_context(locked(versions, "try again", patience, private.FOLDER))
        except UserError as error:
            raise Conflict(str(error)) from error
        yield


def _settle(database: Database, versions: Path) -> None:
    """Gives what was made the place of its number; removes what has none. No other export is under way."""
    with database.read() as session:
        numbers = {version.manifest_sha256: str(version.seq) for version in versions_of(session)}
    for made in versions.glob(f"{MAKING}*"):
        number = numbers.get(manifest_sha256(made)) if is_complete(made) else None
        if number is None or (versions / number).exists():
            shutil.rmtree(made, ignore_errors=True)
            continue
        with writing(versions / number, private.ELSEWHERE):
            os.rename(made, versions / number)
            sync(versions)


def _write_rows(session: Session, making: Path) -> Export:
    """Writes each of the version's files that has rows, as they come out of the database."""
    export, files = Export(), {}
    with writing(making, private.ELSEWHERE), ExitStack() as exits:
        for name, row in exported_rows(session, export):
            if name not in files:
                files[name] = exits.enter_context(private.new_file(making / name))
            files[name].write(formats.line(row))
    return export


def _newest_if_same(session: Session, versions: Path, making: Path) -> Path | None:
    """The newest version, where it holds the very rows of the one in the making; else None."""
    newest = session.scalar(select(func.max(Version.seq)))
    try:
        path = version_folder(session, versions.parent, newest or 0)
    except (NotFound, ArtifactError):  # none yet, gone or altered: a new one is the remedy
        return None
    kept = {name: sha256 for name, sha256 in load_manifest(path)["files"].items() if name != REPORT}
    return path if kept == {file.name: file_sha256(file) for file in making.iterdir()} else None


def _take_snapshot(session, database):
    """All that this transaction reads is of one moment, as SQLite has it anyway."""
    if not database.is_sqlite:
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})


def _require_content(export):
    if export.num_rankings or export.num_demonstrations:
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in export.excluded.items()) or "nobody has ranked yet"
    raise Refusal(f"there is nothing to export ({reasons}); see python -m reward.collect stats")


def version_report(session: Session, export: Export, now: float) -> dict:
    """report.json: what is in, what is not and why, and how far people agree."""
    revisions = session.scalar(select(func.count()).select_from(Annotation).where(Annotation.revision > 1))
    return {
        "exported_at": now,
        "counts": export.counts(),
        "excluded": dict(export.excluded),
        "excluded_demonstrations": dict(export.excluded_demonstrations),
        "left_out_of_formats": {name: dict(reasons) for name, reasons in export.left_out.items()},
        "replaced_by_a_revision": revisions,
        "agreement": agreement_report(session),
        "audit_sha256": audit.last_hash(session),
    }


def version_config(session: Session) -> dict:
    """What decides on the rows beside what people entered."""
    name, settings = collection_of(session).name, settings_of(session).as_dict()
    guidelines_version = guidelines_in_force(session).version
    return {"collect": {"name": name, "guidelines_version": guidelines_version, "settings": settings}}


def _write_report(making: Path, report: dict) -> None:
    with writing(making, private.ELSEWHERE), private.new_file(making / REPORT) as stream:
        stream.write(json.dumps(plain(report), indent=2, ensure_ascii=False).encode() + b"\n")


def _seal(making: Path, export: Export, config: dict, seconds: float) -> None:
    """Writes the manifest. Its inputs' paths hold at the version's own place too, which lies beside this one."""
    inputs = [
        {"role": "policy", "path": Path(os.path.relpath(path, making)).as_posix(), "sha256": sha256}
        for sha256, path in sorted(export.policies.items(), key=lambda item: item[1])
    ]
    commit(
        making,
        COLLECT,
        config=config,
        data=[],
        inputs=inputs,
        base_model=None,
        metrics=export.counts(),
        seconds=seconds,
        elsewhere=private.ELSEWHERE,
    )
    private.close_to_others(making)  # nobody could reach them, in a folder that was private from the start


def _number(session: Session, making: Path, export: Export, actor: str, now: float) -> Path:
    """Gives the version its row and its number. Returns its place, where it is not yet."""
    audit.one_writer(session)
    seq = 1 + (session.scalar(select(func.max(Version.seq))) or 0)
    path, sha256 = making.parent / str(seq), manifest_sha256(making)
    if path.exists():
        raise Conflict(
            f"{path}: is there already, and a version never changes; it is of an export that the database does not "
            "know. Move it away and export again"
        )
    left_out = {name: reasons.total() for name, reasons in export.left_out.items()}
    counts = {**export.counts(), "excluded": dict(export.excluded), "left_out_of_formats": left_out}
    session.add(Version(seq=seq, manifest_sha256=sha256, counts=counts, created_by=actor, created_at=float(now)))
    audit.append(session, actor, "export version", str(seq), after={"manifest_sha256": sha256}, now=now)
    return path


def versions_of(session: Session) -> list[Version]:
    """All versions, the newest first."""
    return list(session.scalars(select(Version).order_by(Version.seq.desc())))


def version_folder(session: Session, folder: Path, seq: int) -> Path:
    """Where a version is. Raises NotFound where it is not, ArtifactError where it was altered."""
    version = session.get(Version, seq)
    if version is None:
        raise NotFound(f"version {seq}: there is none; export one with python -m reward.collect export")
    path = Path(folder) / "versions" / str(seq)
    if not path.is_dir() or manifest_sha256(path) != version.manifest_sha256:
        raise NotFound(f"version {seq}: {path} is gone or is another one; copy it back or export anew")
    verify(path)
    return path


@dataclass(frozen=True)
class Rows:
    """The rows of a version's file, read anew each time they are gone through."""

    file: Path

    def __iter__(self) -> Iterator[dict]:
        return (Row(decode(raw, where), where).values for where, raw in read_file(self.file.name, str(self.file)))


def version_rows(path: Path, format: str) -> Rows:
    """The rows of a version that a format is made from: its rankings, or for sft its demonstrations."""
    kind = formats.require_format(format, formats.FORMATS, "written").reads
    file = path / (DEMONSTRATIONS if kind == "demonstrations" else RANKINGS)
    if not file.exists():
        raise Refusal(f"format '{format}': version {path.name} has no {kind}")
    return Rows(file)
