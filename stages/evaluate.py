"""Stage 4: what PPO changed, on held-out prompts, as report.json and report.html. `python -m stages.evaluate`"""

if __name__ == "__main__":  # before the imports below, which take seconds: the config is checked first
    from rlhf.command import start

    start("stages.evaluate")

import json
from pathlib import Path

import torch

from reward import page
from reward.compare import Answers, compare_policies, read_curves, read_frontier
from reward.rules import load_rule
from reward.scorer import load_reward
from rlhf.batches import encode_prompts
from rlhf.config import Config, SftObjective
from rlhf.data import Prompt, check_leakage, distinct, load_demonstrations, load_prompts, prompt_keys, require_split
from rlhf.data_report import table
from rlhf.distributed import is_main, on_main
from rlhf.errors import ArtifactError
from rlhf.files import write_durably
from rlhf.hashing import short
from rlhf.heldout import answer, perplexity
from rlhf.lineage import ancestry
from rlhf.loading import Reading, load_artifact_policy, require_trust
from rlhf.manifest import load_manifest, manifest_sha256
from rlhf.models import device, stop_ids
from rlhf.rollout.sampling import Sampler
from rlhf.sft import sft_examples
from rlhf.stage import TRAIN_PROMPTS, Stage, as_dict, verify_stage
from rlhf.tokenizer import load_tokenizer
from rlhf.tracking import scrub
from stages.ppo_models import input_artifacts

FIGURES = {
    "gold_mean": "gold rule (0 to 1)",
    "score_mean": "reward score",
    "kl": "KL from SFT (nats per response)",
    "length_mean": "length (tokens)",
    "eos_rate": "share of answers that end",
    "distinct_2": "distinct word pairs",
    "perplexity": "perplexity on demonstrations",
}


def run(cfg: Config, replace: bool = False) -> Path:
    """Compares the PPO policy with the SFT policy it came from; prints the result and returns its artifact."""
    folder = compare(cfg, replace)
    print_comparison(folder)
    return folder


def compare(cfg: Config, replace: bool) -> Path:
    """The artifact that holds the report, made where it is not up to date."""
    stage = Stage("evaluate", cfg, {"sft": cfg.inputs.sft, "ppo": cfg.inputs.ppo})
    check_inputs(cfg, stage)
    if not stage.open(replace):
        return stage.folder
    if cfg.data.gold_rule is not None:
        load_rule(cfg.data.gold_rule)  # a mistyped name is told before the long work begins
    prompts = load_prompts(cfg.data, stage.report)
    require_split(prompts, "test", "data.prompts" if cfg.data.heldout is None else "data.heldout")
    heldout = distinct(prompts["test"], cfg.evaluate.num_prompts)
    check_ancestors(stage, heldout)
    folder = stage.input_paths["sft"] / "model"
    tokenizer = load_tokenizer(str(folder), trust_remote_code=cfg.model.trust_remote_code)
    policies = {role: load_stage_policy(cfg, stage, role, tokenizer) for role in ("sft", "ppo")}
    answers = answer_all(cfg, stage, policies, tokenizer, heldout)
    perplexities = measure_forgetting(cfg, stage, policies, tokenizer)
    shown = [list(prompt.messages) for prompt in heldout] * cfg.evaluate.num_samples
    settings = (cfg.data.gold_rule, cfg.evaluate.num_bootstrap, cfg.evaluate.num_examples, cfg.seed)
    report = compare_policies(answers["sft"], answers["ppo"], shown, perplexities, *settings) | background(cfg, stage)
    on_main(lambda: write_durably(stage.folder / "report.json", json.dumps(report, indent=1)))
    on_main(lambda: write_durably(stage.folder / "report.html", page.render(report)))
    return stage.finish(base_model=None, metrics=headline(report))


def check_inputs(cfg: Config, stage: Stage) -> None:
    """Raises ArtifactError unless the artifacts that the config names are those that PPO started from and optimised."""
    ppo = stage.manifests["ppo"]
    consumed = {entry["role"]: entry["sha256"] for entry in ppo["inputs"]}
    for role, path in input_artifacts(cfg, [term["source"] for term in ppo["config"]["ppo.rewards"]]).items():
        verify_stage(Path(path), role)
        if manifest_sha256(path) != consumed[role]:
            key = "ppo.rewards" if "_" in role else f"inputs.{role}"
            raise ArtifactError(
                f"{key}={path} is {short(manifest_sha256(path))}, and the policy in {cfg.inputs.ppo} came from "
                f"{role} {short(consumed[role])}; name that one, or run python -m stages.ppo again"
            )


def check_ancestors(stage: Stage, heldout: list[Prompt]) -> None:
    """Raises UserError when a held-out prompt is in the training data of the policy, or of anything it came from."""
    test = prompt_keys(heldout)
    for path in ancestry(stage.input_paths["ppo"]):
        if (path / TRAIN_PROMPTS).exists():
            check_leakage(test, (path / TRAIN_PROMPTS).read_text().split(), load_manifest(path)["stage"])


