"""Versions: what a ranking becomes, what stays out and why, and a folder that is whole or not there."""

import hashlib
import hmac
import json
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from collect_world import NOW, add_people, add_ranked_items, hand_in, new_item, take
from sqlalchemy import func, select

from reward.collect.export import exported, versions
from reward.collect.integrity.verify import require_whole
from reward.collect.people.accounts import set_status
from reward.collect.ranking import annotations
from reward.collect.ranking.items import NewItem, NewResponse, add_items
from reward.collect.ranking.submissions import parse_submission
from reward.collect.refusals import Conflict, NotFound, Refusal
from reward.collect.store.tables import Annotation, Annotator, Guidelines, Item, Prompt, Response, Version
from reward.rankings import parse_ranking
from rlhf.artifacts.commit import commit
from rlhf.artifacts.manifest import manifest_sha256, verify
from rlhf.data.load import parse_demonstration
from rlhf.data.records import Row
from rlhf.data.sources import open_source
from rlhf.errors import ArtifactError
from rlhf.locks import locked

ROOT = Path(__file__).parents[3]


def export(database, tmp_path, now=NOW + 1000):
    return versions.export_version(database, tmp_path, "command line", now)[0]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def rank_one(database, handle="ann", item=None, **said):
    """One item, ranked by one person as `said`."""
    with database.write() as session:
        add_items(session, [item or new_item(0)], "command line", NOW)
    (annotator,) = add_people(database, handle)
    said = {"active_seconds": 50.0, **said}
    return hand_in(database, annotator, take(database, annotator), **said)


def change(database, table, **values):
    with database.write() as session:
        for row in session.scalars(select(table)):
            for name, value in values.items():
                setattr(row, name, value)


# Rows


def test_a_row_holds_what_the_person_said_and_what_they_saw(database, tmp_path):
    with database.write() as session:
        item = NewItem(
            [{"role": "user", "content": "Why?"}],
            [NewResponse(text, {"policy": text.lower()}) for text in "AB"],
            "file:1",
            prompt_id="p1",
            group="g1",
        )
        add_items(session, [item], "command line", NOW)
    (annotator,) = add_people(database, "ann")
    work = take(database, annotator)
    ids = {text: one for one, text in work.responses}
    made = hand_in(
        database, annotator, work, ranks={ids["A"]: 2, ids["B"]: 1}, comment="B is right", active_seconds=50.0
    )
    (row,) = lines(export(database, tmp_path) / "rankings.jsonl")
    name = hmac.new(bytes.fromhex("11" * 16), annotator.id.encode(), hashlib.sha256).hexdigest()[:12]
    texts = row["responses"]
    assert row["prompt"] == [{"role": "user", "content": "Why?"}]
    assert dict(zip(texts, row["ranks"], strict=True)) == {"A": 2, "B": 1}
    assert (row["annotator"], row["prompt_id"], row["group"]) == (f"anon-{name}", "p1", "g1")
    meta = row["meta"]
    assert [texts[i] for i in meta["display_order"]] == [text for _, text in work.responses]
    assert [sources[0]["policy"] for sources in meta["sources"]] == [text.lower() for text in texts]
    assert (meta["comment"], meta["seconds"], meta["unacceptable"]) == ("B is right", 50.0, [])
    assert (meta["item_id"], meta["annotation_id"], meta["guidelines_version"]) == (made.item_id, made.id, 1)


def test_neither_handle_nor_id_of_a_person_is_in_a_version(database, tmp_path):
    made = rank_one(database, "someone")
    folder = export(database, tmp_path)
    content = b"".join(path.read_bytes() for path in folder.iterdir())
    assert b"someone" not in content and made.annotator_id.encode() not in content


def test_unacceptable_answers_are_named_by_index(database, tmp_path):
    with database.write() as session:
        add_items(session, [new_item(0)], "command line", NOW)
    (annotator,) = add_people(database, "ann")
    work = take(database, annotator)
    ids = {text: one for one, text in work.responses}
    ranks = {ids["0.0"]: 2, ids["0.1"]: 1, ids["0.2"]: 3}
    hand_in(database, annotator, work, ranks=ranks, unacceptable=[ids["0.2"]])
    (row,) = lines(export(database, tmp_path) / "rankings.jsonl")
    assert [row["responses"][i] for i in row["meta"]["unacceptable"]] == ["0.2"]


@pytest.mark.slow
def test_the_reward_stage_reads_a_version_by_its_folder(database, tmp_path):
    add_ranked_items(database, 2)
    folder = export(database, tmp_path)
    raw_rows, _ = open_source(str(folder), "data.rankings")
    rankings = [parse_ranking(Row(json.loads(raw), where)) for where, raw in raw_rows]
    orders = [dict(zip(one.responses, one.ranks, strict=True)) for one in rankings]
    assert {"0.0": 1, "0.1": 2, "0.2": 3} in orders and len(orders) == 2


