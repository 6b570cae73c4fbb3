"""The fixed work of bench.what=speed: models with random weights, prompts, and how PPO goes over them, in a folder.

policy, reward and critic are model folders of Hugging Face, prompts.json has lists of token ids, workload.json the
rest: its keys are the fields of `Workload`. Other programs can read it and do the same work.
"""

import json
import math
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from rlhf.errors import UserError
from rlhf.models.policies import device

PAD, BOS, EOS = 0, 1, 2
FIRST_WORD = 3  # of the ids that prompts are made of
MAX_PROMPT = 128  # tokens
NUM_PROMPTS = 4096
CONSTANT = 4.0  # what the policy's first hidden unit is, in every layer
MODELS = ("policy", "reward", "critic")


@dataclass(frozen=True)
class Size:
    """The shape of a Llama. batch: responses of a rollout."""

    hidden: int
    feed_forward: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int
    batch: int


SIZES = {
    "small": Size(hidden=256, feed_forward=688, layers=6, heads=4, key_heads=4, vocabulary=8192, batch=64),
    "medium": Size(hidden=768, feed_forward=2048, layers=12, heads=12, key_heads=12, vocabulary=32000, batch=16),
    # Llama 3.2 1B and Llama 2 7B
    "1b": Size(hidden=2048, feed_forward=8192, layers=16, heads=32, key_heads=8, vocabulary=128256, batch=64),
    "7b": Size(hidden=4096, feed_forward=11008, layers=32, heads=32, key_heads=32, vocabulary=32000, batch=32),
}


@dataclass(frozen=True)
class Workload:
    """What an iteration does. rollout_batch: responses; minibatches: optimizer steps per epoch; micro_batch: responses
    per forward. Responses are mean_response_fraction of response_tokens long in the mean."""

    size: str
    response_tokens: int
    rollout_batch: int
    ppo_epochs: int = 4
    minibatches: int = 1
    micro_batch: int = 8
    temperature: float = 1.0
    pad: int = PAD
    eos: int = EOS
    mean_response_fraction: float = 0.6


# ---- writing


def write(folder: Path, name: str, size: Size, response_tokens: int, models: Iterable[str] = MODELS) -> None:
    """A workload in a folder, in place of what was there. models: those that are needed of the three."""
    shutil.rmtree(folder, ignore_errors=True)
    workload = Workload(name, response_tokens, size.batch)
    with torch.random.fork_rng():
        for seed, model in enumerate(MODELS):
            if model in models:
                torch.manual_seed(seed)
                made = policy(size, workload) if model == "policy" else scorer(size, workload)
                made.save_pretrained(folder / model)
    (folder / "prompts.json").write_text(json.dumps(prompts(size.vocabulary, NUM_PROMPTS, seed=0)))
    (folder / "workload.json").write_text(json.dumps(asdict(workload), indent=1))


def llama(size: Size, workload: Workload) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=size.hidden,
        intermediate_size=size.feed_forward,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_heads,
        vocab_size=size.vocabulary,
        max_position_embeddings=max(2048, MAX_PROMPT + workload.response_tokens),
        tie_word_embeddings=False,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        num_labels=1,
    )


def scorer(size: Size, workload: Workload) -> LlamaForSequenceClassification:
    with device():
        return LlamaForSequenceClassification(llama(size, workload))


@torch.no_grad()
def policy(size: Size, workload: Workload) -> LlamaForCausalLM:
    """A random policy whose weights end a response at each token with nearly the same probability.

    The first hidden unit is CONSTANT at every token: embeddings set it, no layer adds to it. EOS alone reads it.
    """
    with device():
        model = LlamaForCausalLM(llama(size, workload)).eval()
    model.model.embed_tokens.weight[:, 0] = CONSTANT
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[0] = 0
        layer.mlp.down_proj.weight[0] = 0
    head = model.lm_head.weight
    head[:, 0] = 0
    head[[PAD, EOS]] = 0
    chance = stop_chance(workload.response_tokens, workload.mean_response_fraction)
    weight = stop_weight(model, chance)
    head[EOS, 0] = weight
    head[PAD, 0] = -10 * abs(weight)  # so never sampled
    return model


def stop_weight(model: LlamaForCausalLM, chance: float) -> float:
    """What EOS makes of the constant unit, for it to have this chance among the other words, in random texts."""
    ids = torch.randint(FIRST_WORD, model.config.vocab_size, (8, 96), device=model.device)
    hidden = model.model(ids).last_hidden_state
    logits = model.lm_head(hidden)
    logits[..., [PAD, EOS]] = -math.inf
    others = logits.logsumexp(-1).mean()
    return ((others + math.log(chance / (1 - chance))) / hidden[..., 0].mean()).item()


def mean_length(chance: float, limit: int) -> float:
    """Tokens of a response in the mean that stops at each with this chance, and at the limit: E[min(G, limit)]."""
    return (1 - (1 - chance) ** limit) / chance


def stop_chance(limit: int, fraction: float) -> float:
    """The chance to stop for which responses are this fraction of the limit long in the mean, by bisection."""
    low, high = 1e-9, 1 - 1e-9
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_length(middle, limit) > fraction * limit else (low, middle)
    return low


def prompts(vocabulary: int, number: int, seed: int) -> list[list[int]]:
    """Random prompts: lengths log-normal about 62 tokens, those outside 16 to 128 drawn again."""
    draws = np.random.default_rng(seed)
    lengths = draws.lognormal(math.log(62), 0.55, size=4 * number)
    lengths = lengths[(lengths >= 16) & (lengths <= MAX_PROMPT)][:number].astype(int)
    return [draws.integers(FIRST_WORD, vocabulary, length).tolist() for length in lengths]


# ---- reading


def read(folder: Path, needed: Iterable[str] = MODELS) -> tuple[Workload, list[list[int]]]:
    """The workload in a folder, and its prompts. needed: the models that must be there. Raises UserError."""
    files = ["workload.json", "prompts.json", *(f"{model}/config.json" for model in needed)]
    missing = [name for name in files if not (folder / name).is_file()]
    missing += [f"{model}/*.safetensors" for model in needed if not any((folder / model).glob("*.safetensors"))]
    if missing:
        raise UserError(f"bench.workload={folder} is incomplete: it lacks {', '.join(missing)}; write it again")
    known = json.loads((folder / "workload.json").read_text())
    names = [field.name for field in fields(Workload)]
    if known.keys() != set(names):
        raise UserError(f"bench.workload={folder}: workload.json must have the keys {', '.join(names)}; write it again")
    return Workload(**known), json.loads((folder / "prompts.json").read_text())


# ---- words


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A word per id, its number in hexadecimal, so that text has exactly the ids that it was made of.

    The models know ids alone. Only padding and EOS are control tokens: the others may be sampled.
    """
    words = {PAD: "<pad>", EOS: "</s>"}
    tokenizer = Tokenizer(WordLevel({words.get(i, f"{i:x}"): i for i in range(vocabulary)}))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=words[PAD],
        eos_token=words[EOS],
        chat_template="{% for message in messages %}{{ message.content }} {% endfor %}",
    )


def text_of(ids: Iterable[int] | Tensor) -> str:
    """Ids as `word_tokenizer` reads them."""
    return " ".join(f"{int(i):x}" for i in ids)
