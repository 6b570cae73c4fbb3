"""The versions' folders against the database: each was sealed with the hash that the audit chain had at that moment.

So a chain that was cut short or written anew shows, as long as a version of it lies somewhere else than the database.
"""

import json
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from reward.collect.integrity.findings import Findings
from reward.collect.store.tables import Version
from rlhf.artifacts.manifest import manifest_sha256, verify
from rlhf.errors import ArtifactError

REPORT = "report.json"


def seals(versions: Path | None) -> dict[str, str]:
    """Version -> the hash of the audit chain in its report. A report that cannot be read is for check_folders()."""
    found = {}
    for report in sorted(Path(versions).glob(f"[0-9]*/{REPORT}")) if versions else []:
        try:
            found[report.parent.name] = str(json.loads(report.read_bytes())["audit_sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def check_seals(seals: dict[str, str], seen: set[str], findings: Findings) -> None:
    for version, sha256 in seals.items():
        if sha256 not in seen:
            what = f"no audit row has the hash {sha256[:12]}... that it was sealed with"
            findings.add(f"versions/{version}", f"{what}; the chain was cut short or written anew since")


def check_folders(session: Session, versions: Path, findings: Findings) -> int:
    """Each version is there as it was sealed, and none is there that the database does not know. Returns how many."""
    known = dict(session.execute(select(Version.seq, Version.manifest_sha256)).all())
    for seq, sha256 in sorted(known.items()):
        if wrong := _what_is_wrong(versions / str(seq), sha256):
            findings.add(f"versions/{seq}", wrong)
    for folder in sorted(versions.glob("[0-9]*")):
        if folder.name not in map(str, known):
            what = "the database does not know it; an export that was ended left it, or the database lost its rows"
            findings.add(f"versions/{folder.name}", what)
    return len(known)


def _what_is_wrong(folder: Path, sha256: str) -> str | None:
    if not folder.is_dir():
        return "its folder is not there; copy it back"
    try:
        if manifest_sha256(folder) != sha256:
            return "its manifest.json is not the one that was sealed; copy the version back"
        verify(folder)
    except ArtifactError as error:
        return str(error)
    return None
