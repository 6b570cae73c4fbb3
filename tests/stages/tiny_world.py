"""A world small enough to run every stage in seconds: "cat is red?" -> "red.", its data, config and rewards.

A module of its own because a config names rewards by module: `ppo.rewards=[{source: tiny_world:names_the_colour}]`.
"""

import json
import os
import re
import signal
from itertools import product
from pathlib import Path

from hydra import compose, initialize_config_module

from reward.rules import rule
from rlhf.config.checks import resolve
from rlhf.config.schema import Config

COLOURS = ["red", "blue", "green", "black", "white", "pink", "gold", "grey"]
ANIMALS = ["cat", "dog", "cow", "hen", "fox", "owl", "ant", "bee", "emu", "elk"]
HELDOUT_ANIMALS = ["yak", "rat"]


def question(colour: str, animal: str) -> str:
    return f"{animal} is {colour}?"


def demonstration(colour: str, animal: str) -> dict:
    return {"prompt": question(colour, animal), "completion": f"{colour}."}


def ranking(colour: str, animal: str) -> dict:
    """The colour is best, nothing is worst; every fourth ranking has a tie, every eighth a second annotator."""
    place = COLOURS.index(colour) + ANIMALS.index(animal)
    answers = [f"{colour}.", f"{animal}.", "no."]
    ranks = [1, 2, 2] if place % 4 == 0 else [1, 2, 3]
    turn = place % 3
    return {
        "prompt": question(colour, animal),
        "responses": answers[turn:] + answers[:turn],
        "ranks": ranks[turn:] + ranks[:turn],
        "annotator": "ann",
    }


def records() -> dict[str, list[dict]]:
    """File stem -> records."""
    pairs, heldout = list(product(COLOURS, ANIMALS)), list(product(COLOURS, HELDOUT_ANIMALS))
    second = [{**ranking(*pair), "annotator": "bob"} for pair in pairs[::8]]
    return {
        "demonstrations": [demonstration(*pair) for pair in pairs],
        "rankings": [ranking(*pair) for pair in pairs] + second,
        "prompts": [{"prompt": question(*pair)} for pair in pairs],
        "heldout": [{"prompt": question(*pair)} for pair in heldout],
    }


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_world(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, rows in records().items():
        write_jsonl(folder / f"{stem}.jsonl", rows)
    return folder


def tiny_overrides(run_dir: Path, world: Path) -> list[str]:
    """What makes the shipped config a run of seconds: 8 steps of SFT and of reward, 4 of PPO. Nothing tuned is left."""
    values = {
        "seed": 0,
        "run.dir": run_dir,
        **{f"data.{stem}": world / f"{stem}.jsonl" for stem in records()},
        "data.gold_rule": "tiny_world:names_the_colour",
        **dict.fromkeys(["data.valid_share", "data.test_share"], 0.15),
        **{"data.max_prompt_tokens": 20, "data.max_response_tokens": 6, "model.scratch.max_positions": 32},
        **{"model.scratch.hidden_size": 32, "model.scratch.intermediate_size": 64, "model.scratch.vocab_size": 320},
        **{"model.scratch.num_layers": 1, "model.scratch.num_heads": 2},
        **{"sft.batch_size": 16, "sft.micro_batch_size": 16, "sft.num_epochs": 2, "sft.eval_steps": 2},
        **{"sft.learning_rate": 2e-3, "sft.weight_decay": 0.01, "sft.patience": 3},
        **{"reward.batch_size": 16, "reward.micro_batch_size": 8, "reward.num_epochs": 2, "reward.eval_steps": 2},
        **{"reward.learning_rate": 1e-3, "reward.weight_decay": 0.01, "reward.patience": 4, "reward.norm_samples": 16},
        **{"ppo.num_steps": 4, "ppo.batch_size": 8, "ppo.minibatch_size": 8, "ppo.micro_batch_size": 4},
        **{"ppo.num_epochs": 2, "ppo.learning_rate": 3e-2, "ppo.critic_learning_rate": 1e-3, "ppo.kl_coef": 0.05},
        **{"ppo.critic_warmup_steps": 1, "ppo.eval_steps": 2, "ppo.eval_prompts": 8, "ppo.save_steps": 2},
        **{"evaluate.num_prompts": 16, "evaluate.num_samples": 1, "evaluate.num_bootstrap": 50},
        **{
            "evaluate.num_examples": 4,
            "tracking.wandb": "disabled",
            "tracking.log_steps": 1,
            "tracking.num_samples": 2,
        },
    }
    return [f"{key}={value}" for key, value in values.items()]


def composed(*overrides: str, world_size: int = 1) -> Config:
    """The checked config that the shipped files and these overrides make."""
    with initialize_config_module("conf", version_base="1.3"):
        return resolve(compose("config", overrides=list(overrides)), world_size)


def last_words(prompts) -> list[str]:
    """The colour that each prompt asks about."""
    texts = [prompt if isinstance(prompt, str) else prompt[-1]["content"] for prompt in prompts]
    return [text.rstrip("?").split()[-1] for text in texts]


@rule
def names_the_colour(prompts, responses):
    return [float(colour in response) for colour, response in zip(last_words(prompts), responses, strict=True)]


@rule
def length(prompts, responses):
    return [float(len(response)) for response in responses]


@rule
def plain_length(prompts, responses):
    """Characters, those of control tokens left out."""
    return [float(len(re.sub(r"<\|\w+\|>", "", response))) for response in responses]


@rule
def kills_once(prompts, responses):
    """names_the_colour; at its call number TINY_KILL, where that is set, the process dies as if by kill -9."""
    kills_once.calls = getattr(kills_once, "calls", 0) + 1
    if str(kills_once.calls) == os.environ.get("TINY_KILL"):
        signal.raise_signal(signal.SIGKILL)
    return names_the_colour(prompts, responses)


@rule
def not_a_number(prompts, responses):
    return [float("nan") for _ in responses]


@rule
def not_a_number_later(prompts, responses):
    """names_the_colour; from its sixth call on, which is PPO's third step, one score is NaN."""
    not_a_number_later.calls = getattr(not_a_number_later, "calls", 0) + 1
    scores = names_the_colour(prompts, responses)
    return scores if not_a_number_later.calls < 6 else [*scores[:-1], float("nan")]


@rule
def right_answer(prompts, responses, records):
    """1 where the answer holds the `reference` of the prompt's record."""
    return [float(record["reference"] in response) for response, record in zip(responses, records, strict=True)]


@rule
def fails_once(prompts, responses):
    """names_the_colour; its call number `fails_once.fails_at` fails."""
    fails_once.calls += 1
    if fails_once.calls == fails_once.fails_at:
        raise ConnectionError("HTTP 503")
    return names_the_colour(prompts, responses)


fails_once.calls, fails_once.fails_at = 0, None


@rule
def unsteady(prompts, responses):
    """A service: the number of the call, a little more for each response; call number `unsteady.fails_at` fails."""
    unsteady.calls += 1
    if unsteady.calls == unsteady.fails_at:
        raise ConnectionError("HTTP 503")
    return [unsteady.calls + place / 100 for place, _ in enumerate(responses)]


unsteady.calls, unsteady.fails_at = 0, None


@rule
def fails(prompts, responses):
    return [1 / 0 for _ in responses]


@rule
def too_few(prompts, responses):
    return [1.0]
