"""Versions: numbered exports of a collection that never change, each sealed as an artifact of stage "collect".

A version's folder has rankings.jsonl (canonical rows, one per annotation; reward/collect/formats/canonical.py),
demonstrations.jsonl (the answers that annotators wrote themselves) and report.json. Nothing is left out in silence:
what is not in them is counted by its reason.
"""

import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from reward.collect import audit, formats
from reward.collect.database import Database
from reward.collect.exported import Export, collect_export
from reward.collect.items import collection_of, guidelines_in_force, settings_of
from reward.collect.quality import agreement_report
from reward.collect.refusals import Conflict, NotFound, Refusal
from reward.collect.tables import Annotation, Version
from rlhf.artifacts import commit, manifest_sha256, verify
from rlhf.errors import ArtifactError
from rlhf.files import plain, sync, writing
from rlhf.manifest import COLLECT, load_manifest
from rlhf.records import Row, decode
from rlhf.sources import DEMONSTRATIONS, RANKINGS, open_source

REPORT = "report.json"


def export_version(database: Database, folder: Path, actor: str, now: float) -> Path:
    """Writes <folder>/versions/<number>/ and returns it. The number is the one after the last version's.

    It is made under another name, and takes its own when all of it is on the disk: a killed export leaves no half
    version. Raises Refusal where there is nothing to export, Conflict where a folder of that number is there.
    """
    began, versions = time.perf_counter(), Path(folder) / "versions"
    making = versions / f".making-{uuid4().hex}"
    with database.read() as session:
        _take_snapshot(session, database)
        export = collect_export(session)
        _require_content(export)
        report = version_report(session, export, now)
        config = version_config(session)
    with writing(versions):
        making.mkdir(parents=True)
    try:
        _write_files(making, export, report)
        _seal(making, export, config, time.perf_counter() - began)
        with database.write() as session:
            return _publish(session, making, export, actor, now)
    finally:
        shutil.rmtree(making, ignore_errors=True)  # what is left of an export that failed


def unchanged_version(database: Database, folder: Path) -> Path | None:
    """The newest version, where one made now would hold the very same rankings and demonstrations; else None."""
    with database.read() as session:
        _take_snapshot(session, database)
        newest = session.scalar(select(func.max(Version.seq)))
        if newest is None:
            return None
        export = collect_export(session)
        try:
            path = version_folder(session, folder, newest)
        except (NotFound, ArtifactError):  # gone or altered: a new one is the remedy
            return None
    kept = {name: sha256 for name, sha256 in load_manifest(path)["files"].items() if name != REPORT}
    return path if kept == {name: _sha256(rows) for name, rows in export.files().items()} else None


def _sha256(rows: list[dict]) -> str:
    """The digest of the file that holds these rows."""
    stream = io.BytesIO()
    formats.write("canonical", rows, stream)
    return hashlib.sha256(stream.getbuffer()).hexdigest()


def _take_snapshot(session, database):
    """All that this transaction reads is of one moment, as SQLite has it anyway."""
    if not database.is_sqlite:
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})


def _require_content(export):
    if export.rankings or export.demonstrations:
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
        "replaced_by_a_revision": revisions,
        "agreement": agreement_report(session),
        "audit_sha256": audit.last_hash(session),
    }


def version_config(session: Session) -> dict:
    """What decides on the rows beside what people entered."""
    name, settings = collection_of(session).name, settings_of(session).as_dict()
    guidelines_version = guidelines_in_force(session).version
    return {"collect": {"name": name, "guidelines_version": guidelines_version, "settings": settings}}


def _write_files(making: Path, export: Export, report: dict) -> None:
    with writing(making):
        for name, rows in export.files().items():
            formats.write("canonical", rows, making / name)
        (making / REPORT).write_text(json.dumps(plain(report), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _seal(making: Path, export: Export, config: dict, seconds: float) -> None:
    """Writes the manifest. Its inputs' paths hold at the version's own place too, which lies beside this one."""
    inputs = [
        {"role": "policy", "path": Path(os.path.relpath(path, making)).as_posix(), "sha256": sha256}
        for sha256, path in sorted(export.policies.items(), key=lambda item: item[1])
    ]
    metrics = export.counts()
    commit(making, COLLECT, config=config, data=[], inputs=inputs, base_model=None, metrics=metrics, seconds=seconds)


def _publish(session: Session, making: Path, export: Export, actor: str, now: float) -> Path:
    """Gives the finished folder its number, and the version its row."""
    audit.one_writer(session)
    seq = 1 + (session.scalar(select(func.max(Version.seq))) or 0)
    path, sha256 = making.parent / str(seq), manifest_sha256(making)
    if path.exists():
        raise Conflict(
            f"{path}: is there already, and a version never changes; it is of an export that the database does not "
            "know. Move it away and export again"
        )
    counts = {**export.counts(), "excluded": dict(export.excluded)}
    names = {"manifest_sha256": sha256, "created_by": actor, "created_at": float(now)}
    session.add(Version(seq=seq, counts=counts, **names))
    audit.append(session, actor, "export version", str(seq), after={"manifest_sha256": sha256}, now=now)
    with writing(path):
        os.rename(making, path)
        sync(path.parent)
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


def version_rows(path: Path, format: str) -> Iterator[dict]:
    """The rows of a version that a format is made from: its rankings, or for sft its demonstrations."""
    kind = formats.require_format(format, formats.FORMATS, "written").reads
    name = DEMONSTRATIONS if kind == "demonstrations" else RANKINGS
    if not (path / name).exists():
        raise Refusal(f"format '{format}': version {path.name} has no {kind}")
    raw_rows, _ = open_source(str(path / name), kind)
    return (Row(decode(raw, where), where).values for where, raw in raw_rows)
