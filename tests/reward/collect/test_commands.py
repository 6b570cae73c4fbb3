"""`python -m reward.collect`: what each command does and says, and one line for whatever cannot be done."""

import errno
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from collect_world import add_annotator, add_new_items, add_ranked_items, items_of
from sqlalchemy import create_engine
from tiny_world import write_jsonl

from reward.collect import formats, home
from reward.collect.__main__ import main
from reward.collect.cli.options import READ, WRITTEN, parser
from reward.collect.intake.answers import AnswerFile
from reward.collect.people.accounts import usable_invite
from reward.collect.people.tokens import token_holder
from reward.collect.progress import passing
from reward.collect.ranking import items
from reward.collect.refusals import NotFound
from reward.collect.store.collection import collection_of, settings_of
from reward.collect.store.tables import Annotation, Audit, Guidelines, Item
from rlhf.artifacts.manifest import verify
from rlhf.errors import UserError
from rlhf.locks import locked

ROOT = Path(__file__).parents[3]
ANSWERS = [{"prompt": f"Question {i}?", "responses": ["yes", "no"]} for i in range(3)]


@pytest.fixture
def collect(tmp_path, capsys):
    """collect("stats"): (exit code, stdout, stderr) of a command on the collection in tmp_path/collect."""

    def run(command: str, *arguments) -> tuple[int, str, str]:
        code = main([command, "--dir", str(tmp_path / "collect"), *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def folder(collect, tmp_path) -> Path:
    """The folder of a fresh collection."""
    assert collect("init", "--agreement-share", 0, "--gold-share", 0)[0] == 0
    return tmp_path / "collect"


@pytest.fixture
def database(folder):
    database = home.open_collection(folder, None)
    yield database
    database.close()


def refusal(outcome: tuple[int, str, str]) -> str:
    """The error of a command that was refused with 2 and said no more than that."""
    code, _, err = outcome
    assert code == 2 and err.startswith("error: ") and "Traceback" not in err
    return err.removeprefix("error: ").strip()


# ---- init


def test_init_makes_a_collection_and_prints_a_link_for_the_first_lead(collect, tmp_path):
    code, out, err = collect(
        "init", "--name", "support", "--overlap", 3, "--agreement-overlap", 4, "--criteria", "kind", "true"
    )
    assert (code, err) == (0, "")
    assert re.search(r"^  http://127\.0\.0\.1:8000/invite/[\w-]{40,}$", out, re.MULTILINE)
    with home.open_collection(tmp_path / "collect", None).read() as session:
        settings = settings_of(session)
    assert (settings.overlap, settings.criteria, settings.lease_seconds) == (3, ("kind", "true"), 1800)


def test_init_again_changes_what_is_given_and_says_so(collect, folder, database, tmp_path):
    (tmp_path / "guide.md").write_text("Be *kind*.")
    code, out, _ = collect("init", "--no-allow-ties", "--guidelines", tmp_path / "guide.md")
    assert code == 0
    assert out.splitlines()[:2] == ["allow_ties: True -> False", "guidelines: version 2"]
    with database.read() as session:
        assert session.get(Guidelines, 2).text == "Be *kind*."
    assert "nothing was to be changed" in collect("init", "--guidelines", tmp_path / "guide.md")[1]


def test_who_raises_the_overlap_is_told_that_queued_items_keep_theirs(collect, folder, database):
    add_new_items(database, 3)
    assert "those that are queued keep the number of people they have" in collect("init", "--overlap", 2)[1]
    assert "0 of 3 rankings" in collect("stats")[1]
    assert "queued" not in collect("init", "--min-seconds", 2)[1]


def test_a_database_is_for_its_owner_s_eyes_only(folder):
    assert (folder / "collect.db").stat().st_mode & 0o077 == 0


def test_a_setting_that_cannot_be_is_refused_before_anything_is_made(collect, tmp_path):
    assert refusal(collect("init", "--overlap", 0)) == "overlap is 0; it must be 1 to 50 people"
    assert not (tmp_path / "collect").exists()


def test_a_newer_schema_is_refused(collect, folder, database):
    with database.write() as session:
        session.connection().exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    assert "is of a newer release than this one" in refusal(collect("init"))


def test_every_setting_is_an_option_with_its_comment_as_help(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["init", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "--lease-seconds N an item that somebody opened and left goes to somebody else after this (default: 1800)"
        in text
    )
    assert "--allow-ties, --no-allow-ties answers may share a place (default: True)" in text


@pytest.mark.parametrize(
    "command", ["sample", "import", "invite", "token", "serve", "stats", "export", "backup", "prioritise"]
)
def test_every_command_has_a_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        parser().parse_args([command, "--help"])
    assert ended.value.code == 0 and "--dir" in capsys.readouterr().out


# ---- a collection that is not there


@pytest.mark.parametrize("command", ["invite", "stats", "export", "backup", "serve"])
def test_a_command_without_a_collection_says_how_to_make_one_and_makes_nothing(collect, command, tmp_path):
    assert "no collection is there; make one with python -m reward.collect init" in refusal(collect(command))
    assert not (tmp_path / "collect").exists()


@pytest.mark.slow
def test_a_database_by_url_needs_no_folder(collect, postgres_url, tmp_path, monkeypatch):
    monkeypatch.setenv("COLLECT_DATABASE_URL", postgres_url)
    assert "holds no collection" in refusal(collect("stats"))
    assert collect("init", "--name", "theirs")[0] == 0
    assert "theirs: 0 of 0 rankings" in collect("stats")[1]
    assert not (tmp_path / "collect").exists()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:///", "names no file"),
        ("postgresql://me@host:port/name", "is no URL"),
        (f"sqlite:///{__file__}", "cannot be read (file is not a database)"),
    ],
)
def test_a_database_that_cannot_be_one_is_refused(collect, url, message):
    assert message in refusal(collect("init", "--database", url))


@pytest.mark.slow
def test_a_damaged_database_is_one_line_with_the_remedy(collect, folder, database):
    add_ranked_items(database, 60)
    database.close()
    content = bytearray((folder / "collect.db").read_bytes())
    content[4096 * 3 :] = b"\xff" * (len(content) - 4096 * 3)
    (folder / "collect.db").write_bytes(content)
    for command in ("stats", "backup", "export"):
        said = refusal(collect(command))
        assert "malformed" in said and "Put a backup in its place, and before that remove the files" in said


def test_the_database_of_another_program_is_refused(collect, postgres_url):
    with create_engine(postgres_url).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('c0ffee')")
    assert "another program's" in refusal(collect("init", "--database", postgres_url))


def test_a_database_that_does_not_answer_is_named(collect, tmp_path):
    (tmp_path / "folder.db").mkdir()
    url = f"sqlite:///{tmp_path}/folder.db"
    assert refusal(collect("init", "--database", url)).startswith(f"{tmp_path}/folder.db: the database does not answer")


def test_an_init_that_was_killed_half_way_is_taken_up_again(collect, tmp_path):
    (tmp_path / "collect").mkdir()
    tables = home.open_database(tmp_path / "collect", None)
    tables.upgrade()
    tables.close()
    assert "made the collection 'collect'" in collect("init")[1]
    assert "0 of 0 rankings" in collect("stats")[1]


# ---- in and out


def test_invite_for_somebody_who_is_not_there_is_refused(collect, folder):
    assert "nobody here is called 'ann'" in refusal(collect("invite", "--for", "ann"))


def test_invite_prints_one_link_for_each_person(collect, folder):
    code, out, _ = collect("invite", "-n", 3, "--origin", "https://rank.example.org")
    links = out.split()
    assert code == 0 and len(set(links)) == 3
    assert all(link.startswith("https://rank.example.org/invite/") for link in links)


def test_an_origin_may_end_in_a_slash(collect, folder):
    assert collect("invite", "--origin", "https://rank.example.org/")[1].startswith("https://rank.example.org/invite/")


def test_links_begin_where_the_page_was_served_last(collect, folder, database):
    with database.write() as session:
        collection_of(session).origin = "http://127.0.0.1:8123"
    assert collect("invite")[1].startswith("http://127.0.0.1:8123/invite/")
    assert "  http://127.0.0.1:8123/invite/" in collect("init")[1]
    assert collect("invite", "--origin", "https://other")[1].startswith("https://other/invite/")


def test_init_keeps_the_origin_for_later_links(collect):
    assert "  https://rank.example.org/invite/" in collect("init", "--origin", "https://rank.example.org/")[1]
    assert collect("invite")[1].startswith("https://rank.example.org/invite/")


def test_a_new_link_for_the_first_lead_replaces_the_one_before(collect, folder, database):
    links = [link_in(collect("init")[1]) for _ in range(2)]
    with database.read() as session:
        with pytest.raises(NotFound, match="has expired"):
            usable_invite(session, links[0], time.time())
        assert usable_invite(session, links[1], time.time()).role == "lead"


def link_in(out: str) -> str:
    """The secret of the link that was printed."""
    return re.search(r"/invite/([\w-]+)", out)[1]


def test_init_without_guidelines_says_so_and_how_to_add_them(collect, folder, tmp_path):
    (tmp_path / "guide.md").write_text("Be *kind*.")
    out = collect("init")[1]
    assert f"annotators will see no guidelines; python -m reward.collect init --dir {folder} --guidelines FILE" in out
    assert "no guidelines" not in collect("init", "--guidelines", tmp_path / "guide.md")[1]


def test_a_token_is_printed_once_and_is_of_its_person_and_scopes(collect, folder, database):
    with database.write() as session:
        ann = add_annotator(session, "ann", "lead")
    code, out, err = collect("token", "Ann", "--scope", "read", "--scope", "export", "--days", 3)
    assert code == 0 and "the key of ann: export, read, for 3 days; it is not shown again" in err
    with database.read() as session:
        assert token_holder(session, out.strip(), "export", time.time()).id == ann.id
        made = session.query(Audit).filter_by(action="create_token").one()
    assert (made.actor, made.after["annotator"]) == ("command line", ann.id)


def test_a_token_needs_a_person_who_may_have_it(collect, folder, database):
    with database.write() as session:
        add_annotator(session, "ann")
    assert "nobody here is called 'bob'; python -m reward.collect invite" in refusal(
        collect("token", "bob", "--scope", "annotate")
    )
    assert "scope 'read' is for a lead; ann is annotator" in refusal(collect("token", "ann", "--scope", "read"))
    assert "days is 400.0" in refusal(collect("token", "ann", "--scope", "annotate", "--days", 400))


def test_import_queues_answers_and_a_dry_run_stores_nothing(collect, database, tmp_path):
    file = write_jsonl(tmp_path / "answers.jsonl", ANSWERS)
    assert "would queue 3 items, with 3 new prompts" in collect("import", file, "--dry-run")[1]
    with database.read() as session:
        assert session.query(Item).count() == 0
    assert collect("import", file)[1] == "queued 3 items, with 3 new prompts\n"
    assert collect("import", file)[1] == "queued 0 items, with 0 new prompts\n3 items there already\n"


def test_a_dry_run_waits_for_nobody_who_writes(collect, folder, tmp_path):
    file = write_jsonl(tmp_path / "answers.jsonl", ANSWERS)
    with sqlite3.connect(folder / "collect.db", isolation_level=None) as other, locked(folder, ""):
        other.execute("BEGIN IMMEDIATE")
        assert collect("import", file, "--dry-run")[:2] == (0, "would queue 3 items, with 3 new prompts\n")


def test_an_import_that_cannot_go_on_says_how_many_items_are_in_and_the_same_again_adds_the_rest(
    collect, folder, database, tmp_path, monkeypatch
):
    monkeypatch.setattr(items, "FIRST_CHUNK", 1)
    monkeypatch.setattr(items, "CHUNK", 1)
    file = write_jsonl(tmp_path / "answers.jsonl", ANSWERS)
    limit = "CREATE TRIGGER full BEFORE INSERT ON item WHEN (SELECT count(*) FROM item) = 2 BEGIN {}; END"
    with sqlite3.connect(folder / "collect.db") as other:
        other.execute(limit.format("SELECT RAISE(ABORT, 'disk full')"))
    code, _, err = collect("import", file)
    assert code != 0 and err.splitlines()[0] == "2 of 3 items are in; the same again adds the rest"
    assert len(items_of(database)) == 2
    with sqlite3.connect(folder / "collect.db") as other:
        other.execute("DROP TRIGGER full")
    assert collect("import", file)[1] == "queued 1 item, with 1 new prompt\n2 items there already\n"


def test_a_long_command_says_every_few_seconds_how_far_it_is(capsys):
    times = iter([0.0, 3.0, 6.0, 6.0, 7.0, 12.0, 12.0])
    assert list(passing("abcd", "queued {} items", 1234, clock=lambda: next(times))) == list("abcd")
    assert capsys.readouterr().err == "queued 1 of 1,234 items\nqueued 3 of 1,234 items\n"


def test_a_file_that_changes_between_its_check_and_its_import_is_refused(tmp_path):
    file = AnswerFile(write_jsonl(tmp_path / "answers.jsonl", ANSWERS))
    assert len(list(file.items(print))) == 3
    write_jsonl(tmp_path / "answers.jsonl", ANSWERS[:2])
    with pytest.raises(UserError, match=r"answers\.jsonl: has changed since it was checked; run the command again"):
        list(file.items(print))


def test_of_many_bad_records_the_first_are_shown_and_all_counted(collect, folder, tmp_path):
    file = write_jsonl(tmp_path / "answers.jsonl", [{"prompt": "x", "responses": ["one"]}] * 1234)
    error = refusal(collect("import", file))
    assert "1,234 bad records, 0 good" in error and error.endswith("and 1,214 more")
    assert len(error.splitlines()) == 22


def test_one_of_a_kind_is_told_in_the_singular(collect, folder, tmp_path):
    file = write_jsonl(tmp_path / "one.jsonl", ANSWERS[:1])
    assert collect("import", file)[1] == "queued 1 item, with 1 new prompt\n"


def test_a_file_with_bad_lines_is_not_imported_and_each_line_is_named(collect, database, tmp_path):
    file = write_jsonl(
        tmp_path / "answers.jsonl", [*ANSWERS, {"prompt": "x", "responses": ["one"]}, {"responses": ["a", "b"]}]
    )
    error = refusal(collect("import", file))
    assert "2 bad records, 3 good; nothing is stored" in error
    assert f"{file}:4: " in error and f"{file}:5: " in error
    with database.read() as session:
        assert session.query(Item).count() == 0


def test_rankings_made_elsewhere_become_a_file_for_the_reward_stage(collect, tmp_path):
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "Hi?", "chosen": "Hello.", "rejected": "What."}])
    code, out, _ = collect("import", "--rankings", "trl", pairs, "--to", tmp_path / "rankings.jsonl")
    assert (code, out) == (0, f"{tmp_path}/rankings.jsonl: 1 ranking of 1 prompt, 0 with ties, for data.rankings\n")
    (row,) = [json.loads(line) for line in (tmp_path / "rankings.jsonl").read_text().splitlines()]
    assert dict(zip(row["responses"], row["ranks"], strict=True)) == {"Hello.": 1, "What.": 2}
    assert "--rankings needs --to OUT" in refusal(collect("import", "--rankings", "trl", pairs))


