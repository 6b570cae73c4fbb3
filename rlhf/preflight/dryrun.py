"""What a forward and a backward pass hold in memory, found by running them on the meta device, where tensors have
shapes but no data.

The passes are the real ones (the library's layers, our losses), and every tensor is counted from its birth to its
death. So there are no formulas per architecture to go stale. For a Llama block the count comes to 10 d + 4 f numbers
per token that torch keeps for the backward pass (d wide, f in the feed-forward part): what Korthikanti et al. 2022,
https://arxiv.org/abs/2205.05198, section 4.1, count for GPT, with RMSNorm and SwiGLU for LayerNorm and GELU and without
dropout masks and attention scores, which a fused kernel does not keep.

Shapes: B sequences of T = P + R tokens.
"""

import copy
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode  # the only way to see each tensor that an operation makes
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv

from rlhf.models.adapters import lora_config
from rlhf.models.policies import response_logprobs

FEW, MORE = 1, 2  # layers that are run; what a further one adds is the same from there on


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that were made inside and are still there: now, and at the worst moment (peak).

    logits: the part of the peak that is as wide as the vocabulary. others: tensors made before, which do not count.
    """

    def __init__(self, vocab_size: int, others: list[Tensor]):
        super().__init__()
        self.vocab_size, self.now, self.now_logits, self.peak, self.logits = vocab_size, 0, 0, 0, 0
        self._known: dict[int, weakref.ref | None] = {other.untyped_storage()._cdata: None for other in others}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result) if not function.is_view else ():
            if isinstance(leaf, Tensor):
                self._note(leaf)
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        size_logits = size if tensor.dim() > 1 and tensor.shape[-1] == self.vocab_size else 0

        def forget(_) -> None:
            del self._known[key]
            self.now, self.now_logits = self.now - size, self.now_logits - size_logits

        self._known[key] = weakref.ref(storage, forget)
        self.now, self.now_logits = self.now + size, self.now_logits + size_logits
        if self.now > self.peak:
            self.peak, self.logits = self.now, self.now_logits


class FusedAttention(torch.autograd.Function):
    """Stands in for the fused kernel, which the meta device lacks: keeps query, key, value, mask, output and one number
    per row of scores. Dao et al. 2022, https://arxiv.org/abs/2205.14135."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        batch, heads, length, _ = query.shape
        output = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
        rows = query.new_empty(batch, heads, length, dtype=torch.float32)
        bias = None if mask is None else mask.to(query.dtype)  # a boolean mask is made an additive one
        ctx.save_for_backward(query, key, value, bias, output, rows)
        return output

    @staticmethod
    def backward(ctx, gradient: Tensor):
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def fused_attention(module, query, key, value, attention_mask, **options) -> tuple[Tensor, None]:
    """The stand-in as the library calls attention. query: [B, heads, T, width]; returns [B, T, heads, width]."""
    if hasattr(module, "num_key_value_groups"):
        key, value = (repeat_kv(x, module.num_key_value_groups) for x in (key, value))
    return FusedAttention.apply(query, key, value, attention_mask).transpose(1, 2).contiguous(), None


STAND_IN = "rlhf_dry_run"
AttentionInterface.register(STAND_IN, fused_attention)


@dataclass(frozen=True)
class Peak:
    """Bytes at the worst moment of a pass. total: with the logits; logits: those as wide as the vocabulary."""

    total: int
    logits: int


@dataclass(frozen=True)
class Pass:
    """One pass to be tried: run(model) -> a loss to go back from, or None."""

    run: Callable[[nn.Module], Tensor | None]
    keeps_gradients: bool = False  # of micro-batches before this one: then its own are only added to them


