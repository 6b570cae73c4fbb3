"""From the SFT policy through people's rankings to the reward model, and what of that the manifests tell."""

import json
import shutil
import signal
import socket
import threading
import time
from pathlib import Path
from uuid import uuid4

import pytest
from tiny_world import composed, records, tiny_overrides, write_jsonl

from reward.collect import waiting as waiting_module
from reward.collect.__main__ import main
from reward.collect.ranking import annotations, queue
from reward.collect.ranking.submissions import parse_submission
from reward.collect.store.database import Database
from reward.collect.store.tables import Annotator, Item
from rlhf.artifacts.commit import commit
from rlhf.artifacts.lineage import ancestry
from rlhf.artifacts.lineage import main as artifacts
from rlhf.artifacts.manifest import load_manifest, manifest_sha256
from stages import sft

LESSONS = ("sft.num_epochs=20", "sft.learning_rate=5e-3", "rollout.temperature=1.5")


def rank_everything(folder: Path, limit: int | None = None) -> int:
    """One person ranks what is in the queue, the shorter answer the better, and writes an answer of their own."""
    database, done = Database(f"sqlite:///{folder}/collect.db"), 0
    person = one_person(database)
    while limit is None or done < limit:
        with database.write() as session:
            work = queue.next_work(session, person, time.time())
        if not isinstance(work, queue.Work):
            break
        lengths = sorted({len(text) for _, text in work.responses})
        ranks = {one: lengths.index(len(text)) + 1 for one, text in work.responses}
        said = parse_submission({"ranks": ranks, "demonstration": "I would not know."})
        with database.write() as session:
            annotations.submit(session, person, work.slot_id, said, uuid4().hex, time.time())
        done += 1
    database.close()
    return done


def one_person(database: Database) -> Annotator:
    with database.write() as session:
        person = session.get(Annotator, "ann")
        if person is None:
            names = {"id": "ann", "handle": "ann", "role": "annotator", "password_hash": "", "status": "active"}
            person = Annotator(**names, created_at=0.0)
            session.add(person)
    return person


def collect(*arguments) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def taught(world, tmp_path_factory) -> Path:
    """A run with an SFT policy that ends its answers in time. Not to be changed."""
    folder = tmp_path_factory.mktemp("taught") / "run"
    sft.run(composed(*tiny_overrides(folder, world), *LESSONS))
    return folder


@pytest.fixture
def run_dir(taught, tmp_path) -> Path:
    """A copy of it, to be changed at will."""
    return Path(shutil.copytree(taught, tmp_path / "run"))


@pytest.fixture
def stage(tiny_command):
    """stage("reward", "seed=1"): a stage of such a run."""
    return lambda name, *overrides: tiny_command(name, *LESSONS, *overrides)


@pytest.fixture(scope="module")
def version(taught, world, tmp_path_factory) -> Path:
    """What was exported of rankings of the SFT policy's answers. Not to be changed."""
    folder = tmp_path_factory.mktemp("collect")
    assert collect("init", "--dir", folder) == 0
    policy = ("--policy", taught / "sft", "--prompts", world / "prompts.jsonl")
    assert collect("sample", "--dir", folder, *policy, "-k", 3, "--temperature", 1.5) == 0
    rank_everything(folder)
    assert collect("export", "--dir", folder) == 0
    return folder / "versions" / "1"


# ---- lineage


def test_a_reward_model_trained_on_a_version_names_it_and_the_policy_it_was_sampled_from(
    version, run_dir, stage, capsys
):
    outcome = stage("reward", f"data.rankings={version}")
    assert outcome.code == 0, outcome.err
    inputs = {entry["role"]: entry["sha256"] for entry in load_manifest(run_dir / "reward")["inputs"]}
    assert inputs == {"sft": manifest_sha256(run_dir / "sft"), "rankings": manifest_sha256(version)}
    assert [path.name for path in ancestry(run_dir / "reward")[:3]] == ["reward", "sft", "1"]
    assert artifacts(["show", str(run_dir / "reward")]) == 0
    lines = [line.strip("│├└─ ") for line in capsys.readouterr().out.splitlines()]
    rankings = next(line for line in lines if line.startswith("rankings  collect"))
    assert str(version) in rankings and rankings.endswith("verified")
    assert lines[lines.index(rankings) + 1 :][-1].startswith("policy  sft") and "as above" in lines[-1]


