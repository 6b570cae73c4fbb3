"""Seconds and memory of PPO iterations on a fixed workload, by phase. `python -m stages.bench bench.what=speed`

Phases: rollout (sampling), score (log-probabilities of policy and reference, rewards, values), update. The loop, the
models' forwards and the engines are those of stages.ppo.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile

from reward.scorer import RewardScorer, Term, weighted_sum
from rlhf.config.schema import AdapterKind, Config, Dtype, Engine, Precision
from rlhf.console import say
from rlhf.errors import UserError
from rlhf.models.adapters import Base, load_base_model, lora_config
from rlhf.models.policies import device, load_policy
from rlhf.models.reading import Reading
from rlhf.models.scalars import ScalarModel, fresh_head, load_scalar_model
from rlhf.models.trunk import PolicyView, ScalarView, Trunk
from rlhf.ppo.critic import Critic
from rlhf.ppo.estimates import gae_of
from rlhf.ppo.experience import Collector, PromptBatch, Rollout
from rlhf.ppo.learner import Learner
from rlhf.ppo.loop import ppo_steps
from rlhf.ppo.update import Ppo
from rlhf.preflight.forecast import gigabytes
from rlhf.preflight.memory import on_gpu
from rlhf.rollout.choose import choose
from rlhf.rollout.sampling import Sampler
from rlhf.tables import markdown_table
from stages.benches import workload
from stages.benches.clock import Clock, Cost
from stages.benches.limits import Ceilings, Lengths, Model, least_seconds
from stages.ppo import ROUNDING, SAMPLING_ROUNDING, make_engine

PHASES = ("rollout", "score", "update")
COLUMNS = ("phase", "seconds (min to max)", "CPU seconds", "least seconds", "of the ceiling", "padding", "peak memory")
DTYPES = {Precision.fp32: Dtype.float32, Precision.bf16: Dtype.bfloat16}
LEARNING_RATE = 3e-6  # so small that responses keep their lengths
MICRO_REWARDS = 8  # responses that the reward model scores at once


def measure(cfg: Config) -> list[dict]:
    """The figures of the workload that the config names, or of one that is made first."""
    if cfg.deepspeed.engine is not Engine.torch:
        raise UserError("bench.what=speed measures one process: run it without the launcher and with deepspeed=none")
    needed = workload.MODELS if cfg.bench.adapter is AdapterKind.none else ("policy",)
    if cfg.bench.workload is not None:
        folder = Path(cfg.bench.workload)
    else:
        folder, name = Path(cfg.run.dir) / "workload", cfg.bench.size.value
        workload.write(folder, name, workload.SIZES[name], cfg.bench.response_tokens, needed)
    work, prompts = workload.read(folder, needed)
    for key, own, its in (
        ("size", cfg.bench.size.value, work.size),
        ("response_tokens", cfg.bench.response_tokens, work.response_tokens),
    ):
        if own != its:
            raise UserError(f"bench.{key}={own}, and the workload in {folder} has {its}; set bench.{key}={its}")
    return [measured(config_of(cfg, work), folder, work, prompts)]


def config_of(cfg: Config, work: workload.Workload) -> Config:
    """The config of PPO on this workload."""
    return replace(
        cfg,
        model=replace(cfg.model, dtype=DTYPES[cfg.bench.precision]),
        adapter=replace(cfg.adapter, kind=cfg.bench.adapter),
        data=replace(cfg.data, max_prompt_tokens=workload.MAX_PROMPT, max_response_tokens=work.response_tokens),
        rollout=replace(cfg.rollout, temperature=work.temperature, batch_size=work.rollout_batch),
        ppo=replace(
            cfg.ppo,
            num_steps=1 + cfg.bench.iterations + cfg.bench.profile,
            batch_size=work.rollout_batch,
            minibatch_size=work.rollout_batch // work.minibatches,
            micro_batch_size=work.micro_batch,
            num_epochs=work.ppo_epochs,
            learning_rate=LEARNING_RATE,
            critic_learning_rate=LEARNING_RATE,
            critic_warmup_steps=0,
            target_kl=None,
            start_from=None,
        ),
    )


# ---- models


@dataclass(frozen=True)
class Models:
    """As in stages/models/ppo.py."""

    policy: torch.nn.Module
    ref_policy: torch.nn.Module
    critic: torch.nn.Module
    reward: torch.nn.Module

    def embeddings(self) -> set[torch.nn.Module]:
        """Of each model, or the one that all share."""
        views = (self.policy, self.ref_policy, self.critic, self.reward)
        return {whole(view).get_input_embeddings() for view in views}


def whole(model: torch.nn.Module):
    """The library's model within one of ours."""
    if isinstance(model, PolicyView | ScalarView):
        return model.trunk.model
    return model.model if isinstance(model, ScalarModel) else model


