"""Policies and scalar models: building, loading, and the one forward pass that each is used for.

Shapes: B sequences of T = P + R tokens, prompt left-padded to P, response right-padded to R; V vocabulary.
"""

import math
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.utils.quantization_config import QuantizationConfigMixin

from rlhf.encoding import document_end
from rlhf.errors import UserError
from rlhf.ops import entropy, position_ids, token_logprobs
from rlhf.tokenizer import reason


def build_policy(scratch, tokenizer, dtype: torch.dtype, attention: str = "sdpa") -> PreTrainedModel:
    """A small Llama with random weights. scratch: sizes, as in conf/model/tiny.yaml."""
    tokens = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    config = scratch_config(scratch, len(tokenizer), **tokens)
    return LlamaForCausalLM._from_config(config, attn_implementation=attention).to(dtype)


def scratch_config(scratch, vocab_size: int, **tokens) -> LlamaConfig:
    """The architecture of a model from scratch. tokens: ids of its control tokens."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=scratch.hidden_size,
        intermediate_size=scratch.intermediate_size,
        num_hidden_layers=scratch.num_layers,
        num_attention_heads=scratch.num_heads,
        num_key_value_heads=scratch.num_heads,
        max_position_embeddings=scratch.max_positions,
        tie_word_embeddings=False,  # a tied small model learns to compare tokens of prompt and answer much later
        **tokens,
    )


def load_policy(
    path: str | Path,
    dtype: torch.dtype,
    attention: str = "sdpa",
    revision: str | None = None,
    trust_remote_code: bool = False,
    quantization: QuantizationConfigMixin | None = None,
) -> PreTrainedModel:
    """A causal language model from a hub id or folder, in evaluation mode, all dropout zero. Reads safetensors only.

    quantization: how weights are packed while they are read, straight where models live.
    """
    packed = {"quantization_config": quantization, "device_map": {"": device()}} if quantization else {}
    return _load(AutoModelForCausalLM, path, dtype, attention, revision, trust_remote_code, **packed)


def fit_embeddings(model: PreTrainedModel, tokenizer) -> None:
    """Grows the embeddings when the tokenizer has more tokens (a new pad token); never shrinks a padded vocabulary.

    A new row is the mean of the others, so that an adapter finds the same base each time it is loaded.
    """
    size = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > size:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)  # the library's means are drawn at random
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight.data[size:] = layer.weight.data[:size].float().mean(0)
            if getattr(layer, "bias", None) is not None:
                layer.bias.data[size:] = layer.bias.data[:size].float().mean()
    model.config.pad_token_id = tokenizer.pad_token_id


def set_dropout(model: nn.Module, rate: float) -> None:
    """Every dropout of the model, attention included, at this rate; an adapter's own dropout stays as it is."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Dropout) and "lora_dropout" not in path:
            module.p = rate
        for name, value in vars(module).items():
            if name.endswith("dropout") and isinstance(value, float):  # rates that a module hands to a function
                setattr(module, name, rate)


def enable_gradient_checkpointing(model: PreTrainedModel) -> None:
    """Activations are recomputed in the backward pass (in training mode only, so rollouts keep their cache)."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def device() -> torch.device:
    """Where models live: this rank's GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def stop_ids(model: PreTrainedModel, tokenizer) -> list[int]:
    """All token ids that end a response: chat models have several, and what ends a plain text ends a response too."""
    own = model.generation_config.eos_token_id if model.generation_config is not None else None
    own = own if isinstance(own, list) else [own]
    return sorted({tokenizer.eos_token_id, document_end(tokenizer), *(i for i in own if i is not None)})


def context_length(model: PreTrainedModel) -> int | None:
    """Most tokens the model's positions reach, or None where its config does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def require_context(model: PreTrainedModel, data) -> None:
    """Raises UserError when a prompt with its response can outgrow the model. data: that section of the config."""
    limit, budget = context_length(model), data.max_prompt_tokens + data.max_response_tokens
    if limit is not None and budget > limit:
        raise UserError(
            f"data.max_prompt_tokens + data.max_response_tokens = {budget} is more than the {limit} tokens that the "
            "model's positions reach; lower them, or choose another model"
        )


def response_logprobs(
    policy: nn.Module,
    ids: Tensor,
    mask: Tensor,
    num_response: int,
    temperature: float = 1.0,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the last num_response tokens, and the entropy at each: both [B, R] in nats, float32.

    ids, mask: [B, T]. Logits are made for response positions only. The temperature of sampling divides them, or the
    scored distribution would not be the sampled one.
    """
    output = policy(
        input_ids=ids,
        attention_mask=mask.long(),
        position_ids=position_ids(mask),
        logits_to_keep=num_response + 1,
        use_cache=False,
    )
    logits = output.logits[:, :-1].float() / temperature  # [B, R, V]
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropies = entropy(logits)
    return token_logprobs(logits, ids[:, -num_response:]), entropies


