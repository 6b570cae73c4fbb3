"""Stage 4: what PPO changed, on held-out prompts, as report.json and report.html. `python -m stages.evaluate`"""

if __name__ == "__main__":  # before the imports below, which take seconds: the config is checked first
    from stages import start

    start("stages.evaluate")

import json
from pathlib import Path

import torch

from reward.asking import Asking, ask
from reward.report import page
from reward.report.cautions import warnings
from reward.report.compare import Answers, compare_policies
from reward.report.judges import gold_name, reward_name
from reward.scorer import load_reward
from rlhf.artifacts.dependencies import Needs
from rlhf.config.schema import Config, RewardTerm
from rlhf.data.load import Prompt
from rlhf.distributed import is_main, on_main
from rlhf.files import write_durably
from rlhf.kl import BELOW_ZERO, NEGATIVE
from rlhf.locks import alone_in_run_dir
from rlhf.models.opening import open_policy, require_trust
from rlhf.models.perplexity import perplexity
from rlhf.models.policies import device
from rlhf.models.reading import Reading
from rlhf.ppo.heldout import answer
from rlhf.ppo.scores import Score
from rlhf.preflight.forecast import Forecast, show_needs, sizes_of
from rlhf.preflight.phases import evaluate_phases
from rlhf.rollout.choose import choose
from rlhf.run.stage import Stage
from rlhf.tables import table
from rlhf.text.tokenizer import load_tokenizer
from rlhf.tracking.display import counting
from stages.models.ppo_forecast import shared_rewards
from stages.reports.background import background, shaping_notes
from stages.reports.inputs import Task, check_inputs, heldout_prompts, load_task, with_rewards

FIGURES = {
    "gold_mean": "gold rule (mean mark)",
    "score_mean": "reward score",
    "kl": "KL from SFT (nats per response)",
    "length_mean": "length (tokens)",
    "eos_rate": "share of answers that end",
    "distinct_2": "distinct word pairs",
    "perplexity": "perplexity on demonstrations",
}


def needs(cfg: Config) -> Needs:
    """What a comparison depends on beside the two policies."""
    return Needs(
        "evaluate",
        sections=("seed", "rollout", "evaluate"),
        sources=("demonstrations", "prompts", "heldout"),
        data=("gold_rule", "simulated"),
        rules=("data.gold_rule",),
    )


def all_inputs(cfg: Config) -> dict[str, str]:
    """The artifacts that it consumes, by role."""
    return {"sft": cfg.inputs.sft, "ppo": cfg.inputs.ppo}


@alone_in_run_dir
def run(cfg: Config, replace: bool = False) -> Path:
    """Compares the PPO policy with the SFT policy it came from; prints the result and returns its artifact."""
    folder = compare(cfg, replace)
    if not cfg.preflight:
        print_comparison(folder)
    return folder


def compare(cfg: Config, replace: bool) -> Path:
    """The artifact that holds the report, made where it is not up to date."""
    stage = Stage(needs(cfg), cfg, all_inputs(cfg))
    check_inputs(cfg, stage)
    if cfg.preflight:
        return preflight(cfg, with_rewards(cfg, stage), len(heldout_prompts(cfg, stage.report)))
    if not stage.open(replace):
        return stage.folder
    folder = stage.input_paths["sft"] / "model"
    tokenizer = load_tokenizer(str(folder), trust_remote_code=cfg.model.trust_remote_code)
    task = load_task(cfg, stage, tokenizer)
    stage.note(f"loading {' and '.join(str(stage.input_paths[role] / 'model') for role in ('sft', 'ppo'))}")
    policies = {role: load_stage_policy(cfg, stage, role, tokenizer) for role in ("sft", "ppo")}
    answers = answer_all(cfg, stage, policies, tokenizer, task)
    if task.examples:
        stage.note(f"measuring perplexity on {len(task.examples)} demonstrations")
    perplexities = {
        role: perplexity(policy, task.examples, tokenizer.pad_token_id, cfg.rollout.batch_size)
        for role, policy in policies.items()
    }
    report = make_report(cfg, stage, task, answers, perplexities)
    on_main(lambda: write_durably(stage.folder / "report.json", json.dumps(report, indent=1)))
    on_main(lambda: write_durably(stage.folder / "report.html", page.render(report)))
    return stage.finish(base_model=None, metrics=headline(report))


def preflight(cfg: Config, stage, num_prompts: int) -> Path:
    """Shows what the comparison will take; returns its folder, where nothing was written."""
    phases = evaluate_phases(sizes_of(cfg, stage), shared_rewards(cfg, stage))
    work = f"{num_prompts} held-out prompts, answered {cfg.evaluate.num_samples} times each by two policies"
    show_needs(stage, Forecast(phases, {}, [work]))  # it writes a report, which is next to nothing
    return stage.folder