def load_stage_policy(cfg: Config, stage: Stage, role: str, tokenizer):
    """A policy in the dtype it was trained in."""
    manifest = stage.manifests[role]
    require_trust(cfg, role, manifest)
    dtype = getattr(torch, manifest["config"]["model.dtype"])
    how = Reading(dtype, trust_remote_code=cfg.model.trust_remote_code)
    return load_artifact_policy(stage.input_paths[role], manifest, tokenizer, how)


def answer_all(cfg: Config, stage: Stage, policies: dict, tokenizer, heldout: list[Prompt]) -> dict[str, Answers]:
    """Every policy's answers from the same seeds, scored by the reward that PPO optimised and by the gold rule."""
    terms = [(term["source"], term["weight"]) for term in stage.manifests["ppo"]["config"]["ppo.rewards"]]
    trusted = cfg.model.trust_remote_code
    score = load_reward(terms, cfg.inputs.reward, cfg.rollout.batch_size, lambda model: model.to(device()), trusted)
    limits = (cfg.rollout.temperature, cfg.data.max_response_tokens, cfg.rollout.batch_size)
    sampler = Sampler(tokenizer, stop_ids(policies["sft"], tokenizer), *limits, cfg.seed)
    ids, messages = encode_prompts(tokenizer, heldout, cfg.data, stage.report), [prompt.messages for prompt in heldout]
    return {
        role: judged(
            cfg,
            heldout,
            [
                answer(policy, policies["sft"], score, sampler, ids, messages, cfg.rollout.batch_size, sample)
                for sample in range(cfg.evaluate.num_samples)
            ],
        )
        for role, policy in policies.items()
    }


def judged(cfg: Config, heldout: list[Prompt], samples: list) -> Answers:
    """All samples of one policy, one after the other, with the gold rule's marks."""
    texts = [text for sample in samples for text in sample.texts]
    rule = load_rule(cfg.data.gold_rule) if cfg.data.gold_rule is not None else None
    return Answers(
        texts=texts,
        groups=[prompt.key for prompt in heldout] * len(samples),
        scores=torch.cat([sample.scores for sample in samples]).tolist(),
        kl=torch.cat([sample.kl for sample in samples]).tolist(),
        lengths=torch.cat([sample.lengths for sample in samples]).tolist(),
        finished=torch.cat([sample.terminated for sample in samples]).tolist(),
        gold=rule([prompt.messages for prompt in heldout] * len(samples), texts) if rule else None,
    )


def measure_forgetting(cfg: Config, stage: Stage, policies: dict, tokenizer) -> dict[str, float | None]:
    """Perplexity of each policy on the demonstrations of the test split."""
    demonstrations = load_demonstrations(cfg.data, stage.report)["test"]
    objective = SftObjective(stage.manifests["sft"]["config"]["sft.objective"])
    examples = sft_examples(tokenizer, demonstrations, objective, cfg.data, "test", stage.report)
    return {
        role: perplexity(policy, examples, tokenizer.pad_token_id, cfg.rollout.batch_size)
        for role, policy in policies.items()
    }


def background(cfg: Config, stage: Stage) -> dict:
    """What the report shows beside the comparison: training curves, the reward model's report card, provenance."""
    ppo = stage.input_paths["ppo"]
    curves = read_curves(json.loads(line) for line in (ppo / "metrics.jsonl").read_text().splitlines())
    lineage = ancestry(ppo)
    cards = [path / "report_card.json" for path in lineage if (path / "report_card.json").exists()]
    return {
        "simulated": cfg.data.simulated,
        "seed": cfg.seed,
        "kl_budget": stage.manifests["ppo"]["config"]["ppo.kl_budget"],
        "exported_step": stage.manifests["ppo"]["metrics"]["best_step"],
        "reward_card": json.loads(cards[0].read_text()) if cards else None,
        "curves": curves,
        "frontier": read_frontier(curves),
        "run": stage.run_dir.name,
        "lineage": [describe(path) for path in lineage],
        "versions": stage.manifests["ppo"]["versions"],
        "config": scrub(as_dict(cfg)),
    }


def describe(path: Path) -> dict:
    """One artifact as the report lists it."""
    manifest = load_manifest(path)
    return {"path": path.name, "sha256": manifest_sha256(path)} | {
        key: manifest[key] for key in ("stage", "created", "data")
    }


def headline(report: dict) -> dict[str, float]:
    """The figures that the manifest carries."""
    ppo = report["policies"]["ppo"]
    figures = {
        f"win_rate{name}": report["win_rate"][key] for name, key in (("", "value"), ("_low", "low"), ("_high", "high"))
    }
    return figures | {"kl": ppo["kl"], "length_mean": ppo["length_mean"], "eos_rate": ppo["eos_rate"]}


def print_comparison(folder: Path) -> None:
    """The result for the terminal, from rank 0: a sentence, the figures of both policies, where the report is."""
    if not is_main():
        return
    report = json.loads((folder / "report.json").read_text())
    policies = report["policies"]
    rows = [("", "SFT", "PPO")] + [
        (name, *(f"{policies[role][key]:.3g}" for role in ("sft", "ppo")))
        for key, name in FIGURES.items()
        if policies["ppo"].get(key) is not None
    ]
    print("\n".join(["", page.headline(report), "", *table(rows), "", f"report: {folder / 'report.html'}"]))
