"""What the values of a config must fulfil, beyond their types: their bounds, and what spans several of them."""

import math
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from itertools import count
from keyword import iskeyword
from operator import attrgetter
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from rlhf.config.keys import all_keys, did_you_mean
from rlhf.config.schema import AdapterKind, Attention, Config, DeepspeedConfig, Dtype, Engine, RewardLoss
from rlhf.errors import UserError

# What a chat template is given anyway: the dialogue, and the tokenizer's own tokens.
OF_EVERY_TEMPLATE = ("messages", "add_generation_prompt", "bos_token", "eos_token", "pad_token", "unk_token")


def resolve(cfg: DictConfig | Config, world_size: int = 1) -> Config:
    """The config as plain dataclasses, after checking what spans several fields. Returns or raises; edits nothing."""
    if isinstance(cfg, DictConfig):
        _refuse_unknown_keys(cfg)
    config = cfg if isinstance(cfg, Config) else OmegaConf.to_object(cfg)
    for rule in (_check_run, _check_model, _check_adapter, _check_data, _check_sft, _check_reward, _check_ppo):
        rule(config)
    _check_collect(config, world_size)
    _check_deepspeed(config, world_size)
    return config


def _refuse_unknown_keys(node: Any, prefix: str = "") -> None:
    """Hydra lets `+key=value` add keys that no class has: nothing would read them."""
    if not OmegaConf.is_dict(node):
        return
    kind = OmegaConf.get_type(node)
    known = {field.name for field in fields(kind)} if is_dataclass(kind) else set(node)
    for name in node:
        if name not in known:
            near = did_you_mean(f"{prefix}{name}", all_keys(Config))
            raise UserError(
                f"config: no key '{prefix}{name}'; +{prefix}{name}=... adds nothing that a stage would read.{near}"
            )
        if not OmegaConf.is_missing(node, name):
            _refuse_unknown_keys(node[name], f"{prefix}{name}.")


def _require(holds: bool, key: str, value: Any, rule: str) -> None:
    if not holds:
        raise UserError(f"config: {key}={value} {rule}")


def _positive(section: Any, name: str, keys: str) -> None:
    for key in keys.split():
        _require(0 < getattr(section, key) < math.inf, f"{name}.{key}", getattr(section, key), "must be > 0 and finite")


def _not_negative(section: Any, name: str, keys: str) -> None:
    for key in keys.split():
        _require(0 <= getattr(section, key) < math.inf, f"{name}.{key}", getattr(section, key), "must be >= 0, finite")


def _check_run(config: Config) -> None:
    for key, seeds in (("seed", [config.seed]), ("bench.seeds", config.bench.seeds)):
        for seed in seeds:
            _require(0 <= seed < 2**32, key, seed, "must lie between 0 and 2**32 - 1")
    _require(config.run.dir.strip() != "", "run.dir", repr(config.run.dir), "must name a folder")
    for key in (
        "run.dir",
        "inputs.sft",
        "inputs.reward",
        "inputs.ppo",
        "sft.start_from",
        "ppo.start_from",
        "model.path",
        "collect.dir",
        "bench.workload",
    ):
        path = attrgetter(key)(config)
        rule = f"would be a folder called ~ here; write $HOME{str(path)[1:]}, or the whole path"
        _require(path is None or re.match("~(/|$)", path) is None, key, path, rule)
    _positive(config.rollout, "rollout", "temperature batch_size")
    _positive(config.evaluate, "evaluate", "num_prompts num_samples num_bootstrap")
    _not_negative(config.evaluate, "evaluate", "num_examples")
    _positive(config.tracking, "tracking", "log_steps num_samples")
    _positive(config.bench, "bench", "collect_items collect_rankings response_tokens iterations")
    _require(len(config.bench.seeds) > 0, "bench.seeds", config.bench.seeds, "must name at least one seed")