def hh(n, answer):
    turn = f"\n\nHuman: Question {n}?\n\nAssistant: "
    return {"chosen": turn + answer, "rejected": turn + "No idea."}


def test_bad_records_are_left_out_on_demand_and_named_and_the_rest_come_in(collect, tmp_path):
    file = write_jsonl(tmp_path / "hh.jsonl", [hh(1, "Yes."), hh(2, ""), hh(3, "So."), {"chosen": "x"}])
    command = ["import", "--rankings", "hh", file, "--to", tmp_path / "out.jsonl"]
    error = refusal(collect(*command))
    assert "2 bad records, 2 good; nothing is stored, mend the file, or leave them out with --on-error skip" in error
    assert not (tmp_path / "out.jsonl").exists()
    out = collect(*command, "--on-error", "skip")[1].splitlines()
    assert out[0] == f"{file}: left out 2 bad records"
    assert out[1].startswith(f"{file}:2: ") and out[2].startswith(f"{file}:4: ")
    assert out[3] == f"{tmp_path}/out.jsonl: 2 rankings of 2 prompts, 0 with ties, for data.rankings"


def test_a_file_without_one_good_record_is_refused_even_where_bad_ones_are_left_out(collect, tmp_path):
    file = write_jsonl(tmp_path / "hh.jsonl", [hh(1, "")])
    to = tmp_path / "out.jsonl"
    error = refusal(collect("import", "--rankings", "hh", file, "--to", to, "--on-error", "skip"))
    assert "1 bad record, 0 good" in error and not to.exists()


