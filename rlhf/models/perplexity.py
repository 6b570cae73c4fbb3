"""How surprised a policy is by texts."""

import math

import torch

from rlhf.models.policies import response_logprobs
from rlhf.text.batches import pad_right


@torch.no_grad()
def perplexity(policy, examples: list[dict], pad_id: int, batch_size: int) -> float | None:
    """exp of the mean loss per learned token of examples {"input_ids", "labels"}; None where there is none."""
    total, count = 0.0, 0
    for i in range(0, len(examples), batch_size):
        part = examples[i : i + batch_size]
        ids, mask = (x.to(policy.device) for x in pad_right([example["input_ids"] for example in part], pad_id))
        learned = pad_right([[label >= 0 for label in example["labels"]] for example in part], False)[0].bool()
        logprobs, _ = response_logprobs(policy, ids, mask, ids.shape[1] - 1)
        learned = learned[:, 1:].to(policy.device)  # the first token has no prediction
        total, count = total - logprobs[learned].sum().item(), count + int(learned.sum())
    return math.exp(total / count) if count else None
