"""What digests.py tells apart, so that "no number has changed" can be trusted."""

import json

import pytest
from digests import digest


def rewrite_metrics(stage_dir, **values):
    path = stage_dir / "metrics.jsonl"
    lines = [json.loads(line) | values for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_clock_times_are_in_no_digest(finished, run_dir):
    rewrite_metrics(run_dir / "ppo", **{"time": 1.0, "time/update": 2.0, "throughput/tokens_per_second": 3.0})
    assert digest(run_dir / "ppo") == digest(finished / "ppo")


@pytest.mark.parametrize("file", ["metrics.jsonl", "model/model.safetensors", "samples.jsonl"])
def test_a_number_a_weight_and_a_sample_are(finished, run_dir, file):
    before, path = digest(run_dir / "ppo"), run_dir / "ppo" / file
    if file == "metrics.jsonl":
        rewrite_metrics(run_dir / "ppo", lr=0.123)
    else:
        path.write_bytes(path.read_bytes() + b" ")
    assert before == digest(finished / "ppo") != digest(run_dir / "ppo")


def test_the_figures_of_the_report_are(finished, run_dir):
    report = json.loads((run_dir / "evaluate" / "report.json").read_text())
    report["policies"]["ppo"]["kl"] += 0.001
    (run_dir / "evaluate" / "report.json").write_text(json.dumps(report))
    assert digest(run_dir / "evaluate") != digest(finished / "evaluate")