def test_answers_are_queued_without_the_bad_ones_on_demand(collect, database, tmp_path):
    file = write_jsonl(tmp_path / "answers.jsonl", [*ANSWERS, {"prompt": "x", "responses": ["one"]}])
    out = collect("import", file, "--on-error", "skip")[1].splitlines()
    assert out[0] == f"{file}: left out 1 bad record" and out[1].startswith(f"{file}:4: field 'responses' has 1")
    assert out[2] == "queued 3 items, with 3 new prompts"


def test_an_import_from_scores_says_that_higher_is_better_and_how_many_have_ties(collect, tmp_path):
    records = [{"prompt": f"{n}?", "responses": ["a", "b"], "scores": [n, 2]} for n in range(3)]
    file, to = write_jsonl(tmp_path / "scores.jsonl", records), tmp_path / "out.jsonl"
    assert collect("import", "--rankings", "canonical", file, "--to", to)[1].splitlines() == [
        f"{to}: 3 rankings of 3 prompts, 1 with ties, for data.rankings",
        "  scores read as ranks: higher is better: 3",
        "  equal scores kept as ties: 1",
    ]
    assert [json.loads(line)["ranks"] for line in to.read_text().splitlines()] == [[2, 1], [2, 1], [1, 1]]
    assert "notes" not in to.read_text()


