"""The README.md of an exported model: what it is, where it comes from, how it was trained, what it is for."""

from pathlib import Path

from rlhf.artifacts.lineage import ancestry
from rlhf.artifacts.manifest import is_complete, load_manifest, manifest_sha256
from rlhf.files import read_json
from rlhf.hashing import short
from rlhf.tables import markdown_table, short_number

TRAINED = {
    "sft": "fine-tuned on demonstrations (stages.sft)",
    "ppo": "fine-tuned on demonstrations, then optimised with PPO against a reward (stages.ppo)",
}
INTENDED_USE = (
    "Answers to prompts like those in the data below. Before any other use, test it there: what it learned to please "
    "is the reward and the people whose answers and rankings are listed, with their mistakes. It may state what is "
    "false. It has no filter of its own."
)
# What a reader of the card asks first; the rest is in the artifact's config.yaml.
SETTINGS = (
    "seed", "model.dtype", "sft.objective", "sft.num_epochs", "sft.learning_rate", "ppo.num_steps", "ppo.batch_size",
    "ppo.learning_rate", "ppo.kl_coef", "ppo.kl_budget", "ppo.rewards",
)  # fmt: skip


def model_card(source: Path, manifest: dict, run_dir: Path, differences: dict[str, float]) -> str:
    """The card as Markdown, with the header that the hub reads. source: the artifact that was exported."""
    parts = [
        _header(manifest),
        f"# {source.absolute().parent.name}: {manifest['stage']}",
        f"A causal language model, {TRAINED[manifest['stage']]}.",
        "## Use",
        INTENDED_USE,
        "## Licence",
        "To be filled in by whoever publishes this: it follows from the base model's licence and from the data's.",
        "## How it was trained",
        _training(manifest, differences),
        "## Figures",
        _figures(manifest, _evaluation(run_dir, source)),
        "## Lineage and data",
        _lineage(source),
    ]
    return "\n\n".join(parts) + "\n"


def _header(manifest: dict) -> str:
    base = manifest["adapter"]["base"] if manifest["adapter"] and manifest["adapter"]["revision"] else None
    lines = ["library_name: transformers", "pipeline_tag: text-generation", "license: other"]
    return "\n".join(["---", *lines, *([f"base_model: {base}"] if base else []), "---"])


def _training(manifest: dict, differences: dict[str, float]) -> str:
    config = manifest["config"]
    rows = [f"- `{key}`: {config[key]}" for key in SETTINGS if key in config]
    if manifest["adapter"]:
        adapter = manifest["adapter"]
        rows.append(f"- adapter: {adapter['kind']}, rank {adapter['rank']}, alpha {adapter['alpha']}, merged here")
        rows += [f"- difference `{name}`: {value:.2e} of the largest logit" for name, value in differences.items()]
    return "\n".join(rows)


def _figures(manifest: dict, evaluation: dict | None) -> str:
    figures = dict(manifest["metrics"])
    if evaluation is not None:
        figures |= {f"evaluate: {name}": value for name, value in evaluation["metrics"].items()}
        figures |= {"evaluate: judged by": evaluation["judge"]}
    rows = [(name, short_number(value)) for name, value in figures.items()]
    return "\n".join(markdown_table(("figure", "value"), rows))


def _evaluation(run_dir: Path, source: Path) -> dict | None:
    """Metrics of the run's evaluation and who judged in it, where it is of this very artifact."""
    folder = run_dir / "evaluate"
    if not is_complete(folder):
        return None
    manifest = load_manifest(folder)
    of_this = manifest_sha256(source) in {entry["sha256"] for entry in manifest["inputs"]}
    if not of_this:
        return None
    return {"metrics": manifest["metrics"], "judge": read_json(folder / "report.json")["win_rate"]["by"]}


def _lineage(source: Path) -> str:
    head = ("stage", "made", "manifest", "base model", "data and rules")
    return "\n".join(markdown_table(head, map(_ancestor, ancestry(source))))


def _ancestor(path: Path) -> tuple[str, ...]:
    """The cells of one artifact."""
    manifest = load_manifest(path)
    base = manifest["base_model"] or {"name": "-", "fingerprint": None}
    sources = [f"{Path(d['path']).name} ({d['records']} records, {short(d['sha256'])})" for d in manifest["data"]]
    rules = [f"rule {rule['rule']} ({short(rule['sha256'])})" for rule in manifest.get("rules", [])]
    return (
        manifest["stage"],
        manifest["created"],
        short(manifest_sha256(path)),
        f"{Path(base['name']).name} {short(base['fingerprint'])}",
        "; ".join([*sources, *rules]),
    )
