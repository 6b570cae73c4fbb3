"""What stages sample with: a rollout engine, the tokenizer that its tokens are of, and the run's seed.

A response depends on the seed, the step and the index of its prompt alone: not on the batch it is in, nor on what was
sampled before. So a resumed run, and any other split into batches, samples the same responses.
"""

from collections.abc import Callable

from rlhf.rollout.draws import Draws
from rlhf.rollout.responses import Responses
from rlhf.text.encoding import decode_response


class Sampler:
    """One response per prompt from an engine (see rlhf/rollout/__init__.py), on random numbers of their own."""

    def __init__(self, engine, tokenizer, seed: int):
        self.engine, self.tokenizer, self.seed = engine, tokenizer, seed
        self.after_batch: Callable[[int], None] = lambda num_responses: None  # e.g. to show progress

    @property
    def temperature(self) -> float:
        return self.engine.temperature

    def __call__(
        self,
        policy,
        prompts: list[list[int]],
        stream: str,
        step: int = 0,
        first: int = 0,
        names: list[str] | None = None,
    ) -> Responses:
        """One response per prompt (token ids). Other streams and steps give other random numbers.

        first: the place of these prompts among those of all ranks, which decides on their random numbers. names: where
        a name of the prompt does, whatever its place.
        """
        places = names or range(first, first + len(prompts))
        return self.engine(policy, prompts, Draws(self.seed, stream, step, places), self.after_batch)

    def texts(self, responses: Responses) -> list[str]:
        """The responses as text, without the token that ended them. A control token within one is there to be seen."""
        ended = zip(responses.rows(), responses.terminated.tolist(), strict=True)
        return [decode_response(self.tokenizer, row[:-1] if is_ended else row) for row, is_ended in ended]