def test_columns_are_mapped_and_foreign_ones_ignored_by_name(collect, tmp_path):
    record = {"question": "Why?", "answers": ["a", "b"], "ranks": [1, 2], "group": ["x"], "margin": "wide"}
    file, to = write_jsonl(tmp_path / "theirs.jsonl", [record]), tmp_path / "out.jsonl"
    command = ["import", "--rankings", "canonical", file, "--to", to]
    assert "field 'responses' is missing" in (error := refusal(collect(*command, "--field", "prompt=question")))
    assert "Map it with --field responses=" in error
    mapped = ["--field", "prompt=question", "--field", "responses=answers"]
    assert "field 'margin' is 'wide'" in refusal(collect(*command, *mapped))
    assert collect(*command, *mapped, "--ignore", "group", "--ignore", "margin")[0] == 0
    assert json.loads(to.read_text())["responses"] == ["a", "b"]


def test_what_is_wrong_with_columns_is_mended_by_options_of_the_import_and_not_of_a_stage(collect, tmp_path):
    pair = {"prompt": "q", "instruction": "p", "chosen": "a", "rejected": "b"}
    table = "prompt,chosen,rejected,margin\nq,a,b,wide\n"
    files = {"twice.jsonl": f"{json.dumps(pair)}\n", "wide.csv": table}
    for (name, text), ignored in zip(files.items(), ("instruction", "margin"), strict=True):
        (tmp_path / name).write_text(text)
        command = ["import", "--rankings", "trl", tmp_path / name, "--to", tmp_path / f"{name}.out"]
        error = refusal(collect(*command))
        assert f" --ignore {ignored}" in error and "data.fields" not in error
        assert collect(*command, "--ignore", ignored)[0] == 0