def load(cfg: Config, folder: Path, tokenizer) -> Models:
    """Four models, or with an adapter four views of one."""
    how = Reading.of_config(cfg)
    if cfg.adapter.kind is not AdapterKind.none:
        with torch.random.fork_rng():
            torch.manual_seed(cfg.seed)
            return views(cfg, Trunk(load_base_model(base(folder), tokenizer, cfg.adapter.kind, how)))
    return Models(
        policy=load_policy(folder / "policy", how).to(device()),
        ref_policy=load_policy(folder / "policy", how).requires_grad_(False).to(device()),
        critic=load_scalar_model(folder / "critic", how).to(device()),
        reward=load_scalar_model(folder / "reward", how).requires_grad_(False).to(device()),
    )


def base(folder: Path) -> Base:
    """The policy's folder as what adapters stand on; nothing is saved that would need its fingerprint."""
    return Base(str(folder / "policy"), None, "workload", "")


def views(cfg: Config, trunk: Trunk) -> Models:
    """Fresh adapters for all but the reference, which is the base itself."""
    config = lora_config(cfg.adapter, trunk.model, dropout=0.0)
    for name in ("policy", "critic", "reward"):
        trunk.add(name, config, trains=name != "reward")
    heads = [fresh_head(trunk.model, is_zero=is_zero) for is_zero in (True, False)]
    return Models(
        policy=PolicyView(trunk, "policy").eval(),
        ref_policy=PolicyView(trunk, None).eval(),
        critic=ScalarView(trunk, "critic", heads[0]).eval(),
        reward=ScalarView(trunk, "reward", heads[1]).eval().requires_grad_(False),
    )


# ---- the loop, with marks where phases begin


class MarkedSampler(Sampler):
    """A sampler that tells when it is done."""

    clock: Clock

    def __call__(self, *arguments, **options):
        responses = super().__call__(*arguments, **options)
        self.clock.begin("score")
        return responses


class MarkedPpo(Ppo):
    """An update that tells when it begins."""

    clock: Clock

    def update(self, *arguments):
        self.clock.begin("update")
        return super().update(*arguments)


def iterations(cfg: Config, models: Models, tokenizer, prompts: list[list[int]], clock: Clock) -> Iterator[Lengths]:
    """PPO step by step; after each, what it worked on, while the clock has what it took."""
    plain = choose(cfg, models.ref_policy, tokenizer)
    sampler = MarkedSampler(plain.engine, tokenizer, cfg.seed)
    ppo = MarkedPpo(cfg.ppo, cfg.rollout.temperature, cfg.seed, ROUNDING[cfg.model.dtype.value])
    sampler.clock = ppo.clock = clock
    policy = make_engine(cfg, "policy", models.policy, cfg.ppo.learning_rate)
    critic = Critic(make_engine(cfg, "critic", models.critic, cfg.ppo.critic_learning_rate), cfg.ppo)
    learner = Learner.fresh(cfg.ppo, policy, critic)
    scorer = RewardScorer(models.reward, tokenizer, workload.MAX_PROMPT, MICRO_REWARDS)
    collector, seen = Collector(sampler, learner.shaping, cfg.ppo.micro_batch_size), []

    def collect(policy, ref_policy, score, batch: PromptBatch) -> Rollout:
        clock.begin("rollout")
        rollout = collector(policy, ref_policy, score, batch)
        seen.append(Lengths([len(ids) for ids in batch.ids], rollout.lengths.tolist()))
        return rollout

    for _ in ppo_steps(
        learner,
        models.ref_policy,
        weighted_sum([Term("reward", scorer)]),
        collect,
        gae_of(critic, cfg.ppo),
        ppo,
        batches(prompts, cfg.ppo.batch_size),
        first_step=0,
        sampling_tolerance=SAMPLING_ROUNDING[cfg.model.dtype.value],
    ):
        clock.end()
        yield seen[-1]


