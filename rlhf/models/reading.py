"""How the files of models are read."""

from dataclasses import dataclass

import torch
from transformers.utils import is_flash_attn_2_available

from rlhf.config.schema import Attention, Config


@dataclass(frozen=True)
class Reading:
    """In which precision, with which attention (None: what the library would choose), whether to run their own code."""

    dtype: torch.dtype
    attention: str | None = None
    trust_remote_code: bool = False

    @classmethod
    def of_config(cls, cfg: Config) -> "Reading":
        """What the config's `model` section says of it."""
        return cls(getattr(torch, cfg.model.dtype.value), cfg.model.attention.value, cfg.model.trust_remote_code)

    @classmethod
    def of_artifact(cls, manifest: dict, trust_remote_code: bool = False) -> "Reading":
        """How the model of an artifact was read when it trained; where flash attention is not to be had, sdpa does the
        same."""
        config = manifest["config"]
        attention = config["model.attention"]
        if attention == Attention.flash_attention_2.value and not is_flash_attn_2_available():
            attention = Attention.sdpa.value
        return cls(getattr(torch, config["model.dtype"]), attention, trust_remote_code)