def test_the_latest_revision_counts_alone(database, tmp_path):
    made = rank_one(database)
    turned = {one: 4 - rank for one, rank in made.ranks.items()}
    submission = parse_submission({"ranks": turned, "active_seconds": 50.0})
    with database.write() as session:
        annotator = session.get(Annotator, made.annotator_id)
        annotations.revise(session, annotator, made.id, submission, "key-2", NOW + 100)
    folder = export(database, tmp_path)
    (row,) = lines(folder / "rankings.jsonl")
    assert sorted(zip(row["responses"], row["ranks"], strict=True)) == [("0.0", 3), ("0.1", 2), ("0.2", 1)]
    assert row["meta"]["revision"] == 2
    assert json.loads((folder / "report.json").read_text())["replaced_by_a_revision"] == 1


def test_an_answer_that_a_person_wrote_is_a_demonstration(database, tmp_path):
    rank_one(database, demonstration="0.0, and why.")
    (row,) = lines(export(database, tmp_path) / "demonstrations.jsonl")
    assert row["completion"] == "0.0, and why."
    assert row["annotator"].startswith("anon-")
    assert parse_demonstration(Row(row, "file:1")).messages[-1] == {"role": "assistant", "content": "0.0, and why."}


def test_there_is_no_file_of_demonstrations_where_nobody_wrote_one(database, tmp_path):
    rank_one(database)
    assert sorted(path.name for path in export(database, tmp_path).iterdir()) == [
        "manifest.json",
        "rankings.jsonl",
        "report.json",
    ]


# What stays out


@pytest.mark.parametrize(
    ("reason", "spoil"),
    [
        ("gold", lambda database: change(database, Item, kind="gold")),
        ("repeat", lambda database: change(database, Item, kind="repeat")),
        ("cancelled item", lambda database: change(database, Item, state="cancelled")),
        ("paused annotator", lambda database: change(database, Annotator, status="paused")),
        ("too fast", lambda database: change(database, Annotation, active_seconds=4.9)),
    ],
)
def test_what_stays_out_is_counted_with_its_reason(database_url, make_collection, tmp_path, reason, spoil):
    database = make_collection(database_url, min_seconds=5.0)
    rank_one(database, demonstration="Because.")
    spoil(database)
    rank_one(database, "bob", new_item(1))  # so that there is something to export
    folder = export(database, tmp_path)
    report = json.loads((folder / "report.json").read_text())
    assert report["excluded"] == {reason: 1}
    assert report["excluded_demonstrations"] == {reason: 1}
    assert report["counts"]["rankings"] == len(lines(folder / "rankings.jsonl")) == 1


def test_a_person_who_is_paused_later_is_in_earlier_versions_only(database, tmp_path):
    made = rank_one(database)
    rank_one(database, "bob", new_item(1))
    first = export(database, tmp_path)
    with database.write() as session:
        set_status(session, made.annotator_id, "paused", "command line", NOW)
    assert (len(lines(first / "rankings.jsonl")), len(lines(export(database, tmp_path) / "rankings.jsonl"))) == (2, 1)


def test_what_cannot_be_ranked_still_gives_its_demonstration(database, tmp_path):
    rank_one(database, ranks={}, not_rankable="all wrong", demonstration="Because.")
    folder = export(database, tmp_path)
    assert not (folder / "rankings.jsonl").exists()
    assert lines(folder / "demonstrations.jsonl")[0]["completion"] == "Because."
    assert json.loads((folder / "report.json").read_text())["excluded"] == {"not rankable": 1}


def test_a_ranking_of_one_answer_stays_out(database_url, make_collection, tmp_path):
    database = make_collection(database_url, allow_partial=True)
    made = rank_one(database)
    change(database, Annotation, ranks={one: 1 if i == 0 else None for i, one in enumerate(made.ranks)})
    with pytest.raises(Refusal, match=r"nothing to export \(1 fewer than two ranked\)"):
        export(database, tmp_path)


def test_an_empty_collection_is_not_exported(database, tmp_path):
    with pytest.raises(Refusal, match="nothing to export \\(nobody has ranked yet\\)"):
        export(database, tmp_path)
    assert list(tmp_path.glob("versions/*")) == []


# The artifact


