"""The pipeline's stop between SFT and the reward model: people rank answers of the SFT policy, until enough are in."""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from sqlalchemy import func, select

from reward.collect import home
from reward.collect.export import exported
from reward.collect.export.versions import export_version, version_folder
from reward.collect.intake.policies import find_policy
from reward.collect.intake.sampling import Drawing, Sampled, sample_prompts
from reward.collect.ranking.items import add_items
from reward.collect.store import audit
from reward.collect.store.database import Database
from reward.collect.store.settings import Settings
from reward.collect.store.tables import Annotation, Audit, Item, Slot, Version
from rlhf.artifacts.manifest import load_manifest, manifest_sha256
from rlhf.config.schema import Config
from rlhf.console import say
from rlhf.data.load import require_split
from rlhf.errors import Stopped, UserError
from rlhf.run.stopping import StopRequest

START_SECONDS = 60  # that the server may take to answer
SAMPLED = "sample for the pipeline"  # the audit's action; its object is the SFT artifact's hash
NAP = 0.2  # seconds between looks at whether to stop


def rankings_of_people(cfg: Config) -> Path:
    """The version of the collection to train on: one that is there and large enough, or a new one once people are done.

    Raises Stopped where it is told to stop while it waits; the same command goes on.
    """
    folder = Path(cfg.collect.dir)
    with home.one_at_a_time(folder):
        database = open_or_make(folder, cfg)
    try:
        if (version := usable_version(database, cfg, folder)) is not None:
            say(f"collect: {version} has enough rankings (collect.export_again=true adds what came in since)")
            tell_of_other_policies(version, cfg)
            return version
        with home.one_at_a_time(folder):
            sample_once(database, cfg)
        wait_for_rankings(database, cfg, folder)
        with home.one_at_a_time(folder):
            version, _ = export_version(database, folder, home.ACTOR, time.time())
        say(f"collect: exported {version}")
        tell_of_other_policies(version, cfg)
        return version
    finally:
        database.close()


def open_or_make(folder: Path, cfg: Config) -> Database:
    """The collection in the folder; where there is none, a new one with the default settings."""
    url = os.environ.get("COLLECT_DATABASE_URL")  # as for the commands; the server that is started inherits it
    database = home.open_database(folder, url)
    if home.is_there(database):
        return home.open_collection(folder, url)
    home.create_collection(database, Path(cfg.run.dir).name, "", Settings(), time.time())
    say(f"collect: made a collection in {folder} (python -m reward.collect init changes its settings)")
    return database


def usable_version(database: Database, cfg: Config, folder: Path) -> Path | None:
    """The newest version that has rankings enough; None where there is none, or where a newer one is asked for."""
    with database.read() as session:
        newest = session.scalar(select(Version).order_by(Version.seq.desc()).limit(1))
        if newest is None or newest.counts["rankings"] < cfg.collect.min_rankings:
            return None
        entered = session.scalar(select(func.max(Annotation.submitted_at)))
        if cfg.collect.export_again and entered > newest.created_at:
            return None
        return version_folder(session, folder, newest.seq)


def tell_of_other_policies(version: Path, cfg: Config) -> None:
    """Says where people ranked answers of another policy than this run's: an SFT stage that was run again, say."""
    own = manifest_sha256(cfg.inputs.sft)
    others = sorted({entry["path"] for entry in load_manifest(version)["inputs"] if entry["sha256"] != own})
    if others:
        say(f"collect: not all of its answers are by {cfg.inputs.sft} as it is now; also by {', '.join(others)}")


# Sampling


def sample_once(database: Database, cfg: Config) -> None:
    """Queues answers of this run's SFT policy, unless that was done."""
    sha256 = manifest_sha256(cfg.inputs.sft)
    with database.read() as session:
        done = select(Audit.id).where(Audit.action == SAMPLED, Audit.object == sha256)
        if session.scalar(done.limit(1)) is not None:
            return
    drawing = Drawing(cfg.collect.num_responses, cfg.rollout.temperature, cfg.seed, cfg.rollout.batch_size)
    told = sample_prompts([find_policy(cfg.inputs.sft)], cfg.data, cfg.collect.num_prompts, drawing)
    for line in told.lines():
        say(f"collect: {line}")
    require_trainable(told, cfg)
    with database.write() as session:
        add_items(session, told.items, home.ACTOR, time.time())
        audit.append(session, home.ACTOR, SAMPLED, sha256, after={"items": len(told.items)}, now=time.time())


