"""Every knob of every stage, typed. The values, their units and reasons are in conf/*.yaml.

Hydra checks names and types against these classes; checks.py has what bounds a value, and what spans several.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


class Resume(Enum):
    auto = "auto"
    never = "never"


class Dtype(Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"


class Attention(Enum):
    sdpa = "sdpa"
    eager = "eager"
    flash_attention_2 = "flash_attention_2"


class AdapterKind(Enum):
    none = "none"
    lora = "lora"
    qlora = "qlora"


class Engine(Enum):
    torch = "torch"
    deepspeed = "deepspeed"


class OnError(Enum):
    error = "error"
    skip = "skip"


class LongPrompts(Enum):
    error = "error"
    cut = "cut"
    drop = "drop"


class SftObjective(Enum):
    completion = "completion"
    assistant = "assistant"
    text = "text"


class RewardLoss(Enum):
    bt_pairs = "bt_pairs"
    plackett_luce = "plackett_luce"
    rao_kupper = "rao_kupper"
    davidson = "davidson"
    pick_best = "pick_best"


class KlControl(Enum):
    fixed = "fixed"
    adaptive = "adaptive"


class ExportStage(Enum):
    sft = "sft"
    ppo = "ppo"


class BenchWhat(Enum):
    results = "results"
    memory = "memory"
    collect = "collect"
    architectures = "architectures"
    connections = "connections"
    collect_size = "collect_size"
    speed = "speed"


BenchSize = Enum("BenchSize", {name: name for name in ("small", "medium", "1b", "7b")})


class Precision(Enum):
    fp32 = "fp32"
    bf16 = "bf16"


class WandbMode(Enum):
    offline = "offline"
    online = "online"
    disabled = "disabled"


@dataclass
class RunConfig:
    dir: str = MISSING
    force: bool = MISSING
    resume: Resume = MISSING
    reshard: bool = MISSING
    mended_rule: bool = MISSING
    debug: bool = MISSING


@dataclass
class InputsConfig:
    sft: str = MISSING
    reward: str = MISSING
    ppo: str = MISSING


@dataclass
class ScratchConfig:
    hidden_size: int = MISSING
    intermediate_size: int = MISSING
    num_layers: int = MISSING
    num_heads: int = MISSING
    vocab_size: int = MISSING
    max_positions: int = MISSING


@dataclass
class ModelConfig:
    path: str | None = MISSING
    revision: str | None = MISSING
    dtype: Dtype = MISSING
    attention: Attention = MISSING
    trust_remote_code: bool = MISSING
    gradient_checkpointing: bool = MISSING
    chat_template: str | None = MISSING
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    scratch: ScratchConfig | None = None


@dataclass
class AdapterConfig:
    kind: AdapterKind = MISSING
    rank: int = MISSING
    alpha: float = MISSING
    dropout: float = MISSING
    targets: str = MISSING


@dataclass
class DeepspeedConfig:
    engine: Engine = MISSING
    zero_stage: int = MISSING
    offload: bool = MISSING
    gather_share: float = MISSING


@dataclass
class DataConfig:
    demonstrations: Any = MISSING
    rankings: Any = MISSING
    prompts: Any = MISSING
    heldout: Any = MISSING
    fields: dict[str, str | None] = field(default_factory=dict)
    on_error: OnError = MISSING
    valid_share: float = MISSING
    test_share: float = MISSING
    max_prompt_tokens: int = MISSING
    max_response_tokens: int = MISSING
    long_prompts: LongPrompts = MISSING
    gold_rule: str | None = MISSING
    simulated: bool = MISSING


@dataclass
class RolloutConfig:
    temperature: float = MISSING
    batch_size: int = MISSING


@dataclass
class CollectConfig:
    wait: bool = MISSING
    dir: str = MISSING
    num_prompts: int = MISSING
    num_responses: int = MISSING
    min_rankings: int = MISSING
    port: int = MISSING
    poll_seconds: float = MISSING
    export_again: bool = MISSING


@dataclass
class SftConfig:
    objective: SftObjective = MISSING
    start_from: str | None = MISSING
    rehearsal_share: float = MISSING
    num_epochs: float = MISSING
    batch_size: int = MISSING
    micro_batch_size: int = MISSING
    learning_rate: float = MISSING
    warmup_share: float = MISSING
    weight_decay: float = MISSING
    dropout: float = MISSING
    max_grad_norm: float = MISSING
    packing: bool = MISSING
    eval_steps: int = MISSING
    patience: int = MISSING


@dataclass
class RewardConfig:
    loss: RewardLoss = MISSING
    label_smoothing: float = MISSING
    margin: float = MISSING
    center_coef: float = MISSING
    l2_coef: float = MISSING
    num_epochs: float = MISSING
    batch_size: int = MISSING
    micro_batch_size: int = MISSING
    learning_rate: float = MISSING
    warmup_share: float = MISSING
    weight_decay: float = MISSING
    max_grad_norm: float = MISSING
    eval_steps: int = MISSING
    patience: int = MISSING
    norm_samples: int = MISSING


@dataclass
class RewardTerm:
    source: str = MISSING
    weight: float = 1.0
    scale: float = 1.0
    clip: float | None = None


@dataclass
class PpoConfig:
    start_from: str | None = MISSING
    rewards: list[RewardTerm] = MISSING
    reward_retries: int = MISSING
    reward_timeout: float | None = MISSING
    reward_cache: bool = MISSING
    allow_other_parent: bool = MISSING
    num_steps: int = MISSING
    batch_size: int = MISSING
    responses_per_prompt: int = MISSING
    minibatch_size: int = MISSING
    micro_batch_size: int = MISSING
    num_epochs: int = MISSING
    learning_rate: float = MISSING
    critic_learning_rate: float = MISSING
    critic_warmup_steps: int = MISSING
    adam_eps: float = MISSING
    max_grad_norm: float = MISSING
    gamma: float = MISSING
    lam: float = MISSING
    whiten_advantages: bool = MISSING
    clip_range: float = MISSING
    clip_range_high: float | None = MISSING
    dual_clip: float | None = MISSING
    value_clip_range: float = MISSING
    value_coef: float = MISSING
    entropy_coef: float = MISSING
    kl_control: KlControl = MISSING
    kl_coef: float = MISSING
    kl_target: float = MISSING
    kl_horizon: int = MISSING
    target_kl: float | None = MISSING
    missing_eos_penalty: float = MISSING
    score_clip: float | None = MISSING
    running_score_norm: bool = MISSING
    bootstrap_cut: bool = MISSING
    ptx_coef: float = MISSING
    ptx_batch_size: int = MISSING
    ema_decay: float | None = MISSING
    eval_steps: int = MISSING
    eval_prompts: int = MISSING
    kl_budget: float = MISSING
    save_steps: int = MISSING
    keep_checkpoints: int = MISSING


@dataclass
class EvaluateConfig:
    num_prompts: int = MISSING
    num_samples: int = MISSING
    num_bootstrap: int = MISSING
    num_examples: int = MISSING


@dataclass
class ExportConfig:
    stage: ExportStage = MISSING


@dataclass
class BenchConfig:
    what: BenchWhat = MISSING
    seeds: list[int] = MISSING
    architectures: list[str] | None = MISSING
    adapters: list[AdapterKind] = MISSING
    collect_database: str | None = MISSING
    collect_items: int = MISSING
    collect_rankings: int = MISSING
    size: BenchSize = MISSING
    precision: Precision = MISSING
    adapter: AdapterKind = MISSING
    response_tokens: int = MISSING
    iterations: int = MISSING
    workload: str | None = MISSING
    profile: bool = MISSING


@dataclass
class TrackingConfig:
    wandb: WandbMode = MISSING
    project: str = MISSING
    log_steps: int = MISSING
    num_samples: int = MISSING


@dataclass
class Config:
    seed: int = MISSING
    preflight: bool = MISSING
    run: RunConfig = field(default_factory=RunConfig)
    inputs: InputsConfig = field(default_factory=InputsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    deepspeed: DeepspeedConfig = field(default_factory=DeepspeedConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    ppo: PpoConfig = field(default_factory=PpoConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    bench: BenchConfig = field(default_factory=BenchConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


ConfigStore.instance().store(name="schema", node=Config)
