"""resolve: what no run can be is refused by key, value and rule; what it can be comes back as it was."""

import copy
import dataclasses
import math
from functools import cache, reduce
from types import UnionType

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from rlhf.config.checks import check_split, resolve
from rlhf.config.schema import Attention, Config, RewardTerm
from rlhf.errors import UserError

MAY_BE_INFINITE = {"ppo.clip_range_high", "ppo.dual_clip", "ppo.target_kl", "ppo.score_clip"}  # all the same as null


def composed(*overrides):
    with initialize_config_module("conf", version_base="1.3"):
        return compose("config", overrides=list(overrides))


@cache
def default_config():
    return resolve(composed())


def changed(name, value):
    """The default config with one value changed, of the field with this dotted name."""
    config = copy.deepcopy(default_config())
    *sections, field = name.split(".")
    setattr(reduce(getattr, sections, config), field, value)
    return config


def numbers(kind=Config, prefix=""):
    """(dotted name, int or float) of each number in the config."""
    for field in dataclasses.fields(kind):
        options = field.type.__args__ if isinstance(field.type, UnionType) else (field.type,)
        if dataclasses.is_dataclass(options[0]):
            yield from numbers(options[0], f"{prefix}{field.name}.")
        elif options[0] in (int, float):
            yield f"{prefix}{field.name}", options[0]


NUMBERS = dict(numbers())
FLOATS = [name for name, kind in NUMBERS.items() if kind is float]


def test_resolve_gives_the_same_values_as_dataclasses_and_changes_nothing():
    cfg = composed("ppo.rewards=[{source: reward}, {source: 'a:b', weight: 0.5}]")
    before = copy.deepcopy(cfg)
    config = resolve(cfg)
    assert isinstance(config, Config) and cfg == before
    assert config.ppo.rewards == [RewardTerm("reward", 1.0), RewardTerm("a:b", 0.5)]
    assert OmegaConf.structured(config) == OmegaConf.structured(resolve(config))


def test_the_config_has_numbers_to_test():
    assert {"seed", "sft.learning_rate", "ppo.clip_range_high", "model.scratch.num_layers"} <= set(NUMBERS)
    assert len(NUMBERS) > 70


@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_may_be_negative(name):
    with pytest.raises(UserError, match=rf"^config: {name}=-1(\.0)? must "):
        resolve(changed(name, NUMBERS[name](-1)))


@pytest.mark.parametrize("name", FLOATS)
def test_no_number_may_be_nan(name):
    with pytest.raises(UserError, match=rf"^config: {name}=nan must "):
        resolve(changed(name, math.nan))