def test_later_stages_take_the_reward_model_that_people_s_rankings_made(version, run_dir, stage):
    assert stage("reward", f"data.rankings={version}").code == 0
    assert stage("ppo").code == 0
    outcome = stage("evaluate")
    assert outcome.code == 0, outcome.err
    lineage = json.loads((run_dir / "evaluate" / "report.json").read_text())["lineage"]
    assert [entry["stage"] for entry in lineage][:4] == ["ppo", "sft", "reward", "collect"]


def test_a_stage_is_up_to_date_with_the_same_version(version, run_dir, stage):
    stage("reward", f"data.rankings={version}")
    assert "up to date" in stage("reward", f"data.rankings={version}").err


def test_an_altered_version_is_refused(version, run_dir, stage, tmp_path):
    copy = Path(shutil.copytree(version, tmp_path / "versions" / "1"))
    with (copy / "rankings.jsonl").open("a") as file:
        file.write("\n")
    outcome = stage("reward", f"data.rankings={copy}")
    assert outcome.code == 3
    assert "rankings.jsonl: altered" in outcome.error and "python -m reward.collect export" in outcome.error


def test_answers_that_annotators_wrote_are_demonstrations(version, tiny_command, tmp_path):
    overrides = (
        f"data.demonstrations={version}",
        "sft.batch_size=8",
        "sft.micro_batch_size=8",
        "data.max_response_tokens=12",
    )
    assert tiny_command("sft", *overrides).code == 0
    manifest = load_manifest(tmp_path / "run" / "sft")
    assert [entry["role"] for entry in manifest["inputs"]] == ["demonstrations"]
    rows = [json.loads(line) for line in (version / "demonstrations.jsonl").read_text().splitlines()]
    assert manifest["data"][0]["records"] == len(rows) > 0
    assert {row["completion"] for row in rows} == {"I would not know."}


def test_a_version_without_demonstrations_says_so(version, tiny_command, tmp_path):
    copy = tmp_path / "version"
    copy.mkdir()
    (copy / "rankings.jsonl").write_bytes((version / "rankings.jsonl").read_bytes())
    nothing = {"config": {}, "data": [], "inputs": [], "base_model": None, "metrics": {}, "seconds": 0.0}
    commit(copy, "collect", **nothing)
    outcome = tiny_command("sft", f"data.demonstrations={copy}")
    assert (outcome.code, "there is no demonstrations.jsonl in this version" in outcome.error) == (2, True)


