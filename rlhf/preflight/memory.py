"""What is in memory in each phase of a stage, and on the disk after it, before a weight is loaded.

Weights are counted on a model without data, passes are run on it (dryrun.py), the rest are the formulas here. All for
sequences as long as data.max_prompt_tokens + data.max_response_tokens allow.
Not in it: Python and its libraries (about 0.6 GB a process), a GPU's context, and what allocators keep for later.
"""

from dataclasses import dataclass
from functools import cached_property

import torch

from rlhf.config.schema import AdapterKind, Config
from rlhf.distributed import world_size
from rlhf.engines.deepspeed_config import BUCKET, LIVE
from rlhf.models.sharding import shares_weights, trained_sharding
from rlhf.preflight.dryrun import Skeleton, prefill

ADAM = 4  # bytes of a number in Adam's moments
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # per number: 4 bits, a byte per 64 of them, a float32 per 256 of those
HEAD_TILE = (4096, 32768)  # tokens and words of the vocabulary that TRL's fused head takes at once
HEAD_TENSORS = 8.25  # tensors of a tile's size, in float32, that it makes of one where there is no Triton


@dataclass(frozen=True)
class Item:
    """Something in memory. size: bytes; knob: what lowers it; varies: with the length of the sequences.

    on_host: in CPU memory, even where models live on a GPU. once: on rank 0 alone.
    """

    name: str
    size: float
    knob: str = ""
    varies: bool = False
    on_host: bool = False
    once: bool = False


@dataclass(frozen=True)
class Phase:
    """What is in memory together, on one rank, at the worst moment of a part of a stage."""

    name: str
    items: tuple[Item, ...]

    def device(self, share: float = 1.0) -> float:
        """Bytes where models live. share: of what varies."""
        return sum(item.size * (share if item.varies else 1) for item in self.items if not item.on_host)

    def host(self, share: float = 1.0, ranks: int = 1) -> float:
        """Bytes of all ranks in CPU memory where models live on GPUs."""
        return sum(
            item.size * (share if item.varies else 1) * (1 if item.once else ranks)
            for item in self.items
            if item.on_host
        )

    @property
    def largest(self) -> Item:
        return max(self.items, key=lambda item: item.size)


@dataclass(frozen=True)
class Split:
    """How ZeRO shares out a model that trains. Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054, section 5.

    stage 1 shares out Adam's moments and the float32 copy of the weights, 2 also the gradients, 3 also the weights.
    """

    stage: int = 0
    ranks: int = 1
    offload: bool = False

    def part(self, from_stage: int) -> int:
        """Between how many ranks something is shared out that is so from this stage on."""
        return self.ranks if self.stage >= from_stage else 1


@dataclass(frozen=True)
class Trained:
    """Weights that train: their number, and the bytes of one. Adam works in float32, on a copy of bfloat16 weights
    (rlhf/engines/adam.py); ZeRO makes a copy of any."""

    role: str
    count: int
    width: int
    split: Split

    @property
    def copy_width(self) -> int:
        return 4 if self.split.stage >= 1 or self.width < 4 else 0

    def state(self) -> list[Item]:
        """What stays from step to step."""
        split, adam_on_host = self.split, self.split.offload
        weights_on_host = split.offload and split.stage == 3
        weights, knob = self.count * self.width / split.part(3), "adapter, deepspeed"
        copies = self.count * self.copy_width / split.part(1)
        moments = 2 * self.count * ADAM / split.part(1)
        return [
            Item(f"{self.role} weights", weights, "model.dtype, adapter", on_host=weights_on_host),
            *([Item(f"{self.role} float32 copy", copies, knob, on_host=adam_on_host)] if copies else []),
            Item(f"{self.role} Adam moments", moments, knob, on_host=adam_on_host),
        ]

    def gradients(self) -> Item:
        """What is kept of the micro-batches so far, summed in float32."""
        away = self.split.offload and self.split.stage >= 2
        return Item(f"{self.role} gradients", self.count * 4 / self.split.part(2), "adapter, deepspeed", on_host=away)

    def bucket(self) -> list[Item]:
        """Gradients on their way between ranks."""
        return [Item("ZeRO bucket", min(self.count, BUCKET) * self.width)] if self.split.stage >= 1 else []

    def step(self, is_fused: bool) -> list[Item]:
        """What an optimizer step adds: under ZeRO its gradients as one float32 tensor, shared out; else, on a GPU, what
        Adam makes of a moment for all weights at once. is_fused: Adam is one kernel, and makes nothing."""
        if self.split.stage >= 1:
            size = self.count * 4 / self.split.ranks
            return [Item("gradients, flat", size, "deepspeed", on_host=self.split.offload)]
        return [Item("Adam's scratch", self.count * ADAM)] if on_gpu() and not is_fused else []

    def checkpoint(self) -> float:
        """Bytes on disk: float32 weights and moments."""
        return self.count * 3 * ADAM


def on_gpu() -> bool:
    return torch.cuda.is_available()


def split_of(cfg: Config) -> Split:
    """How the config shares out what trains."""
    options = trained_sharding(cfg)
    return Split(options.zero_stage, world_size(), options.offload)


