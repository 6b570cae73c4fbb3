"""A model is tried before it trains: what every stage takes for granted is looked at in a few forwards of few tokens.

What one architecture or another does not keep: a mask that is ignored, positions that count the padding, a cache that
gives other logits than one forward, dropout that no setting reaches. Each would train on wrong numbers in silence.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf.errors import UserError
from rlhf.models.policies import response_logprobs
from rlhf.models.scalars import hidden_states
from rlhf.rollout.decoder import sample
from rlhf.text.batches import pad_left
from rlhf.text.tokenizer import reason

LENGTHS, NUM_RESPONSE = (9, 5), 3  # tokens of the sequences that are tried, and at the end of each that are scored
# Most that rounding makes of one log-probability, in nats in the mean over tokens.
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.3}
# Of a model that takes other inputs than ours. NotImplementedError is a RuntimeError.
WHAT_A_FORWARD_RAISES = (AttributeError, TypeError, ValueError, RuntimeError, IndexError, KeyError)


@torch.no_grad()
def require_usable(model: PreTrainedModel) -> None:
    """Raises UserError where the model would be trained on wrong numbers. model: its dropout is set to 0."""
    what = f"model.path: {type(model).__name__}"
    try:
        problem = first_problem(model)
    except torch.OutOfMemoryError:  # which says nothing of the architecture
        raise
    except WHAT_A_FORWARD_RAISES as error:
        said = f"{type(error).__name__}: {reason(error)}"
        raise UserError(f"{what} cannot make the forwards that PPO needs ({said}); choose another model") from error
    if problem is not None:
        raise UserError(f"{what} {problem}; try model.attention=eager, or choose another model")


def first_problem(model: PreTrainedModel) -> str | None:
    """What the model does otherwise than all stages take for granted, or None."""
    sequences = drawn(model)
    hidden = hidden_states(model, *masked(model, sequences))
    width = model.get_output_embeddings().in_features
    if hidden.shape[-1] != width:
        return f"has hidden states {hidden.shape[-1]} wide, and its output layer takes {width}: no reward could be read"
    alone = torch.cat([logprobs(model, [sequence]) for sequence in sequences])
    for what, difference_of in LOOKS.items():
        difference = difference_of(model, sequences, alone)
        if not difference <= ROUNDING[model.dtype]:
            return f"{what}: log-probabilities differ by {difference:.1e} nats per token"
    return None


def drawn(model: PreTrainedModel) -> list[list[int]]:
    """Sequences of tokens of the first half of the vocabulary, always the same."""
    random = torch.Generator().manual_seed(0)
    size = model.get_input_embeddings().num_embeddings
    return [torch.randint(size // 2, (length,), generator=random).tolist() for length in LENGTHS]


def masked(model: PreTrainedModel, sequences: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Sequences as a left-padded batch, and its mask. The pads are a real token: only the mask tells them."""
    ids, mask = pad_left(sequences, sequences[0][0])
    return ids.to(model.device), mask.to(model.device)


def logprobs(model: PreTrainedModel, sequences: list[list[int]], num_response: int = NUM_RESPONSE) -> Tensor:
    """Log-probabilities of the last tokens of each, [B, R]."""
    return response_logprobs(model, *masked(model, sequences), num_response)[0]


def padding_counts(model: PreTrainedModel, sequences: list, alone: Tensor) -> float:
    return (logprobs(model, sequences) - alone).abs().mean().item()


def training_differs(model: PreTrainedModel, sequences: list, alone: Tensor) -> float:
    """In two forwards: what is random need not show in one."""
    with torch.random.fork_rng():
        model.train()
        differences = [(logprobs(model, sequences) - alone).abs().mean().item() for _ in range(2)]
    model.eval()
    return max(differences)


def decoding_differs(model: PreTrainedModel, sequences: list, alone: Tensor) -> float:
    """Between what is drawn token by token, with a cache and a row that leaves the batch, and one forward of it."""
    uniform = torch.linspace(0.05, 0.95, len(sequences) * NUM_RESPONSE, dtype=torch.float64).view(-1, NUM_RESPONSE)
    first = sample(model, sequences[-1:], uniform[-1:], 1.0, [], sequences[0][0]).ids[0, 0].item()  # ends its row
    drawn = sample(model, sequences, uniform, 1.0, [first], sequences[0][0])
    rows = list(zip(sequences, drawn.rows(), strict=True))
    scored = torch.cat([logprobs(model, [prompt + row], len(row))[0] for prompt, row in rows])
    return (scored - drawn.logprobs[drawn.mask]).abs().mean().item()


LOOKS: dict[str, Callable[[PreTrainedModel, list, Tensor], float]] = {
    "says something else of a text that has padding before it": padding_counts,
    "says something else in training, though its dropout is 0": training_differs,
    "draws tokens from another distribution than one forward gives them": decoding_differs,
}