def test_a_version_is_a_sealed_artifact_of_stage_collect(database, tmp_path):
    add_ranked_items(database, 2, handles=("ann",))
    with database.write() as session:
        session.add(Guidelines(version=2, text="Be strict.", created_at=NOW))
    folder = export(database, tmp_path)
    manifest = verify(folder)
    assert (folder, manifest["stage"]) == (tmp_path / "versions" / "1", "collect")
    assert manifest["config"]["collect.name"] == "test"
    assert manifest["config"]["collect.guidelines_version"] == 2
    assert manifest["config"]["collect.settings.overlap"] == 1
    assert manifest["metrics"]["rankings"] == manifest["metrics"]["items"] == manifest["metrics"]["prompts"] == 2
    assert manifest["metrics"]["annotators"] == 1
    assert "agreement" in json.loads((folder / "report.json").read_text())


def test_an_altered_version_is_refused_and_says_what_to_do(database, tmp_path):
    rank_one(database)
    folder = export(database, tmp_path)
    content = (folder / "rankings.jsonl").read_text()
    (folder / "rankings.jsonl").write_text(content.replace('"0.0"', '"0.1"', 1))
    with pytest.raises(ArtifactError, match=r"rankings.jsonl: altered.* rerun python -m reward.collect export"):
        verify(folder)


def test_the_artifacts_that_gave_the_answers_are_the_inputs(database, tmp_path):
    sft = tmp_path / "run" / "sft"
    sft.mkdir(parents=True)
    (sft / "notes.txt").write_text("weights")
    empty = {"config": {}, "data": [], "inputs": [], "base_model": None, "metrics": {}, "seconds": 0.0}
    commit(sft, "sft", **empty)
    ours = {"policy": str(sft), "manifest_sha256": manifest_sha256(sft)}
    sources = [ours, {**ours, "sample": 1}, {"policy": "owner/hub-model", "manifest_sha256": None}]
    responses = [NewResponse(str(i), source) for i, source in enumerate(sources)]
    rank_one(database, item=NewItem([{"role": "user", "content": "Why?"}], responses, "x:1"))
    folder = export(database, tmp_path / "collect")
    (entry,) = verify(folder)["inputs"]
    assert (entry["role"], entry["sha256"]) == ("policy", manifest_sha256(sft))
    assert os.path.samefile(folder / entry["path"], sft)


# Numbers


def test_versions_are_numbered_and_the_database_knows_them(database, tmp_path):
    rank_one(database)
    folders = [export(database, tmp_path)]
    rank_one(database, "bob", new_item(1))
    folders.append(export(database, tmp_path, NOW + 2000))
    assert [folder.name for folder in folders] == ["1", "2"]
    with database.read() as session:
        newest, first = versions.versions_of(session)
        assert (newest.seq, newest.created_at, newest.created_by) == (2, NOW + 2000, "command line")
        assert first.manifest_sha256 == manifest_sha256(folders[0])
        assert first.counts["rankings"] == 1
        assert versions.version_folder(session, tmp_path, 1) == folders[0]
        require_whole(session)


def test_a_folder_of_the_next_number_is_never_written_over(database, tmp_path):
    rank_one(database)
    (tmp_path / "versions" / "1").mkdir(parents=True)
    with pytest.raises(Conflict, match="versions/1: is there already, and a version never changes"):
        export(database, tmp_path)
    assert [path.name for path in tmp_path.glob("versions/*")] == ["1"]
    assert list((tmp_path / "versions" / "1").iterdir()) == []
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Version)) == 0


def test_an_export_that_fails_leaves_nothing(database, tmp_path, monkeypatch):
    rank_one(database)
    monkeypatch.setattr(versions, "commit", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        export(database, tmp_path)
    monkeypatch.undo()
    assert not (tmp_path / "versions").exists() or list((tmp_path / "versions").iterdir()) == []
    assert export(database, tmp_path).name == "1"


def test_what_a_killed_export_left_is_removed_by_the_next(database, tmp_path):
    rank_one(database)
    left = tmp_path / "versions" / ".making-0123"
    left.mkdir(parents=True)
    (left / "rankings.jsonl").write_text('{"prompt"')
    assert export(database, tmp_path).name == "1"
    assert names(tmp_path) == ["1"]


def test_what_is_being_made_is_not_taken_for_what_a_kill_left(database, tmp_path):
    rank_one(database)
    under_way = tmp_path / "versions" / ".making-0123"
    under_way.mkdir(parents=True)
    told = r"versions is in use by process \d+ since .*; wait for its end, stop it, or try again"
    with locked(tmp_path / "versions", ""), pytest.raises(Conflict, match=told):
        versions.export_version(database, tmp_path, "command line", NOW, patience=0)
    assert under_way.is_dir()


def test_a_version_killed_before_it_took_its_place_takes_it_at_the_next_export(database, tmp_path):
    rank_one(database)
    made = export(database, tmp_path)
    sha256 = manifest_sha256(made)
    made.rename(tmp_path / "versions" / ".making-0123")
    assert versions.export_version(database, tmp_path, "command line", NOW + 2000) == (made, False)
    assert names(tmp_path) == ["1"] and manifest_sha256(made) == sha256


def names(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "versions").iterdir())


