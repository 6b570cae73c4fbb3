"""Small imitations of many architectures, each through every stage, whole and with adapters.

`python -m stages.bench experiment=architectures` runs all, with bench.architectures=[opt] bench.adapters=[lora] some.
"""

import json
import re
import shutil
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from rlhf.artifacts.manifest import load_manifest
from rlhf.config.schema import AdapterKind, Attention, Config
from rlhf.errors import RlhfError, UserError
from rlhf.tables import markdown_table
from rlhf.text.tokenizer import train_tokenizer
from stages import evaluate, export, ppo, reward, sft
from stages.benches.imitations import ARCHITECTURES, small_model

STAGES = {"sft": sft, "reward": reward, "ppo": ppo, "evaluate": evaluate, "export": export}
COLOURS = ("red", "blue", "green", "black", "white")
THINGS = ("cat", "dog", "cow", "hen", "fox", "owl", "ant", "bee")
VOCABULARY = 640
# What ends a turn in the chat templates, the most particular first.
ENDS = ("<|return|>", "<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|END_OF_TURN_TOKEN|>", "<|end|>")
CONTROL = re.compile(r"<[|\uff5c][^<>\s]+[|\uff5c]>|<[a-z]+_of_[a-z]+>")


def measure(cfg: Config) -> list[dict]:
    """A row per architecture and adapter kind: how far it came, and why no further."""
    names = list(ARCHITECTURES) if cfg.bench.architectures is None else cfg.bench.architectures
    if unknown := sorted(set(names) - ARCHITECTURES.keys()):
        raise UserError(f"bench.architectures: there is no {', '.join(unknown)}; there are {', '.join(ARCHITECTURES)}")
    write_data(cfg)
    return [row_of(cfg, name, kind) for name, kind in product(names, cfg.bench.adapters)]


def row_of(cfg: Config, name: str, kind: AdapterKind) -> dict:
    """One cell of the matrix. Whatever is raised is its outcome."""
    began, row = time.perf_counter(), {"architecture": name, "adapter": kind.value, "stage": "model", "reason": None}
    try:
        own = cell_config(cfg, name, kind)
        for row["stage"], stage in STAGES.items():
            stage.run(own)
        row |= figures(own)
    except RlhfError as error:
        row |= {"outcome": "refused", "reason": str(error)}
    except Exception as error:  # the point of the matrix is to show it
        row |= {"outcome": "fails", "reason": f"{type(error).__name__}: {error}"}
    return {"outcome": "passes", **row, "seconds": time.perf_counter() - began}


def cell_config(cfg: Config, name: str, kind: AdapterKind) -> Config:
    """The config of one cell, after its model was made, in run.dir/models, and its folder emptied."""
    folder, run_dir = Path(cfg.run.dir) / "models" / name, Path(cfg.run.dir) / f"{name}-{kind.value}"
    shutil.rmtree(run_dir, ignore_errors=True)
    if not folder.exists():
        write_model(name, folder, cfg.seed)
    inputs = replace(cfg.inputs, **{role: str(run_dir / role) for role in ("sft", "reward", "ppo")})
    attention = Attention(ARCHITECTURES[name].attention)
    return replace(
        cfg,
        run=replace(cfg.run, dir=str(run_dir)),
        inputs=inputs,
        model=replace(cfg.model, path=str(folder), attention=attention),
        adapter=replace(cfg.adapter, kind=kind),
    )


def figures(cfg: Config) -> dict[str, float]:
    """What two ways to compute the same give. loss_difference: TRL's fused head against our forward, in nats."""
    manifest = load_manifest(cfg.inputs.sft)
    lines = [json.loads(line) for line in (Path(cfg.inputs.sft) / "metrics.jsonl").read_text().splitlines()]
    losses = [line["eval/loss"] for line in lines if "eval/loss" in line]
    return {"loss_difference": abs(min(losses) - manifest["metrics"]["valid_loss"])}


# ---- what is trained


def write_model(name: str, folder: Path, seed: int) -> None:
    """The imitation and a tokenizer as a folder that model.path can name."""
    tokenizer = small_tokenizer(ARCHITECTURES[name].template)
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = small_model(name, len(tokenizer), {**tokens, "pad_token_id": tokenizer.pad_token_id})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def small_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """One with the control tokens of a chat template that comes with TRL; without a template, and then without a pad
    token either, as base models have it."""
    text = chat_template(template) if template else ""
    tokens = sorted(set(CONTROL.findall(text)))
    trained = train_tokenizer([text, *(f"{prompt} {answer}" for prompt, answer in dialogues())] * 2, VOCABULARY)
    end = next((token for token in ENDS if token in tokens), "<|endoftext|>")
    return PreTrainedTokenizerFast(
        tokenizer_object=trained.backend_tokenizer,
        bos_token="<|begin|>",
        eos_token=end,
        pad_token="<|pad|>" if template else None,
        additional_special_tokens=[token for token in tokens if token != end],
        chat_template=text or None,
    )


def chat_template(name: str) -> str:
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()


def dialogues() -> list[tuple[str, str]]:
    return [(f"{thing} is {colour}?", f"{colour}.") for thing, colour in product(THINGS, COLOURS)]


def write_data(cfg: Config) -> None:
    """Demonstrations, rankings and prompts about colours of animals, where the config looks for them."""
    rows = {"demonstrations": [], "rankings": [], "prompts": []}
    for prompt, answer in dialogues():
        rows["demonstrations"].append({"prompt": prompt, "completion": answer})
        rows["rankings"].append({"prompt": prompt, "responses": ["no.", answer, "what?"], "ranks": [2, 1, 2]})
        rows["prompts"].append({"prompt": prompt})
    for name, records in rows.items():
        path = Path(getattr(cfg.data, name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))


# ---- what is told


def markdown(rows: list[dict]) -> list[str]:
    """A line per architecture, a column per adapter kind; below, the reason of each cell that is not passed."""
    kinds = list(dict.fromkeys(row["adapter"] for row in rows))
    cells = {(row["architecture"], row["adapter"]): row for row in rows}
    names = list(dict.fromkeys(row["architecture"] for row in rows))
    shown = [(name, *(told(cells[name, kind]) for kind in kinds)) for name in names]
    lines = markdown_table(("architecture", *kinds), shown)
    reasons = [f"- {row['architecture']}, {row['adapter']}, {row['stage']}: {row['reason']}" for row in rows]
    return [*lines, "", *(line for line, row in zip(reasons, rows, strict=True) if row["reason"])]


def told(row: dict) -> str:
    """One cell: how it ended, and in how many seconds."""
    return f"{row['outcome']}{' in ' + row['stage'] if row['reason'] else ''}, {row['seconds']:.0f} s"