class Skeleton:
    """A causal language model without weights. config: of transformers; options: the config's `model` section.

    adapter: options of an adapter to train on it, or None.
    """

    def __init__(self, config, options, adapter=None):
        self.config, self.text, self.adapter = config, config.get_text_config(), adapter
        self.dtype, self.checkpoints = getattr(torch, options.dtype.value), options.gradient_checkpointing
        self.attention = "eager" if options.attention.value == "eager" else STAND_IN

    @cached_property
    def whole(self) -> PreTrainedModel:
        """All its layers, without an adapter."""
        return self._build(self.text.num_hidden_layers)

    @cached_property
    def num_adapter(self) -> int:
        """Numbers in one adapter."""
        model = _with_adapter(self._build(self.text.num_hidden_layers), self.adapter)
        return sum(parameter.numel() for name, parameter in model.named_parameters() if "lora_" in name)

    def peak(self, tried: Pass) -> Peak:
        """Of a pass, without the weights and without the gradients that are kept from micro-batches before it."""
        num_layers = self.text.num_hidden_layers
        if num_layers <= MORE:
            return self._peak(num_layers, tried)
        few, more = (self._peak(number, tried) for number in (FEW, MORE))
        per_layer = (more.total - few.total) / (MORE - FEW)
        return Peak(round(more.total + (num_layers - MORE) * per_layer), more.logits)

    def _peak(self, num_layers: int, tried: Pass) -> Peak:
        model = self._build(num_layers)
        if self.adapter is not None:
            model = _with_adapter(model, self.adapter)
        if self.checkpoints:  # the random state is the device's, and this one has none
            options = {"use_reentrant": False, "preserve_rng_state": False}
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        if tried.keeps_gradients:
            for parameter in model.parameters():
                parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        others = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]
        with LiveBytes(self.text.vocab_size, others) as live:
            loss = tried.run(model)
            if loss is not None:
                loss.backward()
        return Peak(live.peak, live.logits)

    def _build(self, num_layers: int) -> PreTrainedModel:
        config = copy.deepcopy(self.config)
        _cut(config.get_text_config(), num_layers)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, attn_implementation=self.attention, dtype=self.dtype)


def _cut(text_config, num_layers: int) -> None:
    """Leaves a config this many layers."""
    text_config.num_hidden_layers = num_layers
    for name in ("layer_types", "mlp_layer_types"):
        if getattr(text_config, name, None) is not None:
            setattr(text_config, name, getattr(text_config, name)[:num_layers])


def _with_adapter(model: PreTrainedModel, options) -> PreTrainedModel:
    with torch.device("meta"):
        get_peft_model(model, lora_config(options, model))
    return model


# ---- the passes of the stages


def sequences(batch: int, length: int) -> dict[str, Tensor]:
    """Inputs of [B, T] tokens. The mask is [B, 1, T, T]: the library would look for padding in one of [B, T]."""
    ids = torch.empty(batch, length, dtype=torch.long, device="meta")
    mask = torch.empty(batch, 1, length, length, dtype=torch.bool, device="meta")
    return {"input_ids": ids, "attention_mask": mask, "position_ids": ids.clone()}


def prefill(batch: int, num_prompt: int) -> Pass:
    """The first forward of sampling, which leaves a cache."""

    @torch.no_grad()
    def run(model) -> None:
        cache = DynamicCache(config=model.config)
        model.eval()(**sequences(batch, num_prompt), past_key_values=cache, use_cache=True, logits_to_keep=1)

    return Pass(run)


def logprobs(batch: int, length: int, num_response: int, trains: bool, keeps_gradients=False, entropy=False) -> Pass:
    """The policy's log-probabilities of the responses, and with `trains` the way back from them."""

    def run(model) -> Tensor | None:
        with torch.set_grad_enabled(trains):
            inputs = sequences(batch, length)
            policy = _Masked(model.train(trains), inputs["attention_mask"])
            mask = torch.empty(batch, length, dtype=torch.bool, device="meta")
            values, entropies = response_logprobs(policy, inputs["input_ids"], mask, num_response, 1.0, entropy)
            return (values + entropies if entropy else values).sum() if trains else None

    return Pass(run, keeps_gradients)


def scalars(batch: int, length: int, trains: bool, keeps_gradients: bool = False) -> Pass:
    """A scalar model's hidden states, and with `trains` the way back from them. Its head is too small to count."""

    def run(model) -> Tensor | None:
        with torch.set_grad_enabled(trains):
            trunk = model.train(trains).base_model
            hidden = trunk(**sequences(batch, length), use_cache=False).last_hidden_state
            return hidden.float().sum() if trains else None

    return Pass(run, keeps_gradients)


class _Masked:
    """A model that is always given this mask."""

    def __init__(self, model: nn.Module, mask: Tensor):
        self.model, self.mask = model, mask

    def __call__(self, attention_mask: Tensor, **inputs):
        return self.model(attention_mask=self.mask, **inputs)