# Twice


def test_exporting_twice_makes_one_version(database, tmp_path):
    rank_one(database)
    assert versions.export_version(database, tmp_path, "lea", NOW + 1000) == (tmp_path / "versions" / "1", True)
    assert versions.export_version(database, tmp_path, "lea", NOW + 2000) == (tmp_path / "versions" / "1", False)
    with database.read() as session:
        assert len(versions.versions_of(session)) == 1
    rank_one(database, "bob", new_item(1))
    assert versions.export_version(database, tmp_path, "lea", NOW + 3000) == (tmp_path / "versions" / "2", True)


def test_exports_at_the_same_time_make_one_version(database, tmp_path):
    rank_one(database)
    made = []
    export_once = lambda: made.append(versions.export_version(database, tmp_path, "command line", NOW))  # noqa: E731
    threads = [threading.Thread(target=export_once) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted((path.name, is_new) for path, is_new in made) == [("1", False)] * 3 + [("1", True)]
    assert names(tmp_path) == ["1"]


@pytest.mark.slow
def test_two_processes_that_export_at_once_make_one_version(database, tmp_path):
    rank_one(database)
    url = database.url.render_as_string(hide_password=False)
    code = "import sys; from reward.collect.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "export", "--dir", str(tmp_path), "--database", url]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    told = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(out.startswith("nothing new since version 1") for out in told) == [False, True]
    assert names(tmp_path) == ["1"]


# Rows that do not fit together


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (Response, "the response {} of its item "),
        (Prompt, "the prompt {} of its item "),
        (Item, "its item {} is gone"),
        (Annotator, "its annotator {} is gone"),
    ],
)
def test_a_refused_export_says_which_rows_are_torn(tmp_path, make_collection, table, message):
    database = make_collection(f"sqlite:///{tmp_path}/collect.db")
    made = rank_one(database)
    with database.read() as session:
        row_id = session.scalars(select(table.id)).first()
    with sqlite3.connect(database.url.database) as connection:  # from outside, which knows of no foreign keys
        connection.execute(f"DELETE FROM {table.__tablename__} WHERE id = ?", [row_id])
    with pytest.raises(Refusal) as refused, database.read() as session:
        list(exported.exported_rows(session, exported.Export()))
    assert "1 annotation cannot be exported" in str(refused.value)
    assert f"annotation {made.id}: {message.format(row_id)}" in str(refused.value)
    with pytest.raises(Refusal, match=f"{table.__tablename__} {row_id}: is gone; audit row"):
        export(database, tmp_path)
    assert not list(tmp_path.glob("versions/*"))


def test_a_ranking_of_another_items_answers_is_told_by_name(database, tmp_path):
    made = rank_one(database)
    change(database, Annotation, ranks={**made.ranks, "zz": 4})
    with pytest.raises(Refusal, match=f"annotation {made.id}: it speaks of response zz, which its item {made.item_id}"):
        export(database, tmp_path)


def test_more_rows_than_are_read_at_once_come_in_the_order_of_submission(database, tmp_path, monkeypatch):
    monkeypatch.setattr(exported, "CHUNK", 2)
    made = add_ranked_items(database, 5)
    rows = lines(export(database, tmp_path) / "rankings.jsonl")
    assert [row["meta"]["annotation_id"] for row in rows] == [one.id for one in made]
    with database.read() as session:
        assert exported.num_rankings(session) == 5


def test_a_version_that_is_gone_or_another_one_is_not_given_out(database, tmp_path):
    rank_one(database)
    folder = export(database, tmp_path)
    with database.read() as session:
        with pytest.raises(NotFound, match="version 7: there is none"):
            versions.version_folder(session, tmp_path, 7)
        folder.rename(tmp_path / "away")
        with pytest.raises(NotFound, match="is gone or is another one"):
            versions.version_folder(session, tmp_path, 1)


def test_a_format_is_made_from_the_file_that_it_is_about(database, tmp_path):
    rank_one(database, demonstration="Because.")
    folder = export(database, tmp_path)
    assert [row["completion"] for row in versions.version_rows(folder, "sft")] == ["Because."]
    assert [len(row["ranks"]) for row in versions.version_rows(folder, "trl")] == [3]
    (folder / "demonstrations.jsonl").unlink()
    with pytest.raises(Refusal, match="format 'sft': version 1 has no demonstrations"):
        versions.version_rows(folder, "sft")