def _check_model(config: Config) -> None:
    model = config.model
    if model.path is not None and (named := re.fullmatch(r"([\w.-]+/[\w.-]+)@([\w./-]+)", model.path)):
        rule = f"has a revision in it; write model.path={named[1]} model.revision={named[2]}"
        _require(os.path.exists(model.path), "model.path", model.path, rule)
    for name in model.chat_template_kwargs:
        key, rule = f"model.chat_template_kwargs.{name}", "is no name of an option that a chat template could take"
        is_free = name.isidentifier() and not iskeyword(name) and name not in OF_EVERY_TEMPLATE
        _require(is_free, key, model.chat_template_kwargs[name], rule)
    if model.path is None:
        _require(
            model.scratch is not None, "model.path", "null", "needs model.scratch (choose model=tiny), or give a path"
        )
        scratch = model.scratch
        _positive(
            scratch, "model.scratch", "hidden_size intermediate_size num_layers num_heads vocab_size max_positions"
        )
        head_rule = f"must be a multiple of 2 * model.scratch.num_heads={2 * scratch.num_heads}"
        fits = scratch.hidden_size % (2 * scratch.num_heads) == 0
        _require(fits, "model.scratch.hidden_size", scratch.hidden_size, head_rule)
        budget = config.data.max_prompt_tokens + config.data.max_response_tokens
        rule = f"must hold data.max_prompt_tokens + data.max_response_tokens = {budget}"
        _require(scratch.max_positions >= budget, "model.scratch.max_positions", scratch.max_positions, rule)
        _require(
            scratch.vocab_size >= 300,
            "model.scratch.vocab_size",
            scratch.vocab_size,
            "must be >= 300 (256 bytes + control tokens)",
        )
        rule = "is for a model that is loaded from model.path; a model from scratch brings its own"
        _require(model.chat_template is None, "model.chat_template", model.chat_template, rule)
        options = model.chat_template_kwargs
        _require(not options, "model.chat_template_kwargs", options, rule)


def _check_adapter(config: Config) -> None:
    adapter, kind = config.adapter, config.adapter.kind
    _positive(adapter, "adapter", "rank alpha")
    _not_negative(adapter, "adapter", "dropout")
    _require(adapter.dropout < 1, "adapter.dropout", adapter.dropout, "must be < 1")
    rule = "must be all-linear, or names of linear layers"
    _require(adapter.targets.strip() != "", "adapter.targets", repr(adapter.targets), rule)
    if kind is AdapterKind.qlora:
        rule = "was never verified with 4-bit weights on a GPU; use deepspeed=zero2: each rank holds them whole"
        _require(config.deepspeed.zero_stage < 3, "deepspeed.zero_stage", config.deepspeed.zero_stage, rule)


def _check_data(config: Config) -> None:
    data = config.data
    _positive(data, "data", "max_prompt_tokens max_response_tokens")
    _not_negative(data, "data", "valid_share test_share")
    shares = data.valid_share + data.test_share
    _require(
        shares < 1, "data.valid_share + data.test_share", shares, "must leave something to train on: use less than 1"
    )


def _check_sft(config: Config) -> None:
    sft = config.sft
    _positive(sft, "sft", "num_epochs batch_size micro_batch_size learning_rate max_grad_norm eval_steps patience")
    _not_negative(sft, "sft", "weight_decay dropout warmup_share rehearsal_share")
    _require(sft.dropout < 1, "sft.dropout", sft.dropout, "must be < 1")
    _require(sft.rehearsal_share < 1, "sft.rehearsal_share", sft.rehearsal_share, "must be < 1")
    _require(sft.warmup_share < 1, "sft.warmup_share", sft.warmup_share, "must be < 1: it is a share of the steps")
    _divides(sft.micro_batch_size, sft.batch_size, "sft.micro_batch_size", "sft.batch_size")
    if sft.rehearsal_share > 0:
        rule = "replays the data of an earlier SFT artifact: name it in sft.start_from"
        _require(sft.start_from is not None, "sft.rehearsal_share", sft.rehearsal_share, rule)
    if sft.packing:
        rule = "keeps examples apart only with model.attention=flash_attention_2; set that or sft.packing=false"
        _require(config.model.attention is Attention.flash_attention_2, "sft.packing", "true", rule)