def require_trainable(told: Sampled, cfg: Config) -> None:
    """Raises UserError, before anybody ranks, where the reward stage would find a split without a prompt."""
    for split in ("train", "valid", "test"):
        splits = {name: [None] * told.splits[name] for name in ("train", "valid", "test")}
        require_split(splits, split, f"collect.num_prompts={cfg.collect.num_prompts}")


# Waiting


def wait_for_rankings(database: Database, cfg: Config, folder: Path) -> None:
    """Returns once collect.min_rankings are in, with the page open meanwhile."""
    require_enough_work(database, cfg)
    with (
        StopRequest(cfg.run, "here; what people entered is kept") as request,
        served(database, cfg, folder) as server,
    ):
        tell_where(database, cfg)
        told = None
        while (done := num_rankings(database)) < cfg.collect.min_rankings:
            if done != told:
                say(f"collect: {done} of {cfg.collect.min_rankings} rankings")
                told = done
            nap(cfg.collect.poll_seconds, request)
            if request.received is not None:
                raise Stopped(
                    f"stopped at {done} of {cfg.collect.min_rankings} rankings: {request.going_on} waiting; "
                    f"python -m reward.collect serve --dir {folder} opens the page without it"
                )
            require_running(server, folder)
    say(f"collect: {done} rankings are in")


def nap(seconds: float, request: StopRequest) -> None:
    """Sleeps, but wakes when it is asked to stop: a sleep goes on after a signal."""
    until = time.monotonic() + seconds
    while request.received is None and (left := until - time.monotonic()) > 0:
        time.sleep(min(NAP, left))


def num_rankings(database: Database) -> int:
    """Rankings that a version made now would hold."""
    with database.read() as session:
        return exported.num_rankings(session)


def require_enough_work(database: Database, cfg: Config) -> None:
    """Raises UserError where the waiting could have no end."""
    with database.read() as session:
        slots = select(func.count()).select_from(Slot).join(Item, Slot.item_id == Item.id)
        wanted = slots.where(Item.kind == "normal", Item.comparison.is_(None), Item.state.in_(["open", "done"]))
        possible = session.scalar(wanted)
    if possible < cfg.collect.min_rankings:
        raise UserError(
            f"collect.min_rankings={cfg.collect.min_rankings}: the queue asks for {possible} rankings in all; lower "
            f"it, or sample more: python -m reward.collect sample --dir {cfg.collect.dir} ..."
        )


def tell_where(database: Database, cfg: Config) -> None:
    """Prints the link to the page, and the one that makes the first account where there is none."""
    with database.write() as session:
        origin, link = home.origin_of(session), home.first_lead_link(session, time.time())
    say(f"collect: the page is open at {origin}")
    if link:
        say(f"collect: make the first account, a lead's, once: {link}")
    say(f"collect: python -m reward.collect invite --dir {cfg.collect.dir} prints links for others. Ctrl-C stops")


# The server


def address(cfg: Config) -> str:
    return f"http://127.0.0.1:{cfg.collect.port}"


@contextmanager
def served(database: Database, cfg: Config, folder: Path):
    """The process that serves the page; None where it is served already. Ends what it started."""
    if (answering := collection_at(cfg)) is not None:
        require_ours(answering, database, cfg)
        yield None
        return
    command = [sys.executable, "-m", "reward.collect", "serve", "--dir", str(folder), "--port", str(cfg.collect.port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)  # Ctrl-C is for us alone
    try:
        wait_until_open(process, cfg, folder)
        yield process
    finally:
        process.terminate()  # it ends what is under way
        process.wait()


def collection_at(cfg: Config) -> str | None:
    """The fingerprint of the collection that is served on the port; "" where it is something else, None for nothing."""
    try:
        with urlopen(f"{address(cfg)}/readyz", timeout=5) as response:
            return json.load(response)["collection"]
    except URLError as error:
        return None if isinstance(error.reason, ConnectionRefusedError) else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def require_ours(answering: str, database: Database, cfg: Config) -> None:
    with database.read() as session:
        if answering != home.fingerprint(session):
            raise UserError(f"collect.port={cfg.collect.port}: something else is served there; choose another port")


def wait_until_open(process: subprocess.Popen, cfg: Config, folder: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while not collection_at(cfg):
        require_running(process, folder)
        if time.monotonic() > until:
            raise UserError(f"the page does not answer at {address(cfg)} after {START_SECONDS} s; see its lines above")
        time.sleep(NAP)


def require_running(process: subprocess.Popen | None, folder: Path) -> None:
    if process is not None and process.poll() is not None:
        raise UserError(
            f"the server of the page ended (code {process.returncode}), its lines above say why; what people entered "
            f"is kept. python -m reward.collect serve --dir {folder} starts it alone"
        )
