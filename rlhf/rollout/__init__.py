"""Responses sampled from a policy.

An engine takes token ids and gives `Responses`; it knows of no text, no tokenizer and no seed:

    engine(policy, prompts: list[list[int]], draws: Draws, after_batch: Callable[[int], None]) -> Responses

decoder.py is the one there is, choose.py decides which one a run has, sampling.py is what stages call.
"""
