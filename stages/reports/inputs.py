"""What evaluate is asked to compare, all of it read and checked before anything is generated."""

from dataclasses import dataclass
from pathlib import Path

from reward.rankings import Ranking
from reward.rules import Rule, load_rule
from rlhf.artifacts.dependencies import code_of
from rlhf.artifacts.lineage import ancestry
from rlhf.artifacts.manifest import TRAIN_PROMPTS, load_manifest, manifest_sha256
from rlhf.config.schema import Config, SftObjective
from rlhf.console import say
from rlhf.data.load import (
    DataReport,
    Demonstration,
    Prompt,
    check_leakage,
    distinct,
    load_demonstrations,
    load_prompts,
    parse_prompt,
    prompt_keys,
    read_records,
    require_split,
)
from rlhf.errors import ArtifactError
from rlhf.hashing import short
from rlhf.preflight.forecast import Planned
from rlhf.run.stage import Stage, verify_stage
from rlhf.text.prompts import encode_prompts
from rlhf.training.sft import sft_examples
from stages.models.ppo import input_artifacts


@dataclass(frozen=True)
class Task:
    """ids: of the prompts, all held out. examples: demonstrations, for the perplexity. gold_rule: judges the answers.

    notes: what the report will lack, and why.
    """

    prompts: list[Prompt]
    ids: list[list[int]]
    examples: list[dict]
    notes: list[str]
    gold_rule: Rule | None


def load_task(cfg: Config, stage: Stage, tokenizer) -> Task:
    """Raises UserError where anything that the comparison needs is missing or wrong."""
    prompts = load_heldout(cfg, stage)
    gold_rule = load_gold_rule(cfg, prompts[0])
    for term in stage.manifests["ppo"]["config"]["ppo.rewards"]:
        if ":" in term["source"]:
            load_rule(term["source"])
    prompts, ids = encode_prompts(tokenizer, prompts, cfg.data, stage.report)
    require_split({"test": prompts}, "test", source_of(cfg))
    examples, notes = load_examples(cfg, stage, tokenizer)
    task = Task(prompts, ids, examples, notes, gold_rule)
    stage.print_report()
    for note in notes:
        say(f"  {note}")
    return task


# ---- artifacts and the code of rules


def check_inputs(cfg: Config, stage: Stage) -> None:
    """Raises ArtifactError unless the artifacts that the config names are those that PPO started from and optimised."""
    consumed = {entry["role"]: entry["sha256"] for entry in stage.manifests["ppo"]["inputs"]}
    for role, path in reward_inputs(cfg, stage).items():
        verify_stage(Path(path), role, "evaluate")
        if manifest_sha256(path) != consumed[role]:
            key = "ppo.rewards" if "_" in role else f"inputs.{role}"
            raise ArtifactError(
                f"{key}={path} is {short(manifest_sha256(path))}, and the policy in {cfg.inputs.ppo} came from "
                f"{role} {short(consumed[role])}; name that one, or run python -m stages.ppo run.force=true"
            )
    for record in stage.manifests["ppo"].get("rules", []):  # a policy of an earlier version names none
        _check_code(record, cfg.inputs.ppo)


def reward_inputs(cfg: Config, stage: Stage) -> dict[str, str]:
    """The artifacts that PPO consumed, by role, where this config has them."""
    return input_artifacts(cfg, [term["source"] for term in stage.manifests["ppo"]["config"]["ppo.rewards"]])


def with_rewards(cfg: Config, stage: Stage) -> Planned:
    """The stage with all models that it reads among its inputs."""
    paths = stage.input_paths | {role: Path(path) for role, path in reward_inputs(cfg, stage).items()}
    return Planned(stage.name, stage.folder, paths, {role: load_manifest(path) for role, path in paths.items()})


def _check_code(record: dict, policy: str) -> None:
    now = code_of(record["rule"])
    if None not in (now["sha256"], record["sha256"]) and now["sha256"] != record["sha256"]:
        raise ArtifactError(
            f"the code of {record['rule']} ({now['path']}) is {short(now['sha256'])}, and the policy in {policy} was "
            f"trained on {short(record['sha256'])}; restore the file, or run python -m stages.ppo run.force=true"
        )


def load_gold_rule(cfg: Config, prompt: Prompt | Ranking) -> Rule | None:
    """The rule that judges, tried on a prompt: one that is made for other data says so now."""
    if cfg.data.gold_rule is None:
        return None
    rule = load_rule(cfg.data.gold_rule)
    rule([prompt.messages], ["Yes."], [prompt.meta])
    return rule


# ---- data


def load_heldout(cfg: Config, stage: Stage) -> list[Prompt]:
    """The prompts that both policies answer: of data.heldout, or of the test split of data.prompts."""
    heldout = heldout_prompts(cfg, stage.report)
    for path in ancestry(stage.input_paths["ppo"]):
        check_leakage(prompt_keys(heldout), trained_on(path), load_manifest(path)["stage"])
    return heldout


def heldout_prompts(cfg: Config, report: DataReport) -> list[Prompt]:
    """As many of them as evaluate.num_prompts allows. Raises UserError where there is none."""
    if cfg.data.prompts is None and cfg.data.heldout is not None:
        prompts = {"test": [prompt for prompt, _ in read_records(cfg.data, report, "heldout", parse_prompt)]}
    else:
        prompts = load_prompts(cfg.data, report)
    require_split(prompts, "test", source_of(cfg))
    return distinct(prompts["test"], cfg.evaluate.num_prompts)


def source_of(cfg: Config) -> str:
    """The key that names the prompts of the comparison."""
    return "data.prompts" if cfg.data.heldout is None else "data.heldout"


def trained_on(artifact: Path) -> set[str]:
    """Keys of the prompts that an artifact was trained on; none where it was not trained."""
    path = artifact / TRAIN_PROMPTS
    return set(path.read_text().split()) if path.exists() else set()


def load_examples(cfg: Config, stage: Stage, tokenizer) -> tuple[list[dict], list[str]]:
    """The demonstrations of the test split as examples, and what is to be said of them."""
    if cfg.data.demonstrations is None:
        return [], ["Perplexity is left out: data.demonstrations is not set."]
    demonstrations = load_demonstrations(cfg.data, stage.report)["test"]
    new = unseen(demonstrations, stage)
    objective = SftObjective(stage.manifests["sft"]["config"]["sft.objective"])
    examples = sft_examples(tokenizer, new, objective, cfg.data, "test", stage.report)
    notes = []
    if len(new) < len(demonstrations):
        notes.append(
            f"Perplexity is without {len(demonstrations) - len(new)} of {len(demonstrations)} demonstrations of the "
            "test split, which the policies were trained on."
        )
    if not examples:
        notes.append("Perplexity is left out: the test split of data.demonstrations is empty.")
    return examples, notes


def unseen(demonstrations: list[Demonstration], stage: Stage) -> list[Demonstration]:
    """Those whose prompts neither SFT nor what it started from was trained on, as with another data.test_share."""
    seen = set().union(*(trained_on(path) for path in ancestry(stage.input_paths["sft"])))
    return [demonstration for demonstration in demonstrations if seen.isdisjoint(prompt_keys([demonstration]))]
