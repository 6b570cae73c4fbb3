"""Which rollout engine a run samples with."""

from rlhf.config.schema import Config, RolloutConfig
from rlhf.models.policies import stop_ids
from rlhf.rollout.decoder import Decoder
from rlhf.rollout.sampling import Sampler


def choose(cfg: Config, policy, tokenizer) -> Sampler:
    """What a stage samples with. policy: one of those to be sampled from; its stop tokens end a response."""
    return sampler_of(
        cfg.rollout, policy, tokenizer, cfg.data.max_response_tokens, cfg.seed, cfg.deepspeed.gather_share
    )


def sampler_of(
    rollout: RolloutConfig, policy, tokenizer, max_tokens: int, seed: int, gather_share: float = 0.5
) -> Sampler:
    """The engine that the options of `rollout` ask for. max_tokens: of a response."""
    decoder = Decoder(
        stop_ids=stop_ids(policy, tokenizer),
        pad_id=tokenizer.pad_token_id,
        temperature=rollout.temperature,
        max_tokens=max_tokens,
        batch_size=rollout.batch_size,
        gather_share=gather_share,
    )
    return Sampler(decoder, tokenizer, seed)