def _check_reward(config: Config) -> None:
    reward = config.reward
    keys = "num_epochs batch_size micro_batch_size learning_rate max_grad_norm eval_steps patience norm_samples"
    _positive(reward, "reward", keys)
    _not_negative(reward, "reward", "label_smoothing margin center_coef l2_coef weight_decay warmup_share")
    share = reward.warmup_share
    _require(share < 1, "reward.warmup_share", share, "must be < 1: it is a share of the steps")
    _require(reward.label_smoothing < 0.5, "reward.label_smoothing", reward.label_smoothing, "must be < 0.5")
    _require(
        reward.norm_samples >= 2,
        "reward.norm_samples",
        reward.norm_samples,
        "must be >= 2: it gives a standard deviation",
    )
    _divides(reward.micro_batch_size, reward.batch_size, "reward.micro_batch_size", "reward.batch_size")
    for key in ("label_smoothing", "margin"):
        rule = f"acts with reward.loss=bt_pairs only, and reward.loss is {reward.loss.value}; set it to 0"
        acts = reward.loss is RewardLoss.bt_pairs or getattr(reward, key) == 0
        _require(acts, f"reward.{key}", getattr(reward, key), rule)


def _check_ppo(config: Config) -> None:
    ppo = config.ppo
    _positive(ppo, "ppo", "num_steps batch_size minibatch_size micro_batch_size num_epochs learning_rate")
    _positive(
        ppo, "ppo", "critic_learning_rate adam_eps max_grad_norm clip_range value_clip_range value_coef kl_target"
    )
    _positive(ppo, "ppo", "kl_horizon eval_steps eval_prompts kl_budget save_steps keep_checkpoints")
    _positive(ppo, "ppo", "responses_per_prompt ptx_batch_size")
    _not_negative(ppo, "ppo", "critic_warmup_steps entropy_coef kl_coef missing_eos_penalty ptx_coef reward_retries")
    for key in ("gamma", "lam"):
        _require(0 <= getattr(ppo, key) <= 1, f"ppo.{key}", getattr(ppo, key), "must lie between 0 and 1")
    _require(ppo.clip_range < 1, "ppo.clip_range", ppo.clip_range, "must be < 1: a ratio cannot be negative")
    _require(len(ppo.rewards) > 0, "ppo.rewards", ppo.rewards, "must name at least one reward")
    for i, term in enumerate(ppo.rewards):
        _require(term.source.strip() != "", f"ppo.rewards[{i}].source", repr(term.source), "must name a reward")
        for key in ("weight", "scale"):
            value = getattr(term, key)
            _require(math.isfinite(value), f"ppo.rewards[{i}].{key}", value, "must be a finite number")
        rule = "must be > 0 and finite, or null"
        _require(term.clip is None or 0 < term.clip < math.inf, f"ppo.rewards[{i}].clip", term.clip, rule)
    _require(ppo.dual_clip is None or ppo.dual_clip > 1, "ppo.dual_clip", ppo.dual_clip, "must be > 1, or null")
    timeout, rule = ppo.reward_timeout, "must be > 0 and finite, or null"
    _require(timeout is None or 0 < timeout < math.inf, "ppo.reward_timeout", timeout, rule)
    for key in ("clip_range_high", "target_kl", "score_clip"):
        value = getattr(ppo, key)
        _require(value is None or value > 0, f"ppo.{key}", value, "must be > 0, or null")
    rule = f"is not below ppo.num_steps={ppo.num_steps}: the policy would never learn"
    _require(ppo.critic_warmup_steps < ppo.num_steps, "ppo.critic_warmup_steps", ppo.critic_warmup_steps, rule)
    rule = "must lie between 0 and 1, or be null"
    _require(ppo.ema_decay is None or 0 < ppo.ema_decay < 1, "ppo.ema_decay", ppo.ema_decay, rule)
    rule = "mixes in demonstrations, and data.demonstrations is not set; name them, or use ppo.ptx_coef=0"
    has_demonstrations = config.data.demonstrations not in (None, MISSING)
    _require(ppo.ptx_coef == 0 or has_demonstrations, "ppo.ptx_coef", ppo.ptx_coef, rule)
    _divides(ppo.responses_per_prompt, ppo.batch_size, "ppo.responses_per_prompt", "ppo.batch_size")
    _divides(ppo.minibatch_size, ppo.batch_size, "ppo.minibatch_size", "ppo.batch_size")
    _divides(ppo.micro_batch_size, ppo.minibatch_size, "ppo.micro_batch_size", "ppo.minibatch_size")


