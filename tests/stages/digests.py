"""A digest of what each stage of the tiny world learns and logs: a change that is to change no number changes none.

`python tests/stages/digests.py FOLDER > before.txt`, then the same after the change, and `diff`. Weights, metrics but
for clock times, samples and the report's figures are in a digest; two machines may differ, two runs on one do not.
"""

import hashlib
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

import tiny_world
from test_resume import ALL_STATE, result

from stages import pipeline

OTHERS = ["ppo.target_kl=0.02", "ppo.entropy_coef=0.01", "ppo.dual_clip=3", "ppo.missing_eos_penalty=0.5"]
RUNS = {
    "all_state": ALL_STATE,
    "other_options": [*OTHERS, "ppo.score_clip=2", "ppo.whiten_advantages=false", "ppo.clip_range_high=0.3"],
    "lora": ["adapter=lora", "model.path={folder}/all_state/sft/model"],
    "bfloat16": ["model.dtype=bfloat16", "model.gradient_checkpointing=true"],
}


def digest(stage_dir: Path) -> str:
    """Of all that must not depend on how the code is written."""
    weights, lines, samples = result(stage_dir) if (stage_dir / "metrics.jsonl").exists() else ([], [], None)
    report = stage_dir / "report.json"
    figures = json.loads(report.read_text())["policies"] if report.exists() else None
    known = [hashlib.sha256(weight).hexdigest() for weight in weights]
    facts = json.dumps([known, lines, samples, figures], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def main(folder: Path) -> None:
    world = tiny_world.write_world(folder / "world")
    for name, options in RUNS.items():
        own = [option.format(folder=folder) for option in options]
        with redirect_stdout(sys.stderr):
            pipeline.run(tiny_world.composed(*tiny_world.tiny_overrides(folder / name, world), *own))
        for stage in ("sft", "reward", "ppo", "evaluate"):
            print(name, stage, digest(folder / name / stage))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