def test_export_writes_a_sealed_version_and_another_format(collect, folder, database, tmp_path):
    made = add_ranked_items(database, 4)
    code, out, _ = collect(
        "export", "--format", "trl", "--option", "strategy=best_vs_worst", "--out", tmp_path / "pairs.jsonl"
    )
    assert code == 0 and f"data.rankings={folder}/versions/1" in out
    assert verify(folder / "versions" / "1")["metrics"]["rankings"] == len(made) == 4
    assert len((tmp_path / "pairs.jsonl").read_text().splitlines()) == 4


def test_an_export_says_how_many_rankings_a_format_cannot_hold_and_why(collect, folder, database, tmp_path):
    add_ranked_items(database, 2)
    add_ranked_items(database, 3, k=2, handles=("bob",), order=len)  # both answers of an item are as long
    code, out, err = collect("export", "--format", "trl", "--out", tmp_path / "pairs.jsonl")
    number = len((tmp_path / "pairs.jsonl").read_text().splitlines())
    assert code == 0 and f"{tmp_path}/pairs.jsonl: {number} records of format trl" in out
    told = "3 rankings that trl cannot hold left out: 3 with all answers tied"
    assert err == f"{tmp_path}/pairs.jsonl: {told}\n"
    report = json.loads((folder / "versions" / "1" / "report.json").read_text())
    tied = {"with all answers tied": 3}
    assert report["left_out_of_formats"] == dict.fromkeys(("trl", "trl_implicit", "hh", "openai", "kto"), tied)