def make_report(cfg: Config, stage: Stage, task: Task, answers: dict[str, Answers], perplexities: dict) -> dict:
    """report.json, as reward/report/compare.py describes it."""
    judges = (reward_name(stage.manifests["ppo"]["config"]["ppo.rewards"]), gold_name(cfg.data.gold_rule))
    shown = [list(prompt.messages) for prompt in task.prompts] * cfg.evaluate.num_samples
    report = compare_policies(
        answers["sft"],
        answers["ppo"],
        shown,
        perplexities,
        judges=judges,
        num_bootstrap=cfg.evaluate.num_bootstrap,
        num_examples=cfg.evaluate.num_examples,
        seed=cfg.seed,
    )
    report |= background(cfg, stage) | {"num_demonstrations": len(task.examples)}
    report |= {"notes": [*task.notes, *shaping_notes(stage.manifests["ppo"]["config"]), *notes_on_kl(report)]}
    return report | {"warnings": warnings(report)}


def notes_on_kl(report: dict) -> list[str]:
    """What a KL below 0 is, where a reader meets one: among the figures, or in the curves alone."""
    logged = [
        value for name in ("objective/kl", "eval/kl") for value in report["curves"].get(name, {}).get("value", [])
    ]
    if min(policy["kl"] for policy in report["policies"].values()) < BELOW_ZERO:
        return [NEGATIVE[0].upper() + NEGATIVE[1:]]
    return [f"In the training curves, {NEGATIVE}"] if min(logged, default=0) < BELOW_ZERO else []


def load_stage_policy(cfg: Config, stage: Stage, role: str, tokenizer):
    """A policy, read as it was when it trained."""
    manifest = stage.manifests[role]
    require_trust(cfg, role, manifest)
    how = Reading.of_artifact(manifest, cfg.model.trust_remote_code)
    return open_policy(stage.input_paths[role], manifest, tokenizer, how)


def answer_all(cfg: Config, stage: Stage, policies: dict, tokenizer, task: Task) -> dict[str, Answers]:
    """Every policy's answers from the same seeds, scored by the reward that PPO optimised and by the gold rule."""
    score = load_score(cfg, stage)
    sampler = choose(cfg, policies["sft"], tokenizer)
    total = len(policies) * cfg.evaluate.num_samples * len(task.prompts)
    with counting("evaluate: answers", total) as sampler.after_batch:
        samples = {
            role: [
                answer(policy, policies["sft"], score, sampler, task.ids, task.prompts, cfg.rollout.batch_size, sample)
                for sample in range(cfg.evaluate.num_samples)
            ]
            for role, policy in policies.items()
        }
    return {role: judged(cfg, task, samples[role]) for role in policies}


def load_score(cfg: Config, stage: Stage) -> Score:
    """The reward that PPO optimised."""
    terms = [RewardTerm(**term) for term in stage.manifests["ppo"]["config"]["ppo.rewards"]]
    return load_reward(
        terms,
        cfg.inputs.reward,
        cfg.rollout.batch_size,
        prepare=lambda model: model.to(device()),
        trust_remote_code=cfg.model.trust_remote_code,
        how=Asking(cfg.ppo.reward_retries, cfg.ppo.reward_timeout),
    )


def gold_marks(cfg: Config, task: Task, prompts: list[Prompt], texts: list[str]) -> list[float] | None:
    """What the gold rule says of each answer, where there is one."""
    if task.gold_rule is None:
        return None
    how = Asking(cfg.ppo.reward_retries, cfg.ppo.reward_timeout)
    messages, records = [prompt.messages for prompt in prompts], [prompt.meta for prompt in prompts]
    return ask(task.gold_rule, cfg.data.gold_rule, how, messages, texts, records)


def judged(cfg: Config, task: Task, samples: list) -> Answers:
    """All samples of one policy, one after the other, with the gold rule's marks."""
    texts, prompts = [text for sample in samples for text in sample.texts], task.prompts * len(samples)
    return Answers(
        texts=texts,
        groups=[prompt.key for prompt in prompts],
        scores=torch.cat([sample.scores for sample in samples]).tolist(),
        kl=torch.cat([sample.kl for sample in samples]).tolist(),
        lengths=torch.cat([sample.lengths for sample in samples]).tolist(),
        finished=torch.cat([sample.terminated for sample in samples]).tolist(),
        gold=gold_marks(cfg, task, prompts, texts),
    )


def headline(report: dict) -> dict[str, float]:
    """The figures that the manifest carries."""
    ppo = report["policies"]["ppo"]
    figures = {
        f"win_rate{name}": report["win_rate"][key] for name, key in (("", "value"), ("_low", "low"), ("_high", "high"))
    }
    return figures | {"kl": ppo["kl"], "length_mean": ppo["length_mean"], "eos_rate": ppo["eos_rate"]}


def print_comparison(folder: Path) -> None:
    """The result for the terminal, from rank 0: a sentence, figures, warnings, where the report is."""
    if not is_main():
        return
    report = json.loads((folder / "report.json").read_text())
    policies = report["policies"]
    rows = [("", "SFT", "PPO")] + [
        (name, *(number(policies[role][key]) for role in ("sft", "ppo")))
        for key, name in FIGURES.items()
        if policies["ppo"].get(key) is not None
    ]
    cautions = [f"warning: {text}" for text in warnings(report)]
    lines = ["", page.headline(report), "", *table(rows), *(report.get("notes") or []), "", *cautions]
    print("\n".join([*lines, f"report: {folder / 'report.html'}"]))


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