@pytest.mark.parametrize("name", [name for name in FLOATS if name not in MAY_BE_INFINITE])
def test_no_number_may_be_infinite(name):
    with pytest.raises(UserError, match=rf"^config: {name}=inf must "):
        resolve(changed(name, math.inf))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=4294967296"], "seed=4294967296 must lie between 0 and 2**32 - 1"),
        (["bench.seeds=[]"], "bench.seeds=[] must name at least one seed"),
        (["run.dir=' '"], "run.dir=' ' must name a folder"),
        (["model.scratch=null"], "model.path=null needs model.scratch (choose model=tiny), or give a path"),
        (
            ["model.scratch.hidden_size=100"],
            "model.scratch.hidden_size=100 must be a multiple of 2 * model.scratch.num_heads=8",
        ),
        (["model.scratch.vocab_size=299"], "model.scratch.vocab_size=299 must be >= 300 (256 bytes + control tokens)"),
        (["model.chat_template=chat.jinja"], "model.chat_template=chat.jinja is for a model that is loaded"),
        (
            ["data.valid_share=0.5", "data.test_share=0.5"],
            "data.valid_share + data.test_share=1.0 must leave something to train",
        ),
        (
            ["data.max_prompt_tokens=10", "data.max_response_tokens=20", "model.scratch.max_positions=29"],
            "model.scratch.max_positions=29 must hold data.max_prompt_tokens + data.max_response_tokens = 30",
        ),
        (["sft.dropout=1"], "sft.dropout=1.0 must be < 1"),
        (["sft.warmup_share=1"], "sft.warmup_share=1.0 must be < 1: it is a share of the steps"),
        (["reward.warmup_share=5"], "reward.warmup_share=5.0 must be < 1: it is a share of the steps"),
        (
            ["sft.rehearsal_share=0.1"],
            "sft.rehearsal_share=0.1 replays the data of an earlier SFT artifact: name it in",
        ),
        (
            ["sft.batch_size=10", "sft.micro_batch_size=4"],
            "sft.batch_size=10 must be a multiple of sft.micro_batch_size=4; use sft.batch_size=8 or 12",
        ),
        (
            ["sft.batch_size=8", "sft.micro_batch_size=32"],
            "sft.batch_size=8 must be a multiple of sft.micro_batch_size=32; use sft.micro_batch_size=8, or "
            "sft.batch_size=32",
        ),
        (["sft.packing=true"], "sft.packing=true keeps examples apart only with model.attention=flash_attention_2"),
        (
            ["reward.batch_size=3", "reward.micro_batch_size=2"],
            "reward.batch_size=3 must be a multiple of reward.micro_batch_size=2",
        ),
        (["reward.norm_samples=1"], "reward.norm_samples=1 must be >= 2: it gives a standard deviation"),
        (["reward.label_smoothing=0.5"], "reward.label_smoothing=0.5 must be < 0.5"),
        (
            ["reward.loss=davidson", "reward.label_smoothing=0.1"],
            "reward.label_smoothing=0.1 acts with reward.loss=bt_pairs only, and reward.loss is davidson; set it to 0",
        ),
        (["reward.loss=plackett_luce", "reward.margin=1"], "reward.margin=1.0 acts with reward.loss=bt_pairs only"),
        (["ppo.gamma=1.1"], "ppo.gamma=1.1 must lie between 0 and 1"),
        (["ppo.clip_range=1"], "ppo.clip_range=1.0 must be < 1: a ratio cannot be negative"),
        (["ppo.dual_clip=1"], "ppo.dual_clip=1.0 must be > 1, or null"),
        (["ppo.score_clip=0"], "ppo.score_clip=0.0 must be > 0, or null"),
        (["ppo.rewards=[]"], "ppo.rewards=[] must name at least one reward"),
        (["ppo.rewards=[{source: reward, weight: nan}]"], "ppo.rewards[0].weight=nan must be a finite number"),
        (["ppo.rewards=[{source: ''}]"], "ppo.rewards[0].source='' must name a reward"),
        (["ppo.rewards=[{source: 'a:b', scale: nan}]"], "ppo.rewards[0].scale=nan must be a finite number"),
        (["ppo.rewards=[{source: 'a:b', clip: 0}]"], "ppo.rewards[0].clip=0.0 must be > 0 and finite, or null"),
        (
            ["ppo.num_steps=5", "ppo.critic_warmup_steps=5"],
            "ppo.critic_warmup_steps=5 is not below ppo.num_steps=5: the policy would never learn",
        ),
        (
            ["ppo.batch_size=8", "ppo.minibatch_size=3", "ppo.micro_batch_size=3"],
            "ppo.batch_size=8 must be a multiple of ppo.minibatch_size=3; use ppo.batch_size=6 or 9",
        ),
        (
            ["ppo.batch_size=8", "ppo.minibatch_size=8", "ppo.micro_batch_size=16"],
            "ppo.minibatch_size=8 must be a multiple of ppo.micro_batch_size=16; use ppo.micro_batch_size=8, or "
            "ppo.minibatch_size=16",
        ),
        (["+sft.lr=1"], "no key 'sft.lr'; +sft.lr=... adds nothing that a stage would read"),
        (["+stft.lr=1"], "no key 'stft'; +stft=... adds nothing that a stage would read"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_impossible_combination_is_refused(overrides, message):
    with pytest.raises(UserError) as refusal:
        resolve(composed(*overrides))
    assert str(refusal.value).startswith(f"config: {message}")


@pytest.mark.parametrize(
    "overrides",
    [
        ["sft.packing=true", f"model.attention={Attention.flash_attention_2.value}"],
        ["sft.rehearsal_share=0.5", "sft.start_from=earlier"],
        ["model=pythia-160m", "model.chat_template=chat.jinja"],
        ["reward.loss=davidson", "reward.l2_coef=0.1"],
        ["ppo.clip_range_high=0.28", "ppo.dual_clip=3", "ppo.target_kl=0.03", "ppo.score_clip=5"],
        ["+data.fields.completion=answer", "data.heldout=null", "data.gold_rule=null"],
        ["data.rankings=[a.jsonl, {path: b.jsonl, weight: 2}]"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_a_possible_combination_passes(overrides):
    assert isinstance(resolve(composed(*overrides)), Config)


def test_more_than_one_process_is_refused_while_the_engine_is_plain_pytorch():
    rule = r"deepspeed\.engine=torch works in one process, and this run has 2; choose deepspeed=zero2"
    with pytest.raises(UserError, match=rule):
        resolve(composed(), world_size=2)


def test_batch_sizes_are_those_of_all_processes_and_micro_batches_at_most_their_part():
    """The default minibatch of 32 in forwards of 32: two processes take 16 each."""
    assert resolve(composed("deepspeed=zero2"), world_size=2).ppo.micro_batch_size == 32


@pytest.mark.parametrize(
    ("overrides", "world_size", "rule"),
    [
        (["deepspeed.zero_stage=3"], 1, r"zero_stage=3 acts with deepspeed\.engine=deepspeed"),
        (["deepspeed.offload=true"], 1, r"offload=true acts with deepspeed\.engine=deepspeed"),
        (["deepspeed=zero1", "deepspeed.zero_stage=4"], 1, "must be 0, 1, 2 or 3"),
        (["deepspeed=zero1", "deepspeed.zero_stage=0", "deepspeed.offload=true"], 1, "use it with .*zero_stage=1, 2"),
        (["deepspeed=zero1", "deepspeed.zero_stage=0", "model.dtype=bfloat16"], 1, "keeps no float32 copy"),
        (["deepspeed=zero3", "adapter=qlora", "model.path=x"], 2, "never verified with 4-bit weights"),
        (["deepspeed=zero3", "deepspeed.gather_share=0"], 2, r"gather_share=0\S* must lie in"),
    ],
)
def test_what_deepspeed_cannot_do_is_refused_at_the_start(overrides, world_size, rule):
    with pytest.raises(UserError, match=rule):
        resolve(composed(*overrides), world_size=world_size)


@pytest.mark.parametrize(
    ("key", "overrides", "world_size", "rule"),
    [
        ("sft.batch_size", [], 3, r"sft\.batch_size=32 cannot be split over 3 ranks .*use sft\.batch_size=30 or 33"),
        (
            "ppo.minibatch_size",
            ["ppo.micro_batch_size=16", "ppo.minibatch_size=48", "ppo.batch_size=96"],
            2,
            "32 or 64",
        ),
        ("ppo.ptx_batch_size", ["ppo.ptx_coef=1", "ppo.ptx_batch_size=5"], 2, r"ppo\.ptx_batch_size=5 cannot be split"),
    ],
)
def test_a_batch_that_the_ranks_cannot_share_out_is_refused_by_its_key(key, overrides, world_size, rule):
    cfg = resolve(composed("deepspeed=zero2", *overrides), world_size)
    with pytest.raises(UserError, match=rule):
        check_split(cfg, [key], world_size)
    check_split(cfg, ["reward.batch_size"], 2)


def test_offload_without_a_compiler_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"there is no c\+\+ or ninja: install it, or use zero3"):
        resolve(composed("deepspeed=zero3_offload"), world_size=2)


def test_nothing_is_infinite_or_nan_by_default():
    values = OmegaConf.to_container(composed(), resolve=True)
    flat = [value for section in values.values() if isinstance(section, dict) for value in section.values()]
    assert all(math.isfinite(value) for value in flat if isinstance(value, float))