def test_what_cannot_be_written_is_told_with_a_remedy_that_the_command_has(collect, folder, database, monkeypatch):
    add_ranked_items(database, 1)

    def full(*_):
        raise OSError(errno.ENOSPC, "no space left")

    for name, remedy in (("fsync", "another --dir"), ("rename", "another --dir")):
        monkeypatch.setattr(os, name, full)
        told = refusal(collect("export"))
        monkeypatch.undo()
        assert f"free some space or choose {remedy}. Results" in told and "run.dir" not in told
    monkeypatch.setattr(os, "replace", full)  # of the file of --out, once there is a version
    collect("export")
    told = refusal(collect("export", "--format", "csv", "--out", folder / "out.csv"))
    assert "free some space or choose another file. Results" in told and "run.dir" not in told


def test_an_export_is_told_in_lines_with_what_was_left_out(collect, folder, database):
    made = add_ranked_items(database, 5, handles=("ann", "bob"))
    with database.write() as session:
        session.get_one(Annotation, made[0].id).not_rankable = "all wrong"
    out = collect("export")[1].splitlines()
    assert out == [
        f"{folder}/versions/1: 4 rankings of 4 items (4 prompts) by 1 annotator",
        "1 ranking left out: 1 not rankable",
        f"train on it: python -m stages.reward data.rankings={folder}/versions/1",
    ]


def test_an_export_of_nothing_new_uses_the_version_that_is_there(collect, folder, database, tmp_path):
    add_ranked_items(database, 2)
    collect("export")
    out = collect("export", "--format", "csv", "--out", tmp_path / "out.csv")[1]
    assert out.startswith("nothing new since version 1") and f"data.rankings={folder}/versions/1" in out
    assert [path.name for path in (folder / "versions").iterdir()] == ["1"]
    assert len((tmp_path / "out.csv").read_text().splitlines()) > 2
    add_ranked_items(database, 3, handles=("bob",))
    assert f"data.rankings={folder}/versions/2" in collect("export")[1]


def test_a_version_that_is_gone_is_exported_anew(collect, folder, database):
    add_ranked_items(database, 2)
    collect("export")
    shutil.rmtree(folder / "versions" / "1")
    assert f"data.rankings={folder}/versions/2" in collect("export")[1]


def test_the_formats_in_the_help_are_those_there_are():
    assert list(WRITTEN) == list(formats.FORMATS) and list(READ) == list(formats.READERS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "trl"], "--format and --out belong together"),
        (["--format", "nothing", "--out", "x"], "format 'nothing' cannot be written; choose one of"),
        (["--format", "csv", "--out", "x", "--option", "a=b"], "format 'csv' has no option 'a'"),
        (["--format", "csv", "--out", __file__], "is there already; choose another name"),
    ],
)
def test_a_format_that_cannot_be_written_makes_no_version(collect, folder, database, arguments, message):
    add_ranked_items(database, 1)
    assert message in refusal(collect("export", *arguments))
    assert not (folder / "versions").exists()


@pytest.mark.slow
def test_stats_shows_progress_agreement_and_annotators(collect, database):
    with database.write() as session:
        home.change_collection(session, None, None, {"overlap": 2, "agreement_overlap": 2}, 0.0)
    add_ranked_items(database, 3, handles=("ann", "bob"))
    code, out, _ = collect("stats")
    assert code == 0
    assert "6 of 6 rankings; items: 3 done" in out
    assert re.search(r"pairs that two people order alike +1\.000", out)
    assert re.search(r"^ann +3 ", out, re.MULTILINE) and re.search(r"^bob +3 ", out, re.MULTILINE)