def _check_collect(config: Config, world_size: int) -> None:
    collect = config.collect
    _positive(collect, "collect", "num_prompts min_rankings poll_seconds")
    _require(collect.dir.strip() != "", "collect.dir", repr(collect.dir), "must name a folder")
    _require(2 <= collect.num_responses <= 9, "collect.num_responses", collect.num_responses, "must be 2 to 9 answers")
    _require(1 <= collect.port <= 65535, "collect.port", collect.port, "must be a port, 1 to 65535")
    if collect.wait:
        rule = (
            f"waits in one process, and this run has {world_size}: run python -m stages.pipeline collect=wait alone, "
        )
        rule += "until the rankings are in, and the launcher with data.rankings=<the version that it names> then"
        _require(world_size == 1, "collect.wait", "true", rule)


def _check_deepspeed(config: Config, world_size: int) -> None:
    options = config.deepspeed
    _require(options.zero_stage in (0, 1, 2, 3), "deepspeed.zero_stage", options.zero_stage, "must be 0, 1, 2 or 3")
    _require(0 < options.gather_share <= 1, "deepspeed.gather_share", options.gather_share, "must lie in (0, 1]")
    if options.engine is Engine.torch:
        rule = f"works in one process, and this run has {world_size}; choose deepspeed=zero2, or start one process"
        _require(world_size == 1, "deepspeed.engine", "torch", rule)
        rule = "acts with deepspeed.engine=deepspeed; choose a file of conf/deepspeed, e.g. deepspeed=zero3"
        _require(options.zero_stage == 0, "deepspeed.zero_stage", options.zero_stage, rule)
        _require(not options.offload, "deepspeed.offload", "true", rule)
        return
    if options.zero_stage == 0:
        rule = "keeps no float32 copy of bfloat16 weights: use zero_stage=1"
        _require(config.model.dtype is Dtype.float32, "deepspeed.zero_stage", 0, rule)
    if options.offload:
        _check_offload(options)


def check_split(config: Config, keys: Iterable[str], world_size: int) -> None:
    """Raises UserError unless the ranks can share out each batch evenly, in equally many forwards.

    keys: of the sizes of batches, e.g. "sft.batch_size"; a forward takes the micro_batch_size of the same section.
    """
    if config.deepspeed.engine is Engine.torch:
        return  # one process makes a last forward that is smaller
    for key in keys:
        section = key.partition(".")[0]
        _splits(attrgetter(key)(config), getattr(config, section).micro_batch_size, world_size, key, section)


def _check_offload(options: DeepspeedConfig) -> None:
    rule = "needs something to keep in CPU memory: use it with deepspeed.zero_stage=1, 2 or 3"
    _require(options.zero_stage > 0, "deepspeed.offload", "true", rule)
    missing = [name for name in ("c++", "ninja") if shutil.which(name) is None]
    rule = f"compiles DeepSpeed's Adam for the CPU, and there is no {' or '.join(missing)}: install it, or use zero3"
    _require(not missing, "deepspeed.offload", "true", rule)


def _splits(size: int, micro: int, world_size: int, key: str, section: str) -> None:
    def fits(size: int) -> bool:
        return size >= world_size and size % (world_size * min(micro, size // world_size)) == 0

    if not fits(size):
        lower = next((f"{less} or " for less in range(size - 1, 0, -1) if fits(less)), "")
        upper = next(more for more in count(size + 1) if fits(more))
        raise UserError(
            f"config: {key}={size} cannot be split over {world_size} ranks in forwards of "
            f"{section}.micro_batch_size={micro}; use {key}={lower}{upper}, or another micro_batch_size"
        )


def _divides(small: int, large: int, small_key: str, large_key: str) -> None:
    if large % small:
        lower, upper = large // small * small, (large // small + 1) * small
        fits = f"{large_key}={lower} or {upper}" if lower else f"{small_key}={large}, or {large_key}={upper}"
        raise UserError(f"config: {large_key}={large} must be a multiple of {small_key}={small}; use {fits}")
