"""What DeepSpeed is told: every value that we know, never "auto", nothing left to a default that acts."""

import torch

BUCKET = 50_000_000  # elements that ZeRO reduces or gathers at once: 200 MB in float32
LIVE = 1_000_000_000  # elements that ZeRO-3 may keep gathered for their next use
PERSISTENT = 10_000  # elements up to which ZeRO-3 keeps a weight whole on every rank, such as a norm's


def deepspeed_config(
    options, micro_batch_size: int, accumulation: int, max_grad_norm: float, dtype: torch.dtype
) -> dict:
    """The configuration of one engine. options: the `deepspeed` section of the config.

    micro_batch_size: examples of one rank's forward; accumulation: forwards per optimizer step; dtype: the weights'.
    """
    return {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": max_grad_norm,  # DeepSpeed clips at 1.0 where this is not said
        "zero_optimization": _zero(options),
        **_precision(dtype),
        "zero_allow_untested_optimizer": True,  # torch's AdamW under any subclass; theirs would be compiled first
        "steps_per_print": 10**12,
        "wall_clock_breakdown": False,
    }


def _zero(options) -> dict:
    zero = {
        "stage": options.zero_stage,
        "overlap_comm": False,  # one order of sums, and of collectives, in every run
        "contiguous_gradients": True,
        "reduce_bucket_size": BUCKET,
        "allgather_bucket_size": BUCKET,
    }
    if options.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    if options.zero_stage == 3:
        zero |= {
            "stage3_prefetch_bucket_size": BUCKET,
            "stage3_param_persistence_threshold": PERSISTENT,
            "stage3_max_live_parameters": LIVE,
            "stage3_max_reuse_distance": LIVE,
            "stage3_gather_16bit_weights_on_model_save": True,  # or what is saved has no weights in it
        }
        if options.offload:
            zero["offload_param"] = {"device": "cpu", "pin_memory": False}
    return zero


def _precision(dtype: torch.dtype) -> dict:
    """With bfloat16 weights DeepSpeed keeps a float32 copy that Adam updates, and sums gradients in float32."""
    if dtype is not torch.bfloat16:
        return {"bf16": {"enabled": False}}
    return {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
