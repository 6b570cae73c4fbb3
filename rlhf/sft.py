"""Demonstrations as training examples, and the trainer that learns them.

An example is {"input_ids", "labels"}: labels repeat the ids where the loss is taken and are -100 elsewhere.
"""

import dataclasses

import torch
from trl import SFTTrainer

from rlhf.batches import encode_dialogue, encode_prompt, encode_response, encode_text, fit_prompt
from rlhf.config import SftObjective
from rlhf.data import load_demonstrations
from rlhf.errors import ArtifactError, UserError, located
from rlhf.seeding import generator
from rlhf.sources import source_sha256
from rlhf.trainer import check_gradient, check_loss

IGNORED = -100  # what torch's cross-entropy leaves out


def sft_examples(tokenizer, demonstrations, objective: SftObjective, data, split: str, report) -> list[dict]:
    """Examples for one objective. Over-long answers are left out and counted, long texts are cut in blocks.

    data: the `data` section of the config. Raises UserError naming the record that does not suit the objective.
    """
    encode = {SftObjective.completion: _completion, SftObjective.assistant: _dialogue, SftObjective.text: _text}[
        objective
    ]
    examples = []
    for demonstration in demonstrations:
        with located(demonstration.where):
            examples += encode(tokenizer, demonstration, data, report)
    report.count_tokens("demonstrations", split, [len(example["input_ids"]) for example in examples])
    return examples


def _completion(tokenizer, demonstration, data, report) -> list[dict]:
    messages = _messages(demonstration)
    response = encode_response(tokenizer, messages[-1]["content"])
    if len(response) > data.max_response_tokens:
        report.over_long(demonstration.where, len(response), data.max_response_tokens)
        return []
    prompt = fit_prompt(encode_prompt(tokenizer, messages[:-1]), data, demonstration.where, report)
    return [{"input_ids": prompt + response, "labels": [IGNORED] * len(prompt) + response}]


def _dialogue(tokenizer, demonstration, data, report) -> list[dict]:
    ids, learned = encode_dialogue(tokenizer, _messages(demonstration))
    limit = data.max_prompt_tokens + data.max_response_tokens
    if len(ids) > limit:
        report.over_long(demonstration.where, len(ids), limit)
        return []
    return [
        {"input_ids": ids, "labels": [i if is_learned else IGNORED for i, is_learned in zip(ids, learned, strict=True)]}
    ]


def _text(tokenizer, demonstration, data, report) -> list[dict]:
    if demonstration.text is None:
        raise UserError("sft.objective=text learns the field 'text', which is missing; use sft.objective=completion")
    ids = encode_text(tokenizer, demonstration.text)
    size = data.max_prompt_tokens + data.max_response_tokens
    blocks = [ids[i : i + size] for i in range(0, len(ids), size)]
    return [{"input_ids": block, "labels": block} for block in blocks if len(block) > 1]


def _messages(demonstration) -> tuple:
    if demonstration.text is not None:
        raise UserError("the record holds plain text; learn it with sft.objective=text")
    return demonstration.messages


class CheckedSFTTrainer(SFTTrainer):
    """TRL's trainer, stopped at the first loss or gradient that is not finite."""

    def compute_loss(self, model, inputs, **kwargs):
        result = super().compute_loss(model, inputs, **kwargs)
        loss = result[0] if isinstance(result, tuple) else result
        check_loss(loss, self.state.global_step + 1, self.processing_class, inputs["input_ids"][0])
        return result

    def training_step(self, model, inputs, *args, **kwargs):
        loss = super().training_step(model, inputs, *args, **kwargs)
        check_gradient(model, self.state.global_step + 1, self.processing_class, inputs["input_ids"][0])
        return loss


def texts_of(demonstrations) -> list[str]:
    """All text of the demonstrations, for training a tokenizer."""
    texts = [[d.text] if d.text is not None else [m["content"] for m in d.messages] for d in demonstrations]
    return [text for group in texts for text in group]


def rehearsal(data, share: float, earlier: dict, num_new: int, report, seed: int) -> list:
    """Demonstrations of an earlier SFT artifact that make up `share` of the training data with num_new new ones.

    data: that section of the config; earlier: the artifact's manifest. Raises ArtifactError when its data changed.
    """
    for source in earlier["data"]:
        if source_sha256(source["path"], "rehearsal") != source["sha256"]:
            raise ArtifactError(f"{source['path']} is not what the earlier SFT artifact was trained on; restore it")
    old_data = dataclasses.replace(data, demonstrations=[source["path"] for source in earlier["data"]])
    old = load_demonstrations(old_data, report)["train"]
    wanted = round(num_new * share / (1 - share))
    order = torch.randperm(len(old), generator=generator(seed, "rehearsal")).tolist()
    return [old[i] for i in order[:wanted]]