def batches(prompts: list[list[int]], size: int) -> Iterator[PromptBatch]:
    """The prompts in their order, again and again."""
    step = 0
    while True:
        places = [i % len(prompts) for i in range(step * size, (step + 1) * size)]
        ids = [prompts[i] for i in places]
        messages = [[{"role": "user", "content": workload.text_of(own)}] for own in ids]
        yield PromptBatch(step, ids, messages, [f"prompts.json:{i}" for i in places], [{}] * size)
        step += 1


# ---- figures


def measured(cfg: Config, folder: Path, work: workload.Workload, prompts: list[list[int]]) -> dict:
    """One record of medians over the iterations. cfg: of `config_of`."""
    dtype = getattr(torch, cfg.model.dtype.value)
    ceilings, load_before = Ceilings.measured(dtype), os.getloadavg()[0]
    vocabulary = json.loads((folder / "policy" / "config.json").read_text())["vocab_size"]
    tokenizer = workload.word_tokenizer(vocabulary)
    models = load(cfg, folder, tokenizer)
    clock = Clock(models.embeddings(), work.pad)
    steps = iterations(cfg, models, tokenizer, prompts, clock)
    next(steps)
    clock.taken()  # the first iteration is slower: memory is touched, Adam's state made
    seen = []
    for _ in range(cfg.bench.iterations):
        lengths = next(steps)
        seen.append((lengths, clock.taken()))
        say(f"  iteration {len(seen)} of {cfg.bench.iterations}: {sum_seconds(seen[-1][1]):.2f} s")
    operations = traced(lambda: next(steps), Path(cfg.run.dir)) if cfg.bench.profile else []
    num_trained = sum(p.numel() for p in models.policy.parameters() if p.requires_grad)
    has_adapter = cfg.adapter.kind is not AdapterKind.none
    model = Model.of(whole(models.policy).config, num_trained, has_adapter, dtype.itemsize)
    num_steps = work.ppo_epochs * work.minibatches
    least = [least_seconds(model, lengths, work.ppo_epochs, num_steps, ceilings) for lengths, _ in seen]
    setting = {"size": work.size, "precision": cfg.bench.precision.value, "adapter": cfg.adapter.kind.value}
    setting |= {"response_tokens": work.response_tokens, "iterations": cfg.bench.iterations, "load": load_before}
    machine = {"matmul_flops": ceilings.flops, "copy_bytes_per_s": ceilings.bandwidth}
    return setting | machine | figures(seen, least) | ({"operations": operations} if operations else {})


def sum_seconds(costs: dict[str, Cost]) -> float:
    return sum(cost.seconds for cost in costs.values())


