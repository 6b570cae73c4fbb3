"""Demonstrations mixed into the policy's updates, against forgetting ("PPO-ptx").

Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, eq. 2.
"""

from collections.abc import Iterator

from torch import Tensor

from rlhf.config.schema import DataConfig, SftObjective
from rlhf.data.load import Demonstration
from rlhf.distributed import own_places
from rlhf.models.policies import response_logprobs
from rlhf.ppo.experience import shuffled
from rlhf.text.batches import pad_right


def ptx_examples(tokenizer, demonstrations: list[Demonstration], data: DataConfig, report) -> list[dict]:
    """{"input_ids", "labels"} of each demonstration: its answer is learned, of plain text everything."""
    from rlhf.training.sft import sft_examples  # brings TRL, which a run without PTX need not load

    kinds = {SftObjective.text: [], SftObjective.completion: []}
    for demonstration in demonstrations:
        is_text = demonstration.text is not None
        kinds[SftObjective.text if is_text else SftObjective.completion].append(demonstration)
    parts = [(part, kind) for kind, part in kinds.items() if part]
    return [e for part, kind in parts for e in sft_examples(tokenizer, part, kind, data, "train", report)]


class PtxMix:
    """The PTX loss of each optimizer step, on demonstrations in a fresh order every epoch.

    coef: weight of the loss beside PPO's. batch_size: demonstrations per optimizer step, all ranks together.
    """

    def __init__(
        self, examples: list[dict], coef: float, batch_size: int, micro_batch_size: int, seed: int, pad_id: int
    ):
        self.examples, self.coef, self.seed, self.pad_id = examples, coef, seed, pad_id
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size

    def minibatch(self, number: int) -> list[dict]:
        """The demonstrations of an optimizer step, counted from the start of the run."""
        places = range(number * self.batch_size, (number + 1) * self.batch_size)
        return [self.examples[i] for i in shuffled("ptx", self.seed, len(self.examples), places)]

    def losses(self, policy, number: int) -> Iterator[Tensor]:
        """What each of this rank's micro-batches adds to the loss of the whole minibatch of all ranks.

        That is the mean over its learned tokens, in nats, at temperature 1.
        """
        minibatch = self.minibatch(number)
        num_tokens = sum(label >= 0 for example in minibatch for label in example["labels"][1:])
        own = [minibatch[i] for i in own_places(len(minibatch))]
        for first in range(0, len(own), self.micro_batch_size):
            part = own[first : first + self.micro_batch_size]
            yield -learned_logprobs(policy, part, self.pad_id).sum() / num_tokens


def learned_logprobs(policy, examples: list[dict], pad_id: int) -> Tensor:
    """Log-probabilities of the learned tokens of examples {"input_ids", "labels"}, one after the other."""
    device = policy.module.device
    ids, mask = (x.to(device) for x in pad_right([example["input_ids"] for example in examples], pad_id))
    learned = pad_right([[label >= 0 for label in example["labels"]] for example in examples], False)[0].bool()
    logprobs, _ = response_logprobs(policy, ids, mask, ids.shape[1] - 1)
    return logprobs[learned[:, 1:].to(device)]  # the first token has no prediction
