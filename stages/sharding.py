"""What ZeRO-3 shares out where only an adapter trains: the frozen trunk; the adapter's few weights stay whole."""

from dataclasses import replace

from rlhf.config import AdapterKind, Config, DeepspeedConfig
from rlhf.engine import shard_for_inference
from rlhf.trunk import Trunk


def share_trunk(cfg: Config, trunk: Trunk, micro_batch_size: int) -> None:
    """Under ZeRO-3 each rank keeps its part of the trunk. Before adapters are attached: these are not frozen."""
    if cfg.deepspeed.zero_stage == 3:
        shard_for_inference(trunk.model, cfg.deepspeed, micro_batch_size)


def trained_sharding(cfg: Config) -> DeepspeedConfig:
    """How what trains is shared out: as the config says, or under ZeRO-2 where ZeRO-3 has shared out the trunk."""
    if cfg.adapter.kind is AdapterKind.none or cfg.deepspeed.zero_stage < 3:
        return cfg.deepspeed
    return replace(cfg.deepspeed, zero_stage=2)
