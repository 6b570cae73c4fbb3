"""The whole path with the real commands: an invite, rankings with ties in a browser, an export, the reward model."""

import json
import re

from tiny_world import composed, tiny_overrides

from reward.collect.__main__ import main
from rlhf.artifacts.lineage import ancestry
from rlhf.artifacts.manifest import load_manifest, manifest_sha256
from stages import reward, sft
from stages.benches.collect import serving

pytest_plugins = ["page_fixtures"]

LESSONS = ("sft.num_epochs=20", "sft.learning_rate=5e-3", "rollout.temperature=1.5")


def collect(*arguments) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def accept_invite(page, link: str) -> None:
    page.goto(link)
    page.get_by_label("Handle").fill("ann")
    for label in ("Password", "Password again"):
        page.get_by_label(label, exact=True).fill("correct horse battery")
    page.get_by_role("button").last.click()


def rank_all(page) -> list[str]:
    """Ranks A first, B and C second, until nothing is left. What the page said it stored, in order."""
    said = []
    while page.locator("#orderable").count():
        for key in ("a", "1", "b", "2", "c", "2", "Control+Enter"):
            page.keyboard.press(key)
        page.wait_for_url(re.compile("stored="))
        said.append(page.get_by_test_id("stored").inner_text())
        page.goto(re.sub(r"/rank.*", "/rank", page.url))
    return said


def test_a_tied_ranking_made_in_the_browser_trains_the_reward_model(chromium, world, tmp_path, capsys):
    run, folder = tmp_path / "run", tmp_path / "collect"
    sft.run(composed(*tiny_overrides(run, world), *LESSONS))
    collect("init", "--dir", folder, "--agreement-share", "0", "--gold-share", "0")
    sampling = ("--policy", run / "sft", "--prompts", world / "prompts.jsonl", "-k", 3, "--temperature", 1.5)
    collect("sample", "--dir", folder, *sampling)
    with serving(folder, f"sqlite:///{folder}/collect.db") as (port, _):
        capsys.readouterr()
        collect("invite", "--dir", folder, "--origin", f"http://127.0.0.1:{port}")
        page = chromium.new_context(reduced_motion="reduce").new_page()
        accept_invite(page, capsys.readouterr().out.strip())
        page.goto(f"http://127.0.0.1:{port}/rank")
        said = rank_all(page)
    assert len(said) > 10 and all("A > B = C" in line for line in said if "C" in line)
    collect("export", "--dir", folder)
    version = folder / "versions" / "1"
    rows = [json.loads(line) for line in (version / "rankings.jsonl").read_text().splitlines()]
    assert len(rows) == len(said)
    for row in rows:
        shown = [row["ranks"][i] for i in row["meta"]["display_order"]]
        assert shown == [1, 2, 2][: len(shown)]
    reward.run(composed(*tiny_overrides(run, world), *LESSONS, f"data.rankings={version}"))
    inputs = {entry["role"]: entry["sha256"] for entry in load_manifest(run / "reward")["inputs"]}
    assert inputs["rankings"] == manifest_sha256(version)
    assert [load_manifest(path)["stage"] for path in ancestry(run / "reward")] == ["reward", "sft", "collect"]