def test_stats_of_a_comparison_that_is_not_there_is_refused(collect, folder):
    assert "comparison 'x'" in refusal(collect("stats", "--comparison", "x"))


def test_backup_says_where_the_copy_is_and_that_it_is_whole(collect, folder, database):
    add_ranked_items(database, 2)
    code, out, _ = collect("backup")
    (copy,) = (folder / "backups").iterdir()
    assert code == 0 and out.startswith(f"{copy}: ") and "audit rows in one chain" in out
    assert f"to restore it: put it as collect.db into an empty folder, beside a copy of {folder}/versions" in out


def test_a_backup_to_where_nothing_can_be_made_is_one_line(collect, folder):
    said = refusal(collect("backup", "--to", "/proc/nope"))
    assert said.startswith("cannot write /proc/nope: there is no such folder")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "a", "-k", "10"], "-k 10: people rank 2 to 9 answers"),
        (["--policy", "a", "--policy", "a"], "--policy names the same one twice"),
        (["--policy", "a", "--comparison", "c"], "--comparison c: compares 2 to 9 policies, not 1"),
        (
            ["--policy", "a", "--policy", "b", "--policy", "c", "-k", "2"],
            "-k 2: people rank 3, one of each policy, to 9",
        ),
    ],
)
def test_policies_and_answers_that_do_not_go_together_are_refused(collect, folder, arguments, message):
    assert message in refusal(collect("sample", "--prompts", "p.jsonl", *arguments))


def test_a_policy_that_is_not_there_is_named_before_any_answer_is_drawn(collect, folder, tmp_path):
    hub_id = "owner/name"  # the first; were answers drawn before the second is looked at, it would be the one refused
    said = refusal(collect("sample", "--prompts", "p.jsonl", "--policy", hub_id, "--policy", tmp_path / "typo"))
    assert said.startswith(f"--policy {tmp_path}/typo: no such folder, and no hub id") and "\n" not in said


# ---- as a program


def program(*arguments, **environment) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-m", "reward.collect", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


@pytest.mark.slow
def test_it_runs_as_a_module_and_exits_with_the_code_of_its_error(tmp_path):
    done = program("stats", "--dir", tmp_path / "nowhere")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert program("--help").returncode == 0
    assert program("dance").returncode == 2


def test_without_its_extra_one_line_says_what_to_install(tmp_path):
    (tmp_path / "sqlalchemy").mkdir()
    missing = "raise ModuleNotFoundError(\"No module named 'sqlalchemy'\", name='sqlalchemy')"
    (tmp_path / "sqlalchemy" / "__init__.py").write_text(missing)
    done = program("stats", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: the collection server needs sqlalchemy, of the extra [collect]")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_command_line_starts_without_torch(tmp_path):
    code = "import sys, reward.collect.cli.commands, reward.collect.web.server; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=120).returncode == 0


# ---- two at once


@pytest.mark.slow
def test_of_commands_at_once_the_second_waits_and_finds_what_the_first_has_made(tmp_path):
    command = [sys.executable, "-m", "reward.collect", "init", "--dir", str(tmp_path / "collect"), "--name", "toy"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
    both = [subprocess.Popen(command, **options, env={**os.environ, "PYTHONPATH": str(ROOT)}) for _ in range(2)]
    ends = [(*process.communicate(timeout=300), process.returncode) for process in both]
    assert [code for *_, code in ends] == [0, 0], ends
    told = sorted("made the collection" in out for out, *_ in ends)
    assert told == [False, True], ends
    assert not (tmp_path / "collect" / ".lock").exists()


def test_a_command_that_would_wait_too_long_is_refused_with_who_is_at_work(collect, folder, monkeypatch, tmp_path):
    monkeypatch.setattr(home, "PATIENCE", 0.1)
    with locked(folder, ""):
        for command in (["init"], ["import", tmp_path / "answers.jsonl"]):
            error = refusal(collect(*command))
            assert error.startswith(f"{folder} is in use by process {os.getpid()} since ")
            assert error.endswith("; wait for its end, stop it, or try again")
        assert collect("stats")[0] == collect("invite")[0] == 0  # these are never blocked
