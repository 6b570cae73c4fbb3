"""The shipped toy world: what data/README.md says about it holds for the files as they are."""

import json
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from reward.rules import question_asked, support_desk

ROOT = Path(__file__).parent.parent
STEMS = ("demonstrations", "rankings", "prompts", "heldout")


@pytest.fixture(scope="module")
def files():
    return {s: [json.loads(line) for line in (ROOT / f"data/toy/{s}.jsonl").read_text().splitlines()] for s in STEMS}


@pytest.fixture(scope="module")
def remade(tmp_path_factory):
    """Folder and printout of a fresh run of the generator."""
    folder = tmp_path_factory.mktemp("toy")
    command = [sys.executable, ROOT / "data/make_toy.py", "--out", folder]
    return folder, subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("stem", STEMS)
def test_the_generator_writes_the_shipped_bytes_again(remade, stem):
    folder, _ = remade
    assert (folder / f"{stem}.jsonl").read_bytes() == (ROOT / f"data/toy/{stem}.jsonl").read_bytes()


def test_readme_quotes_the_printed_figures(remade):
    printed = [line for line in remade[1].splitlines() if not line.endswith("records")]
    assert len(printed) == 7
    assert "\n".join(printed) in (ROOT / "data/README.md").read_text()


def test_readme_quotes_the_number_of_records(files):
    readme = (ROOT / "data/README.md").read_text()
    for stem, rows in files.items():
        assert f"| `toy/{stem}.jsonl` | {len(rows)} " in readme


def test_the_files_are_small():
    assert sum(path.stat().st_size for path in (ROOT / "data/toy").iterdir()) < 3_000_000


def question_of(row):
    return question_asked([{"role": "user", "content": row["prompt"]}])


def test_what_held_out_prompts_ask_is_demonstrated_in_other_words(files):
    asked = {stem: {question_of(row) for row in rows} for stem, rows in files.items()}
    assert asked["heldout"] <= asked["demonstrations"]


def test_no_prompt_is_in_two_files(files):
    prompts = [{row["prompt"] for row in rows} for rows in files.values()]
    assert sum(map(len, prompts)) == len(set.union(*prompts))


def test_each_training_combination_has_several_demonstrations(files):
    assert min(Counter(map(question_of, files["demonstrations"])).values()) >= 8


def test_texts_are_short(files):
    answers = [row["completion"] for row in files["demonstrations"]] + [
        a for r in files["rankings"] for a in r["responses"]
    ]
    assert max(len(row["prompt"].split()) for rows in files.values() for row in rows) <= 25
    assert max(len(answer.split()) for answer in answers) <= 33


def test_rankings_are_labelled_as_simulated_and_are_ranks_of_four_different_answers(files):
    for row in files["rankings"]:
        assert row["meta"] == {"simulated": True}
        assert len(set(row["responses"])) == len(row["ranks"]) == 4
        assert sorted(set(row["ranks"])) == list(range(1, max(row["ranks"]) + 1))


def test_a_fifth_of_the_ranked_prompts_has_two_or_three_annotators(files):
    opinions = Counter(row["prompt_id"] for row in files["rankings"])
    assert set(opinions.values()) == {1, 2, 3}
    assert 0.17 < sum(n > 1 for n in opinions.values()) / len(opinions) < 0.23
    assert len({(row["prompt_id"], row["annotator"]) for row in files["rankings"]}) == len(files["rankings"])


def test_demonstrations_are_of_mixed_quality_and_a_good_policy_clearly_wins(files):
    rows = files["demonstrations"]
    gold = support_desk([row["prompt"] for row in rows], [row["completion"] for row in rows])
    assert 0.45 < sum(gold) / len(gold) < 0.55
    assert sum((u < 1.0) + 0.5 * (u == 1.0) for u in gold) / len(gold) > 0.85
    assert len({round(u, 3) for u in gold}) > 10


def test_annotators_follow_the_gold_order_in_nine_of_ten_pairs(files):
    right, num_pairs = 0.0, 0
    for row in files["rankings"]:
        gold = support_desk([row["prompt"]] * 4, row["responses"])
        for (u, r), (v, s) in combinations(zip(gold, row["ranks"], strict=True), 2):
            if r != s:
                num_pairs += 1
                right += 0.5 if u == v else (u > v) == (r < s)
    assert 0.90 < right / num_pairs < 0.93
