"""Policies: building, loading, and the one forward pass that scores them. Scalar models are in rlhf/models/scalars.py.

Shapes: B sequences of T = P + R tokens, prompt left-padded to P, response right-padded to R; V vocabulary.
"""

import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils.quantization_config import QuantizationConfigMixin

from rlhf.config.schema import DataConfig
from rlhf.errors import UserError
from rlhf.models.reading import Reading
from rlhf.ops import entropy, position_ids, token_logprobs
from rlhf.text.encoding import document_end
from rlhf.text.tokenizer import reason

RATE = re.compile(r"(dropout|pdrop|drop_rate)(_p|_prob|_rate|_ratio)?$")  # names of rates of dropout
NOISE = re.compile(r"(layerdrop|jitter_noise)$")  # of what drops whole layers, or shakes a router


def build_policy(scratch, tokenizer, dtype: torch.dtype, attention: str = "sdpa") -> PreTrainedModel:
    """A small Llama with random weights. scratch: sizes, as in conf/model/tiny.yaml."""
    config = scratch_config(
        scratch,
        len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
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
    how: Reading,
    revision: str | None = None,
    quantization: QuantizationConfigMixin | None = None,
) -> PreTrainedModel:
    """A causal language model from a hub id or folder, in evaluation mode, all dropout zero. Reads safetensors only.

    quantization: how weights are packed while they are read, straight where models live.
    """
    packed = {"quantization_config": quantization, "device_map": {"": device()}} if quantization else {}
    return load_model(AutoModelForCausalLM, path, how, revision, **packed)


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
    """Every dropout of the model, attention included, at this rate; an adapter's own dropout stays as it is.

    Rates lie in layers of their own, in what a module hands to a function, and in the config, where a forward may read
    them. What else is random in training (dropped layers, noise before a router) is off at any rate.
    """
    for path, module in model.named_modules():
        if isinstance(module, nn.Dropout) and "lora_dropout" not in path:
            module.p = rate
        for holder in (module, getattr(module, "config", None)):
            if isinstance(holder, nn.Module | PretrainedConfig):
                _set_rates(holder, rate)


def _set_rates(holder: nn.Module | PretrainedConfig, rate: float) -> None:
    for name, value in vars(holder).items():
        if isinstance(value, float) and RATE.search(name):
            setattr(holder, name, rate)
        elif isinstance(value, float) and NOISE.search(name):
            setattr(holder, name, 0.0)


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
    config = model.config.get_text_config()
    return getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)


def scaling_border(model: PreTrainedModel) -> tuple[str, int] | None:
    """The kind of a position scaling that changes with the length of a batch, and the tokens from which it does."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    for part in (rope, *(part for part in rope.values() if isinstance(part, dict))):  # some have one per kind of layer
        kind = part.get("rope_type") or ""
        if kind == "longrope":
            return kind, part["original_max_position_embeddings"]
        if "dynamic" in kind:
            return kind, config.max_position_embeddings
    return None


def require_context(model: PreTrainedModel, data: DataConfig) -> None:
    """Raises UserError when a prompt with its response can outgrow the model."""
    limit, budget = context_length(model), data.max_prompt_tokens + data.max_response_tokens
    kind, border = scaling_border(model) or ("", budget)
    if budget > border:
        raise UserError(
            f"data.max_prompt_tokens + data.max_response_tokens = {budget} is more than the {border} tokens from which "
            f"the model's positions are scaled otherwise ({kind}): a token would have another log-probability beside a "
            "longer sequence; lower them, or choose another model"
        )
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
    logits = output.logits[:, -num_response - 1 : -1].float() / temperature  # [B, R, V]; some keep all logits
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropies = entropy(logits)
    return token_logprobs(logits, ids[:, -num_response:]), entropies


def load_model(
    kind,
    path: str | Path,
    how: Reading,
    revision: str | None = None,
    fresh: str | None = None,
    **options,
) -> PreTrainedModel:
    """A model in evaluation mode, nothing in it random. kind: its class; fresh: what weights begin with that the files
    need not have. Raises UserError where it cannot be loaded whole."""
    _refuse_pickles(Path(path))
    try:
        _refuse_remote_code(path, revision, how.trust_remote_code)
        model, found = kind.from_pretrained(
            path,
            dtype=how.dtype,
            attn_implementation=how.attention,
            revision=revision,
            trust_remote_code=how.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise UserError(f"model.path={path}: cannot load it ({_reason(error, how.attention)})") from error
    _require_weights(path, [name for name in found["missing_keys"] if fresh is None or not name.startswith(fresh)])
    set_dropout(model, 0.0)
    if getattr(model.config, "output_router_logits", False):  # a loss of its own that no stage knows of
        model.config.output_router_logits = False
    return model.eval()


def read_config(path: str | Path, revision: str | None, trust_remote_code: bool) -> PretrainedConfig:
    """The config of a saved model. Raises UserError where there is none, or it would run code that nobody agreed to."""
    try:
        _refuse_remote_code(path, revision, trust_remote_code)
        return AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"model.path={path}: cannot load it ({reason(error)})") from error


def _reason(error: Exception, attention: str | None) -> str:
    if attention != "eager" and "does not support an attention implementation" in str(error):
        return f"this architecture has no attention of the kind model.attention={attention}; set model.attention=eager"
    return reason(error)


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
