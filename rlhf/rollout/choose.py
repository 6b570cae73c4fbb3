"""Which rollout engine a run samples with."""

from rlhf.config.schema import Config
from rlhf.models.policies import stop_ids
from rlhf.rollout.decoder import Decoder
from rlhf.rollout.sampling import Sampler


def choose(cfg: Config, policy, tokenizer) -> Sampler:
    """The engine that the config asks for. policy: one of those to be sampled from; its stop tokens end a response."""
    decoder = Decoder(
        stop_ids=stop_ids(policy, tokenizer),
        pad_id=tokenizer.pad_token_id,
        temperature=cfg.rollout.temperature,
        max_tokens=cfg.data.max_response_tokens,
        batch_size=cfg.rollout.batch_size,
        gather_share=cfg.deepspeed.gather_share,
    )
    return Sampler(decoder, tokenizer, cfg.seed)
