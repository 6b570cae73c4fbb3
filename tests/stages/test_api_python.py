"""docs/api_python.md: its example runs, and makes what the commands make."""

import re
from pathlib import Path

import tiny_world

from reward.scorer import load_scorer

PAGE = (Path(__file__).parents[2] / "docs" / "api_python.md").read_text(encoding="utf-8")
STAGES, SCORES = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_documented_lines_find_each_artifact_of_the_pipeline_up_to_date(
    run_dir, world, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    settings = tiny_world.tiny_overrides(run_dir, world)
    names = {}
    exec(STAGES.replace('["run.dir=outputs/mine", "seed=1"]', repr(settings)), names)
    err = capsys.readouterr().err
    assert [line.split(":")[0] for line in err.splitlines() if "up to date" in line] == [
        "sft",
        "reward",
        "ppo",
        "evaluate",
    ]
    assert names["folder"] == run_dir / "evaluate"


def test_the_reward_model_scores_texts_as_documented(run_dir):
    names = {}
    exec(
        SCORES.replace('"outputs/mine/reward"', repr(str(run_dir / "reward"))).replace("score([", "scores = score(["),
        names,
    )
    assert names["scores"].shape == (1,) and names["load_scorer"] is load_scorer
