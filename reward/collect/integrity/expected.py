"""What the audit tells of each row of the guarded tables, kept in a temporary file: a collection may have a million."""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

TABLE = """
CREATE TABLE told (name TEXT, key TEXT, digest TEXT, marks TEXT, facts TEXT, audit_id INTEGER, action TEXT,
PRIMARY KEY (name, key)) WITHOUT ROWID
"""
HEX = 64  # characters of a digest; marks follow


@dataclass(frozen=True)
class Told:
    """digest: None where a row was taken out, or where only facts are known. facts: column -> value."""

    key: str
    digest: str | None
    marks: str
    facts: dict
    audit_id: int
    action: str

    def __str__(self) -> str:
        return f"audit row {self.audit_id} ({self.action})"


class Expected:
    def __init__(self):
        self._file = sqlite3.connect("", isolation_level=None)  # SQLite's own temporary file, gone when closed
        for setting in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-32000"):
            self._file.execute(f"PRAGMA {setting}")
        self._file.execute(TABLE)
        self._file.execute("BEGIN")

    def close(self) -> None:
        self._file.close()

    def wrote(self, name: str, digests: dict[str, str | None], audit_id: int, action: str) -> None:
        """An audit row says that its step left these rows so."""
        rows = [
            (name, key, known and known[:HEX], known and known[HEX:], audit_id, action)
            for key, known in digests.items()
        ]
        self._file.executemany("REPLACE INTO told VALUES (?, ?, ?, ?, '{}', ?, ?)", rows)

    def told(self, name: str, key: str, facts: dict, audit_id: int, action: str) -> None:
        """An audit row of the first release says so much of a row."""
        found = self._file.execute("SELECT facts FROM told WHERE name = ? AND key = ?", (name, key)).fetchone()
        facts = json.dumps((json.loads(found[0]) if found else {}) | facts)
        row = (name, key, None, "", facts, audit_id, action)
        self._file.execute("REPLACE INTO told VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def forget_facts(self) -> None:
        self._file.execute("DELETE FROM told WHERE facts <> '{}'")

    def settle(self, name: str, key: str, digest: str) -> bool:
        """Whether the row was to be just so; it is not asked about again then."""
        settled = "DELETE FROM told WHERE name = ? AND key = ? AND digest = ?"
        return self._file.execute(settled, (name, key, digest)).rowcount == 1

    def take(self, name: str, key: str) -> Told | None:
        """What is told of the row; it is not asked about again."""
        asked = "DELETE FROM told WHERE name = ? AND key = ? RETURNING key, digest, marks, facts, audit_id, action"
        found = self._file.execute(asked, (name, key)).fetchall()
        return _told(found[0]) if found else None

    def left(self, name: str) -> Iterator[Told]:
        """The rows that were to be there, and were not asked about."""
        asked = "SELECT key, digest, marks, facts, audit_id, action FROM told WHERE name = ? AND "
        rows = self._file.execute(asked + "(digest IS NOT NULL OR facts <> '{}') ORDER BY audit_id, key", (name,))
        return map(_told, rows)


def _told(row: tuple) -> Told:
    key, digest, marks, facts, audit_id, action = row
    return Told(key, digest, marks or "", json.loads(facts), audit_id, action)