class Scalar(nn.Module, ABC):
    """One number per token: reward models read it at the last token, critics at every token.

    mean, std: what raw scores are normalised by, (raw - mean) / std. A subclass says what a raw score is, and where
    the model lives (`device`).
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0):
        super().__init__()
        self.mean, self.std = mean, std

    @abstractmethod
    def raw(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Raw scores in float32. ids, mask: [B, T]; returns [B, T]."""

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Values in float32. ids, mask: [B, T]; returns [B, T], meaningful where mask is true."""
        return (self.raw(ids, mask) - self.mean) / self.std

    def scores(self, ids: Tensor, mask: Tensor) -> Tensor:
        """One score per right-padded sequence, read at its last real token. ids, mask: [B, T]; returns [B]."""
        last = mask.sum(-1, keepdim=True) - 1
        return self(ids, mask).gather(-1, last).squeeze(-1)


class ScalarModel(Scalar):
    """A whole model of its own. model: a Hugging Face sequence classifier with one label: its folder loads anywhere."""

    def __init__(self, model: PreTrainedModel, mean: float = 0.0, std: float = 1.0):
        super().__init__(mean, std)
        self.model = model

    @property
    def device(self) -> torch.device:
        return self.model.device

    def raw(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model.score(hidden_states(self.model, ids, mask)).squeeze(-1).float()


def hidden_states(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """What the trunk of a model makes of each token. ids, mask: [B, T]; returns [B, T, hidden size]."""
    trunk = model.base_model
    attended = {"attention_mask": mask.long(), "position_ids": position_ids(mask)}
    return trunk(input_ids=ids, **attended, use_cache=False).last_hidden_state


def set_head(head: nn.Linear, is_zero: bool) -> None:
    """A fresh scalar head: zero, or normal with standard deviation 1 / sqrt(d + 1) for d hidden units.

    Stiennon et al. 2020, https://arxiv.org/abs/2009.01325, appendix B.1.
    """
    with torch.no_grad():
        head.weight.normal_(0.0, 0.0 if is_zero else 1 / math.sqrt(head.weight.shape[-1] + 1))


def response_values(critic: nn.Module, ids: Tensor, mask: Tensor, num_response: int) -> Tensor:
    """V_t of each response token: what the critic says at the position before it. ids, mask: [B, T]; returns [B, R]."""
    return critic(ids, mask)[:, -num_response - 1 : -1]


def scalar_model_from_policy(
    path: str | Path, dtype: torch.dtype, attention: str, zero_head: bool, trust_remote_code: bool = False
) -> ScalarModel:
    """A scalar model with a fresh head on the trunk of a saved policy."""
    kind = AutoModelForSequenceClassification
    model = _load(kind, path, dtype, attention, None, trust_remote_code, num_labels=1)
    set_head(model.score, zero_head)
    return ScalarModel(model)


def load_scalar_model(
    path: str | Path,
    dtype: torch.dtype,
    attention: str = "sdpa",
    mean: float = 0.0,
    std: float = 1.0,
    trust_remote_code: bool = False,
) -> ScalarModel:
    """A scalar model that was saved with its head."""
    kind = AutoModelForSequenceClassification
    return ScalarModel(_load(kind, path, dtype, attention, None, trust_remote_code), mean, std)


def _load(kind, path, dtype, attention, revision, trust_remote_code, **options) -> PreTrainedModel:
    _refuse_pickles(Path(path))
    try:
        _refuse_remote_code(path, revision, trust_remote_code)
        model, found = kind.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation=attention,
            revision=revision,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise UserError(f"model.path={path}: cannot load it ({reason(error)})") from error
    fresh = ("score.",) if "num_labels" in options else ()  # a head that the folder need not have
    _require_weights(path, [name for name in found["missing_keys"] if not name.startswith(fresh)])
    set_dropout(model, 0.0)
    return model.eval()


def _require_weights(path, missing: list[str]) -> None:
    """Raises where the library would have filled in random weights."""
    if missing:
        raise UserError(
            f"model.path={path}: its files lack {len(missing)} of the model's weights (e.g. {min(missing)}); "
            "they are incomplete, or its config.json names another architecture"
        )


def _refuse_pickles(folder: Path) -> None:
    pickles = [path.name for path in sorted(folder.glob("pytorch_model*.bin"))]
    if pickles and not any(folder.glob("*.safetensors")):
        raise UserError(
            f"model.path={folder} has only pickled weights ({pickles[0]}), which can run code when they are read. "
            "Convert them to safetensors"
        )


def _refuse_remote_code(path, revision: str | None, trusted: bool) -> None:
    """Raises before any weight is read when the model brings Python code of its own and nobody agreed to run it."""
    if trusted:
        return
    config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    if getattr(config, "auto_map", None):
        raise UserError(
            f"model.path={path} wants to run its own code ({', '.join(map(str, config.auto_map.values()))}). "
            "Read it, then set model.trust_remote_code=true"
        )
