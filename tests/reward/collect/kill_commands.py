"""Kills export, export --out, backup and import by kill -9 at random moments, and looks at what is left.

`python tests/reward/collect/kill_commands.py FOLDER KILLS [COMMAND ...]`, in a new folder.

After each kill all rankings are there as they were, the
audit chain and every version and backup is whole, and nothing can be read by others, though the umask is 0; then the
same command runs to its end, removes what the killed one left, and brings in every item of a file once.
Prints a JSON line for each command: how many processes were killed before their end, and what was lost or open.
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from collect_world import NOW, add_annotator, add_ranked_items, body, hand_in, new_item, take
from sqlalchemy import func, select

from reward.collect.export.versions import version_folder
from reward.collect.integrity.verify import require_whole
from reward.collect.ranking.items import add_items
from reward.collect.store.database import Database
from reward.collect.store.tables import Annotation, Prompt, Version

COMMANDS = ("export", "out", "backup", "import")
ITEMS_OF_A_FILE = 300
UNFINISHED = (".making-", ".unfinished-")


def arguments_of(command: str, folder: Path, number: int) -> list[str]:
    options = {
        "export": ["export"],
        "out": ["export", "--format", "trl", "--out", str(folder / "out" / f"{number}.jsonl")],
        "backup": ["backup"],
        "import": ["import", str(folder / "out" / f"answers-{number}.jsonl")],
    }[command]
    return [sys.executable, "-m", "reward.collect", options[0], "--dir", str(folder), *options[1:]]


def trials(folder: Path, kills: int, commands=COMMANDS, seed: int = 0):
    """One record per command."""
    os.umask(0)
    run(sys.executable, "-m", "reward.collect", "init", "--dir", str(folder), "--gold-share", "0")
    (folder / "out").mkdir(0o700)
    database = Database(f"sqlite:///{folder}/collect.db")
    add_ranked_items(database, 30, handles=("ann",))
    chance, number = random.Random(seed), 0
    for command in commands:
        record = {"command": command, "kills": 0, "lost": [], "open": [], "left": []}
        seconds = prepared(database, folder, command, number)
        while record["kills"] < kills:  # one that came too late does not count
            number += 1
            prepare(database, folder, command, number)
            before = rankings(database)
            words = arguments_of(command, folder, number)
            record["kills"] += kill(words, chance.uniform(0.1, 0.9) * seconds)
            record["lost"] += lost(database, folder, before)
            record["open"] += open_to_others(folder)
            seconds = complete(words, folder)
            record["lost"] += lost(database, folder, before) + not_imported(database, command, number)
            record["left"] += unfinished(folder)
            for backup in (folder / "backups").glob("*.db"):
                backup.unlink()  # names are of seconds, and the next one may be of the same
        number += 1
        yield record
    database.close()


def prepared(database: Database, folder: Path, command: str, number: int) -> float:
    """How long the command takes when nobody kills it."""
    prepare(database, folder, command, number)
    return complete(arguments_of(command, folder, number), folder)


def prepare(database: Database, folder: Path, command: str, number: int) -> None:
    """Something new to export; a file to import."""
    if command in ("export", "out"):
        add_one_ranking(database, number)
    if command == "import":
        names = [f"{command} {number}.{i}" for i in range(ITEMS_OF_A_FILE)]
        lines = [json.dumps({"prompt": name, "responses": ["one", "two", "three"]}) for name in names]
        (folder / "out" / f"answers-{number}.jsonl").write_text("\n".join(lines) + "\n")


def add_one_ranking(database: Database, number: int) -> None:

    with database.write() as session:
        add_items(session, [new_item(10_000 + number)], "command line", NOW)
        person = add_annotator(session, f"person-{number}")
    work = take(database, person)
    hand_in(database, person, work, ranks=body(work)["ranks"])


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def kill(words: list[str], after: float) -> int:
    """1 where the process was killed before its end, else 0."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(after)
    process.kill()
    return int(process.wait() != 0)


def complete(words: list[str], folder: Path) -> float:
    """The seconds that it took."""
    out = Path(words[-1])
    if "--out" in words and out.exists():  # the killed one was done
        out.unlink()
    for backup in (folder / "backups").glob("*.db"):
        backup.unlink()
    began = time.perf_counter()
    run(*words)
    return time.perf_counter() - began


def rankings(database: Database) -> dict[str, dict]:
    with database.read() as session:
        return dict(session.execute(select(Annotation.id, Annotation.ranks)).all())


def lost(database: Database, folder: Path, before: dict[str, dict]) -> list[str]:
    """What is not as it was: rankings, versions, backups. Raises where the chain does not hold."""
    now = rankings(database)
    gone = [one for one, ranks in before.items() if now.get(one) != ranks]
    with database.read() as session:
        require_whole(session)
        for seq in session.scalars(select(Version.seq)).all():
            # the next export gives a version its place that a kill left without
            settled = (folder / "versions" / str(seq)).is_dir() or unfinished(folder)
            gone += [] if settled else [f"version {seq}"]
            if (folder / "versions" / str(seq)).is_dir():
                version_folder(session, folder, seq)
    for path in (folder / "backups").glob("*.db"):
        copy = Database(f"sqlite:///{path}")
        gone += [] if rankings(copy).keys() >= before.keys() else [path.name]
        copy.close()
    return gone


def not_imported(database: Database, command: str, number: int) -> list[str]:
    if command != "import":
        return []
    with database.read() as session:
        texts = [messages[-1]["content"] for messages in session.scalars(select(Prompt.messages))]
        assert session.scalar(select(func.count(Prompt.id))) == len(texts)
    found = [text for text in texts if text.startswith(f"import {number}.")]
    return [] if sorted(found) == sorted({*found}) and len(found) == ITEMS_OF_A_FILE else [f"items of file {number}"]


def unfinished(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob(".*") if path.name.startswith(UNFINISHED)]


def open_to_others(folder: Path) -> list[str]:
    """What others can read: not what lies in an unfinished folder that is closed to them. Our own files excepted."""
    found = [path for path in folder.rglob("*") if path.stat().st_mode & 0o077 and not path.name.startswith("answers-")]
    return [str(path) for path in found if not is_closed(path.parent)]


def is_closed(path: Path) -> bool:
    return path.name.startswith(UNFINISHED) and path.stat().st_mode & 0o777 == 0o700


if __name__ == "__main__":
    place = Path(sys.argv[1]).absolute()
    for told in trials(place, int(sys.argv[2]), sys.argv[3:] or COMMANDS):
        print(json.dumps(told), flush=True)
