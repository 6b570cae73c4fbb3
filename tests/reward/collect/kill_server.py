"""Kills the collection server by kill -9 under load, again and again, and looks for what it had acknowledged.

`python tests/reward/collect/kill_server.py FOLDER KILLS [DATABASE_URL]`. After each kill every submission that was
answered with 200 must be in the database as it was answered, and the audit chain whole; then a new server goes on.
Prints a JSON line for each kill. At the end of the work no item may have more or fewer annotations than its overlap.
"""

import json
import random
import sys
import threading
import time
from pathlib import Path

from sqlalchemy import func, select

from reward.collect.integrity.verify import require_whole
from reward.collect.store.database import Database
from reward.collect.store.tables import Annotation, Item
from stages.benches.collect import OVERLAP, Acknowledged, SimulatedAnnotator, annotate, annotators_of, prepare, serving

NUM_ANNOTATORS = 8
ITEMS_PER_KILL = 60  # so many that work never runs out before a kill


def kill_under_load(folder: Path, url: str, tokens: list[str], after: float) -> list[Acknowledged]:
    """What was acknowledged by a server that is killed this many seconds after its first acknowledgement."""
    with serving(folder, url) as (port, process):
        annotators = annotators_of(port, tokens)
        killer = threading.Thread(target=kill_later, args=(process, annotators, after))
        killer.start()
        acknowledged = annotate(annotators, cut_off=True)
        killer.join()
    return acknowledged


def kill_later(process, annotators: list[SimulatedAnnotator], after: float) -> None:
    while not any(one.acknowledged for one in annotators) and process.poll() is None:
        time.sleep(0.005)
    time.sleep(after)
    process.kill()


def lost(url: str, acknowledged: list[Acknowledged]) -> list[str]:
    """The acknowledged submissions that the database does not hold as acknowledged. Checks the audit chain, too."""
    database = Database(url)
    with database.read() as session:
        require_whole(session)
        stored = dict(session.execute(select(Annotation.id, Annotation.ranks)).all())
    database.close()
    return [one.annotation_id for one in acknowledged if stored.get(one.annotation_id) != one.ranks]


def trials(folder: Path, kills: int, url: str, seed: int = 0):
    """One record per kill, and one of the end: {acknowledged, lost} so far."""
    chance, acknowledged = random.Random(seed), []
    tokens = prepare(url, ITEMS_PER_KILL * (kills + 1), NUM_ANNOTATORS)
    for number in range(kills):
        own = kill_under_load(folder, url, tokens, chance.uniform(0.0, 1.5))
        acknowledged += own
        yield {"kill": number + 1, "acknowledged": len(own), "lost": lost(url, acknowledged)}
    with serving(folder, url) as (port, _):
        acknowledged += annotate(annotators_of(port, tokens))
    yield {"kill": None, "acknowledged": len(acknowledged), "lost": lost(url, acknowledged), "uneven": uneven(url)}


def uneven(url: str) -> int:
    """Items that have not exactly as many annotations as people should rank them."""
    database = Database(url)
    with database.read() as session:
        counts = session.scalars(select(func.count(Annotation.id)).group_by(Annotation.item_id)).all()
        num_items = session.scalar(select(func.count(Item.id)))
    database.close()
    return num_items - len(counts) + sum(count != OVERLAP for count in counts)


if __name__ == "__main__":
    place = Path(sys.argv[1]).absolute()
    place.mkdir(parents=True, exist_ok=True)
    database_url = sys.argv[3] if len(sys.argv) > 3 else f"sqlite:///{place}/collect.db"
    begun = time.monotonic()
    for record in trials(place, int(sys.argv[2]), database_url):
        print(json.dumps(record), flush=True)
    print(f"{time.monotonic() - begun:.0f} s", file=sys.stderr)
