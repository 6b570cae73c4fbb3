"""docs/metrics.md names what each stage logs: nothing is missing, and nothing stands there that is never logged."""

import json
import re
from pathlib import Path

import pytest
import tiny_world

from stages import ppo
from stages.metrics_page import meanings, page

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def logged(finished, world, tmp_path_factory):
    """{stage: names of the metrics that it logs}, of the finished run and of one with the options that add some."""
    run_dir = tmp_path_factory.mktemp("metrics") / "run"
    terms = "[{source: reward}, {source: tiny_world:names_the_colour}]"
    options = [f"inputs.{stage}={finished / stage}" for stage in ("sft", "reward")]
    options += [f"ppo.rewards={terms}", "ppo.ptx_coef=1", "ppo.ptx_batch_size=8"]
    more = ppo.run(tiny_world.composed(*tiny_world.tiny_overrides(run_dir, world), *options))
    own = {stage: names_in(finished / stage) for stage in ("sft", "reward", "ppo")}
    return own | {"ppo": own["ppo"] | names_in(more)}


def names_in(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {re.sub("/scores/.+", "/scores/NAME", name) for line in lines for name in json.loads(line)}


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_the_page_names_what_a_stage_logs_and_nothing_else(logged, stage):
    assert logged[stage] == set(meanings(stage))


def test_the_page_is_the_one_that_its_command_makes():
    assert page().rstrip() == PAGE.rstrip(), "run: python -m stages.metrics_page > docs/metrics.md"


def test_each_metric_says_what_it_is_and_stands_on_the_page():
    for stage in ("sft", "reward", "ppo"):
        for name, meaning in meanings(stage).items():
            assert meaning.says, name
            assert f"\n| `{name}` |" in PAGE
