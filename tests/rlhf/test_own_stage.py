"""A stage that nobody here knows: a module of somebody's own is all that it takes."""

import importlib
import subprocess
import sys

import pytest
from test_stage import config_maker

from rlhf.artifacts import lineage
from rlhf.artifacts.dependencies import Needs
from rlhf.artifacts.manifest import load_manifest
from rlhf.errors import ArtifactError, UserError
from rlhf.preflight.forecast import Forecast, require_fit, show_needs
from rlhf.preflight.memory import Item, Phase
from rlhf.run.stage import Stage

COUNTING = """
if __name__ == "__main__":
    from stages import start

    start("counting")

from rlhf.data.load import load_prompts
from rlhf.artifacts.dependencies import Needs
from rlhf.locks import alone_in_run_dir
from rlhf.run.stage import Stage


def needs(cfg):
    return Needs(
        "counting",
        sections=("seed", "evaluate"),
        sources=("prompts",),
        without_effect=("evaluate.num_bootstrap",),
        after_training=("evaluate.num_examples",),
    )


@alone_in_run_dir
def run(cfg, replace=False):
    stage = Stage(needs(cfg), cfg, {})
    if not stage.open(replace):
        return stage.folder
    prompts = load_prompts(cfg.data, stage.report)
    stage.claim_prompts(prompts["train"])
    return stage.finish(base_model=None, metrics={"num_prompts": sum(map(len, prompts.values()))})
"""


@pytest.fixture
def config(tmp_path):
    make = config_maker(tmp_path)
    return lambda *overrides: make("data.heldout=null", *overrides)


@pytest.fixture
def counting(tmp_path, monkeypatch):
    """The module of a stage that counts prompts."""
    (tmp_path / "counting.py").write_text(COUNTING)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("counting")
    del sys.modules["counting"]


def consumer(config, folder):
    return Stage(Needs("after", sections=("seed",)), config, {"counting": str(folder)})


def test_a_stage_of_ones_own_leaves_an_artifact_that_is_shown_and_found_up_to_date(counting, config, capsys):
    folder = counting.run(config())
    manifest = load_manifest(folder)
    assert (manifest["stage"], manifest["metrics"]) == ("counting", {"num_prompts": 40})
    assert [source["records"] for source in manifest["data"]] == [40]
    assert lineage.main(["show", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"counting  {folder}  ") and "verified" in shown and "num_prompts 40" in shown
    counting.run(config("ppo.gamma=0.5", "evaluate.num_bootstrap=7"))
    assert capsys.readouterr().err == f"counting: up to date in {folder} (run.force=true runs it again)\n"


def test_a_stage_of_ones_own_is_stale_where_what_it_says_it_needs_is_another(counting, config, tmp_path):
    counting.run(config())
    rows = (tmp_path / "prompts.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "prompts.jsonl").write_text("".join(rows[:30]))
    other = config("evaluate.num_samples=9")
    reasons = Stage(counting.needs(other), other, {}).reasons()
    assert reasons == [
        f"evaluate.num_samples {config().evaluate.num_samples} -> 9",
        f"{tmp_path}/prompts.jsonl changed",
    ]
    assert load_manifest(counting.run(other, replace=True))["metrics"] == {"num_prompts": 30}


def test_a_stage_of_ones_own_that_was_stopped_goes_on_as_it_says_it_may(counting, config):
    stage = Stage(counting.needs(config()), config(), {})
    stage.open()
    (stage.checkpoint_folder / "checkpoint-3").mkdir()
    assert Stage(stage.needs, config("evaluate.num_examples=1"), {}).open()
    with pytest.raises(ArtifactError, match=r"stopped run that differs \(evaluate\.num_samples"):
        Stage(stage.needs, config("evaluate.num_samples=9"), {}).open()


def test_a_later_stage_consumes_the_artifact_by_the_name_of_its_stage(counting, config, capsys):
    folder = counting.run(config())
    stage = consumer(config(), folder)
    stage.open()
    after = stage.finish(base_model=None, metrics={})
    assert [(entry["role"], entry["path"]) for entry in load_manifest(after)["inputs"]] == [("counting", "../counting")]
    capsys.readouterr()
    lineage.main(["show", str(after)])
    assert f"counting  {folder}" in capsys.readouterr().out
    counting.run(config("seed=1"), replace=True)
    assert consumer(config(), folder).reasons() == ["input counting changed"]


def test_a_stage_of_ones_own_foretells_what_it_takes_itself(counting, config, capsys):
    stage = Stage(counting.needs(config()), config(), {})
    phases = [Phase("counting", (Item("counts", 2e9, "data.prompts"),))]
    show_needs(stage, Forecast(phases, {"artifact": 3e9}, ["40 prompts are counted"]))
    shown = capsys.readouterr().out
    for part in ("counting: memory of one rank", "counts, 2.00 GB", "data.prompts", "artifact 3.00 GB"):
        assert part in shown
    assert "\n40 prompts are counted\n" in shown and "answers" not in shown
    with pytest.raises(
        UserError, match=r"need 1000000\.00 GB; free some, or choose another run.dir or a lower my\.key"
    ):
        require_fit(
            stage,
            lambda: Forecast([Phase("counting", (Item("counts", 1.0),))], {"artifact": 1e15}, [], disk_knob="my.key"),
        )


@pytest.mark.slow
def test_a_stage_of_ones_own_has_the_command_line_of_ours(counting, tmp_path):
    settings = [f"run.dir={tmp_path}/run", f"data.prompts={tmp_path}/prompts.jsonl", "data.heldout=null"]
    config_maker(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "counting", *settings], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "counting: never ran" in done.stderr
    assert load_manifest(tmp_path / "run" / "counting")["metrics"] == {"num_prompts": 40}
