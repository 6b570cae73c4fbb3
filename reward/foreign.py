"""Reward models that other programs trained, as scores for a rule of one's own. See docs/from_trl.md.

Two kinds: a sequence classifier with one label (`score.weight`: TRL's RewardTrainer, most of the hub), and a causal
language model with a value head (`v_head.summary.weight` [1, hidden] and `v_head.summary.bias` [1], among the model's
own weights or in value_head.safetensors: TRL up to 0.11, LLaMA-Factory).
"""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from reward.scorer import RewardScorer
from rlhf.errors import UserError
from rlhf.models.policies import device
from rlhf.models.reading import Reading
from rlhf.models.scalars import ScalarModel, load_scalar_model, scalar_model_from_policy
from rlhf.text.tokenizer import load_tokenizer

HEAD = "v_head.summary."


def load_foreign(
    folder: str | Path,
    max_prompt_tokens: int = 1024,
    batch_size: int = 16,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
) -> RewardScorer:
    """score(prompts, responses) of a reward model in a local folder: its head's number at a response's last token.

    folder: all of the model (an adapter merged into it), and its tokenizer with its chat template.
    max_prompt_tokens: of a longer prompt the oldest turns are left out. batch_size: texts per forward.
    """
    folder = Path(folder)
    how = Reading(dtype, attention)
    scalar = load_scalar_model(folder, how) if "score.weight" in _tensors(folder) else _with_value_head(folder, how)
    scalar = scalar.requires_grad_(False).to(device())
    return RewardScorer(scalar, load_tokenizer(str(folder)), max_prompt_tokens, batch_size)


def _with_value_head(folder: Path, how: Reading) -> ScalarModel:
    weight, bias = read_value_head(folder)
    scalar = scalar_model_from_policy(folder, how, zero_head=True)
    head = scalar.model.score
    if head.weight.shape != weight.shape:
        raise UserError(
            f"{folder}: {HEAD}weight is {list(weight.shape)}, and the model needs {list(head.weight.shape)}; it is "
            "another model's"
        )
    head.weight.data.copy_(weight)
    scalar.mean = -bias
    return scalar


def read_value_head(folder: Path) -> tuple[Tensor, float]:
    """Weight [1, hidden] and bias of the value head in a folder's safetensors; a head without bias has 0."""
    tensors = _tensors(folder)
    if f"{HEAD}weight" not in tensors:
        pickles = [path.name for path in sorted(folder.glob("*.bin"))]
        raise UserError(
            f"{folder}: its safetensors hold no head, neither score.weight nor {HEAD}weight"
            + (f"; {pickles[0]} can run code when it is read: save it as safetensors" if pickles else "")
        )
    bias = _read(tensors, f"{HEAD}bias").item() if f"{HEAD}bias" in tensors else 0.0
    return _read(tensors, f"{HEAD}weight").float(), bias


def _tensors(folder: Path) -> dict[str, Path]:
    """The file of each tensor in a folder's safetensors."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def _read(tensors: dict[str, Path], name: str) -> Tensor:
    with safe_open(tensors[name], framework="pt") as file:
        return file.get_tensor(name)
