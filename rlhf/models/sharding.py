"""Which ZeRO stage trains what, and where a model is put before DeepSpeed has it.

ZeRO-3 shares out weights. Where only an adapter trains it shares out the frozen trunk; the adapter's few weights stay
whole, and train under ZeRO-2.
"""

from dataclasses import replace

from torch import nn

from rlhf.config.schema import AdapterKind, Config, DeepspeedConfig
from rlhf.engines.engine import shard_for_inference
from rlhf.models.policies import device
from rlhf.models.trunk import Trunk


def shares_weights(cfg: Config) -> bool:
    return cfg.deepspeed.zero_stage == 3


def trained_sharding(cfg: Config) -> DeepspeedConfig:
    """How what trains is shared out: as the config says, or under ZeRO-2 where ZeRO-3 has shared out the trunk."""
    if cfg.adapter.kind is AdapterKind.none or not shares_weights(cfg):
        return cfg.deepspeed
    return replace(cfg.deepspeed, zero_stage=2)


def placed(cfg: Config, model: nn.Module) -> nn.Module:
    """A model that trains, where models live; under ZeRO-3 where it was: DeepSpeed takes each rank's share itself."""
    return model if shares_weights(cfg) else model.to(device())


def share_trunk(cfg: Config, trunk: Trunk, micro_batch_size: int) -> None:
    """Under ZeRO-3 each rank keeps its part of the trunk. Before adapters are attached: these are not frozen."""
    if shares_weights(cfg):
        shard_for_inference(trunk.model, cfg.deepspeed, micro_batch_size)
