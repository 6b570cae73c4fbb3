"""What a report shows beside the comparison: training curves, report cards, what each stage was told, provenance."""

import json
from pathlib import Path

from reward.report.compare import read_curves, read_frontier
from reward.report.judges import source_name
from rlhf.artifacts.lineage import ancestry
from rlhf.artifacts.manifest import COLLECT, load_manifest, manifest_sha256
from rlhf.config.composing import shipped_config
from rlhf.config.keys import as_dict
from rlhf.config.schema import Config
from rlhf.data.report import length_warnings
from rlhf.hashing import flat, short
from rlhf.run.stage import Stage
from rlhf.tracking.tracker import scrub
from stages.reports.inputs import reward_inputs


def background(cfg: Config, stage: Stage) -> dict:
    """The second block of report.json, see reward/report/compare.py."""
    ppo, manifest = stage.input_paths["ppo"], stage.manifests["ppo"]
    curves = read_curves(json.loads(line) for line in (ppo / "metrics.jsonl").read_text().splitlines())
    lineage = ancestry(ppo)
    return {
        "simulated": cfg.data.simulated,
        "seed": cfg.seed,
        "kl_budget": manifest["config"]["ppo.kl_budget"],
        "exported_step": manifest["metrics"]["best_step"],
        "rewards": manifest["config"]["ppo.rewards"],
        "reward_cards": report_cards(cfg, stage),
        "data_warnings": [text for path in lineage for text in data_warnings(path)],
        "curves": curves,
        "frontier": read_frontier(curves),
        "run": stage.run_dir.name,
        "lineage": scrub([describe(path) for path in lineage]),
        "versions": manifest["versions"],
        "configs": scrub(stage_configs(stage, lineage)),
    }


def shaping_notes(values: dict) -> list[str]:
    """What PPO did to scores, which the report's are without. values: of PPO's manifest."""
    off = {"ppo.running_score_norm": False, "ppo.score_clip": None, "ppo.missing_eos_penalty": 0}
    acting = [f"{key}={values[key]}" for key, without in off.items() if values[key] != without]
    if not acting:
        return []
    return [
        f"Scores of answers are raw here; PPO optimised them with {', '.join(acting)}, and so are its curves, held-out "
        "prompts included."
    ]


def report_cards(cfg: Config, stage: Stage) -> dict[str, dict]:
    """The report card of each reward model that PPO optimised, by its name."""
    paths = {role: Path(path) for role, path in reward_inputs(cfg, stage).items() if role.startswith("reward")}
    names = {role: source_name("reward" if role == "reward" else str(path)) for role, path in paths.items()}
    return {names[role]: json.loads((path / "report_card.json").read_text()) for role, path in paths.items()}


def data_warnings(path: Path) -> list[str]:
    """What an artifact's data report calls for."""
    report = path / "data_report.json"
    found = length_warnings(json.loads(report.read_text())) if report.exists() else []
    return [f"Data of {path.name}: {text}." for text in found]


def describe(path: Path) -> dict:
    """One artifact as the report lists it."""
    manifest = load_manifest(path)
    code = [
        {"path": f"{rule['rule']} ({rule['path']})", "sha256": rule["sha256"]} for rule in manifest.get("rules", [])
    ]
    return {
        "stage": manifest["stage"],
        "path": path.name,
        "sha256": manifest_sha256(path),
        "created": manifest["created"],
        "base": base_of(manifest),
        "data": manifest["data"] + code,
    }


def base_of(manifest: dict) -> str:
    """What an artifact's weights started from, e.g. "scratch 0123456789ab" or "Qwen/Qwen3-0.6B 0123456789ab, lora"."""
    base, adapter = manifest.get("base_model"), manifest.get("adapter")
    if base is None:
        return ""
    return f"{base['name']} {short(base['fingerprint'])}" + (f", {adapter['kind']}" if adapter else "")


# ---- what each stage was told


def stage_configs(stage: Stage, lineage: list[Path]) -> list[dict]:
    """What each stage, this evaluation last, read of its own config."""
    defaults = flat(as_dict(shipped_config()))
    oldest_first = sorted(lineage, key=lambda path: len(ancestry(path)))
    manifests = [(str(path), load_manifest(path)) for path in oldest_first]
    told = [(manifest["stage"], path, manifest["config"]) for path, manifest in manifests]
    trained = [own for own in told if own[0] != COLLECT]  # a collection has settings of its own kind
    told = [*trained, (stage.name, str(stage.folder), stage.values)]
    return [{"stage": name, "path": path, **differing(values, defaults)} for name, path, values in told]


def differing(values: dict, defaults: dict) -> dict[str, dict]:
    """{changed: {key: {value, default}}, values}: which config values are not the default ones."""
    changed = {
        key: {"value": value, "default": defaults.get(key)}
        for key, value in values.items()
        if value != defaults.get(key)
    }
    return {"changed": changed, "values": values}