def test_a_folder_with_a_manifest_of_its_own_is_read_as_before(tiny_command, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", records()["demonstrations"])
    (folder / "manifest.json").write_text('{"title": "mine"}')
    assert tiny_command("sft", f"data.demonstrations={folder}").code == 0
    assert load_manifest(tmp_path / "run" / "sft")["inputs"] == []


# ---- what to ask first


def test_a_reward_model_puts_first_what_it_is_least_sure_of_and_leaves_a_share_in_random_places(
    finished, taught, world, tmp_path, capsys
):
    place, temperature = ("--dir", tmp_path / "collect"), ("--temperature", 1.5)
    assert collect("init", *place) == 0
    policy = ("--policy", taught / "sft", "--prompts", world / "prompts.jsonl", "--num-prompts", 20, *temperature)
    assert collect("sample", *place, *policy, "--prioritise", finished / "reward") == 0
    sampled = places(tmp_path / "collect")
    assert collect("prioritise", *place, finished / "reward", "--random-share", 0) == 0
    assert f"{len(sampled)} open items are in order of uncertainty, 0% of them in random" in capsys.readouterr().out
    ordered = places(tmp_path / "collect")
    assert {origin for *_, origin in sampled.values()} == {"uncertainty", "random"}
    assert all(priority == entropy and origin == "uncertainty" for priority, entropy, origin in ordered.values())
    for name, (_, entropy, _) in sampled.items():
        assert entropy == pytest.approx(ordered[name][1], abs=1e-5)
    assert collect("prioritise", *place, taught / "sft") == 3
    assert "Traceback" not in capsys.readouterr().err


def places(folder: Path) -> dict[str, tuple[float, float, str]]:
    """Item -> (priority, entropy in bits, where its place is from)."""
    database = Database(f"sqlite:///{folder}/collect.db")
    with database.read() as session:
        items = list(session.query(Item))
    database.close()
    return {item.id: (item.priority, item.meta["entropy"], item.meta["priority_from"]) for item in items}


# ---- the pipeline


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def waiting(tmp_path) -> list[str]:
    """Overrides of a pipeline that waits for 40 rankings of 60 prompts."""
    values = {"dir": tmp_path / "collect", "num_prompts": 60, "num_responses": 3, "min_rankings": 40}
    values |= {"port": free_port(), "poll_seconds": 0.2}
    return ["collect=wait", *(f"collect.{key}={value}" for key, value in values.items())]


def waiting_at(overrides: list[str]) -> str:
    """Where the page of these overrides is."""
    (port,) = (value.removeprefix("collect.port=") for value in overrides if value.startswith("collect.port="))
    return f"http://127.0.0.1:{port}"


def test_the_pipeline_waits_stops_goes_on_and_trains_on_what_people_ranked(run_dir, waiting, start, ended, tmp_path):
    process = start("pipeline", *LESSONS, *waiting)
    lines = heard_until(process, "collect: 0 of 40 rankings")
    origin = waiting_at(waiting)
    assert any(f"the page is open at {origin}" in line for line in lines)
    assert any("make the first account" in line and f"{origin}/invite/" in line for line in lines)
    assert rank_everything(tmp_path / "collect", 12) == 12
    heard_until(process, "collect: 12 of 40 rankings")
    process.send_signal(signal.SIGTERM)
    outcome = ended(process)
    assert (outcome.code, "stopped at 12 of 40 rankings" in outcome.error) == (75, True)

    process = start("pipeline", *LESSONS, *waiting)
    heard_until(process, "collect: 12 of 40 rankings")
    threading.Thread(target=rank_everything, args=(tmp_path / "collect",)).start()
    outcome = ended(process)
    assert outcome.code == 0, outcome.err
    version = tmp_path / "collect" / "versions" / "1"
    assert f"data.rankings={version}" in outcome.err
    inputs = {entry["role"]: entry["sha256"] for entry in load_manifest(run_dir / "reward")["inputs"]}
    assert inputs["rankings"] == manifest_sha256(version)
    assert json.loads((run_dir / "evaluate" / "report.json").read_text())["simulated"] is False

    again = ended(start("pipeline", *LESSONS, *waiting))
    assert again.code == 0 and "has enough rankings" in again.err and "reward: up to date" in again.err
    assert [path.name for path in (tmp_path / "collect" / "versions").iterdir()] == ["1"]


def heard_until(process, words: str) -> list[str]:
    """What a process says on stderr, up to the line with these words."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if words in line:
            return lines
    raise AssertionError(f"it never said {words!r}:\n{''.join(lines)}")


def test_a_queue_that_cannot_bring_enough_rankings_is_refused_at_once(run_dir, waiting, stage):
    outcome = stage("pipeline", *waiting, "collect.min_rankings=100")
    assert outcome.code == 2
    assert outcome.error.startswith("collect.min_rankings=100: the queue asks for ")


def test_prompts_that_leave_a_split_empty_are_refused_before_anybody_ranks(run_dir, waiting, stage):
    outcome = stage("pipeline", *waiting, "collect.num_prompts=1", "collect.min_rankings=1")
    assert outcome.code == 2
    assert outcome.error.startswith("collect.num_prompts=1: the ")


def test_a_port_where_something_else_is_served_is_refused(run_dir, waiting, stage):
    with socket.create_server(("127.0.0.1", 0)) as other:
        outcome = stage("pipeline", *waiting, f"collect.port={other.getsockname()[1]}")
    assert outcome.code == 2
    assert "something else is served there; choose another port" in outcome.error


def test_waiting_is_refused_under_a_launcher(waiting, stage, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    outcome = stage("pipeline", *waiting, "deepspeed=zero2")
    assert outcome.code == 2
    assert "collect.wait=true waits in one process, and this run has 2" in outcome.error


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("collect.num_responses=10", "collect.num_responses=10 must be 2 to 9 answers"),
        ("collect.min_rankings=0", "collect.min_rankings=0 must be > 0"),
        ("collect.port=70000", "collect.port=70000 must be a port"),
        ("collect.dir=''", "collect.dir='' must name a folder"),
    ],
)
def test_a_value_of_collect_that_cannot_be_is_refused(tiny_command, override, message):
    outcome = tiny_command("pipeline", "collect=wait", override)
    assert outcome.code == 2 and message in outcome.error


def test_answers_of_another_policy_than_the_run_s_are_told(version, tmp_path, capsys):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "manifest.json").write_text("of an SFT stage that was run again")
    waiting_module.tell_of_other_policies(version, composed(f"inputs.sft={tmp_path}/sft"))
    assert f"not all of its answers are by {tmp_path}/sft as it is now; also by " in capsys.readouterr().err


def test_answers_of_the_run_s_own_policy_alone_are_not_worth_a_word(version, taught, capsys):
    waiting_module.tell_of_other_policies(version, composed(f"inputs.sft={taught}/sft"))
    assert capsys.readouterr().err == ""