class Sizes:
    """The sizes of a model and of its passes, in bytes. All ranks know the same."""

    def __init__(self, cfg: Config, config):
        self.cfg, self.split = cfg, split_of(cfg)
        self.is_zero3 = shares_weights(cfg)
        self.has_adapter = cfg.adapter.kind is not AdapterKind.none
        self.skeleton = Skeleton(config, cfg.model, cfg.adapter if self.has_adapter else None)
        self.text, self.width = self.skeleton.text, self.skeleton.dtype.itemsize
        self.num_prompt, self.num_response = cfg.data.max_prompt_tokens, cfg.data.max_response_tokens
        self.length = self.num_prompt + self.num_response

    @cached_property
    def count(self) -> int:
        """Weights of the language model; tied ones once."""
        return sum(parameter.numel() for parameter in self.skeleton.whole.parameters())

    @cached_property
    def scalar_count(self) -> int:
        """Weights of a scalar model: the same trunk, and a head with one row."""
        trunk = sum(parameter.numel() for parameter in self.skeleton.whole.base_model.parameters())
        return trunk + self.text.hidden_size

    def linears(self) -> list[int]:
        """Sizes of the layers that adapters stand on, and that 4 bits are made of."""
        model = self.skeleton.whole
        head = model.get_output_embeddings()
        return [m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]

    def base(self) -> list[Item]:
        """The frozen weights that adapters stand on; with qlora in 4 bits, and one layer at a time unpacked."""
        if self.cfg.adapter.kind is not AdapterKind.qlora:
            part = self.split.ranks if self.is_zero3 else 1
            return [Item("base weights", self.count * self.width / part, "model.dtype, adapter=qlora")]
        linears = self.linears()
        packed = sum(linears) * NF4_BYTES + (self.count - sum(linears)) * self.width
        return [Item("base weights, 4 bits", packed), Item("one layer unpacked", max(linears) * self.width)]

    def trained(self, role: str, is_scalar: bool = False) -> Trained:
        """A role that trains: all its weights, or an adapter in float32, as peft makes it."""
        if self.has_adapter:
            return Trained(role, self.skeleton.num_adapter + is_scalar * self.text.hidden_size, 4, self.split)
        return Trained(role, self.scalar_count if is_scalar else self.count, self.width, self.split)

    def frozen(self, role: str, is_scalar: bool = False, is_shared_out: bool = True) -> Item:
        """A role that does not train, as a whole model or an adapter."""
        if self.has_adapter:
            return Item(f"{role} adapter", self.skeleton.num_adapter * 4)
        count = self.scalar_count if is_scalar else self.count
        part = self.split.part(3) if is_shared_out else 1
        return Item(f"{role} weights", count * self.width / part, "adapter=lora")

    def own(self, size: int) -> int:
        """This rank's part of a batch."""
        return -(-size // self.split.ranks)

    def sampling(self, rows: int) -> list[Item]:
        """Sampling with a cache, for so many rows at once: all prompts in one forward, then token by token.

        A step makes one layer's keys and values anew, and of the logits their float32, softmax, sum and difference.
        """
        text = self.text
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        layer = 2 * rows * heads * head_width * self.length * self.width
        cache = layer * text.num_hidden_layers
        logits = 4 * rows * text.vocab_size * 4
        first = self.skeleton.peak(prefill(rows, self.num_prompt)).total
        knob = "rollout.batch_size"
        return [
            Item("cache", cache, knob, varies=True),
            Item("logits and one step", max(layer + logits, first - cache), knob, varies=True),
            *self.gathered(self.most_gathered(), "deepspeed.gather_share"),
        ]

    def most_gathered(self) -> int:
        """Weights that sampling may gather at once: rlhf.engines.zero.for_generation asks for free memory."""
        if not on_gpu():
            return self.count
        room = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        return int(self.cfg.deepspeed.gather_share * room / self.width)

    def gathered(self, most: int, knob: str = "deepspeed") -> list[Item]:
        """Weights that a pass has whole under ZeRO-3, most: of a model at once."""
        size = min(self.count, most) * self.width
        return [Item("weights, gathered", size, knob)] if self.is_zero3 else []

    def passed(self, name: str, tried, knob: str) -> list[Item]:
        """The activations and logits of a pass."""
        peak = self.skeleton.peak(tried)
        rest = Item(f"{name} activations", max(0, peak.total - peak.logits), f"{knob}, model.gradient_checkpointing",
                    varies=True)  # fmt: skip
        logits = [Item(f"{name} logits", peak.logits, knob, varies=True)] if peak.logits else []
        return [rest, *logits, *self.gathered(LIVE)]

    def head_tiles(self, rows: int) -> list[Item]:
        """TRL's fused head: tiles of logits, and float32 gradients of the hidden states and of the output weights."""
        tokens, words = min(rows * self.length, HEAD_TILE[0]), min(self.text.vocab_size, HEAD_TILE[1])
        tiles = tokens * HEAD_TILE[1] * self.width if on_gpu() else tokens * words * 4 * HEAD_TENSORS
        hidden = rows * self.length * self.text.hidden_size * 4
        weight = 0 if self.has_adapter else self.text.vocab_size * self.text.hidden_size * 4
        return [
            Item("head's tiles", tiles + hidden, "sft.micro_batch_size", varies=True),
            Item("head's gradient", weight),
        ]