def figures(seen: list[tuple[Lengths, dict[str, Cost]]], least: list[dict[str, float]]) -> dict:
    """Medians over iterations of what they worked on and took, and of the least that it could have taken."""
    record = {}
    for phase in PHASES:
        costs = [costs[phase] for _, costs in seen]
        record |= spread(f"{phase}_s", [cost.seconds for cost in costs])
        record |= {
            f"{phase}_cpu_s": median(cost.cpu_seconds for cost in costs),
            f"{phase}_padding": median(cost.padding for cost in costs),
            f"{phase}_peak_gb": max(cost.peak for cost in costs) / 1e9,
            f"{phase}_least_s": median(one[phase] for one in least),
        }
    record |= spread("iteration_s", [sum_seconds(costs) for _, costs in seen])
    record["iteration_cpu_s"] = median(sum(cost.cpu_seconds for cost in costs.values()) for _, costs in seen)
    record["iteration_least_s"] = median(sum(one.values()) for one in least)
    tokens = [sum(lengths.responses) / sum_seconds(costs) for lengths, costs in seen]
    record["response_tokens_per_s"] = median(tokens)
    record["mean_response"] = median(sum(own.responses) / len(own.responses) for own, _ in seen)
    record["peak_memory_gb"] = max(record[f"{phase}_peak_gb"] for phase in PHASES)
    shares = {name: record[f"{name}_least_s"] / record[f"{name}_s"] for name in (*PHASES, "iteration")}
    record |= {f"{phase}_fraction_of_ceiling": shares[phase] for phase in PHASES}
    return record | {"fraction_of_ceiling": shares["iteration"]}


def spread(name: str, values: list[float]) -> dict[str, float]:
    return {name: median(values), f"{name}_min": min(values), f"{name}_max": max(values)}


def traced(call: Callable, folder: Path) -> list[tuple[str, float]]:
    """The ten operations in which most time goes, with their seconds; the trace of all is written to the folder."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu() else [])]
    with profile(activities=activities) as profiler:
        call()
    folder.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(folder / "trace.json.gz"))
    kind = "device" if on_gpu() else "cpu"
    own = [(event.key, getattr(event, f"self_{kind}_time_total") / 1e6) for event in profiler.key_averages()]
    return sorted(own, key=lambda pair: -pair[1])[:10]


def markdown(rows: list[dict]) -> list[str]:
    """For people: a table of the phases, the dearest operations; last, for programs, a line of JSON."""
    return [line for row in rows for line in record_lines(row)]


def record_lines(row: dict) -> list[str]:
    machine = f"{row['matmul_flops'] / 1e9:,.0f} GFLOP/s, copies {row['copy_bytes_per_s'] / 1e9:,.0f} GB/s"
    work = (
        f"{row['size']}, {row['precision']}, adapter={row['adapter']}, responses up to {row['response_tokens']} tokens"
    )
    lines = [
        f"{work} ({row['mean_response']:.1f} in the mean): {row['response_tokens_per_s']:.0f} response tokens/s",
        f"ceilings, measured in this run: products {machine}; load of the machine before: {row['load']:.1f}",
        "",
        *markdown_table(COLUMNS, [phase_cells(row, phase) for phase in (*PHASES, "iteration")]),
        "",
    ]
    if operations := row.get("operations"):
        cells = [(name, f"{seconds:.2f}") for name, seconds in operations]
        lines += [*markdown_table(("operation", "seconds of its own"), cells), "", "trace: trace.json.gz", ""]
    return [*lines, json.dumps({key: value for key, value in row.items() if key != "operations"})]


def phase_cells(row: dict, phase: str) -> tuple[str, ...]:
    seconds, least = row[f"{phase}_s"], row[f"{phase}_least_s"]
    is_whole = phase == "iteration"
    peak = row["peak_memory_gb"] if is_whole else row[f"{phase}_peak_gb"]
    return (
        phase,
        f"{seconds:.2f} ({row[f'{phase}_s_min']:.2f} to {row[f'{phase}_s_max']:.2f})",
        f"{row[f'{phase}_cpu_s']:.2f}",
        f"{least:.2f}",
        f"{least / seconds:.0%}",
        "" if is_whole else f"{row[f'{phase}_padding']:.0%}",
        gigabytes(1e9 * peak),
    )
