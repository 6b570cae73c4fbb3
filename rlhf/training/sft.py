"""Demonstrations as training examples, and the trainer that learns them.

An example is {"input_ids", "labels"}: labels repeat the ids where the loss is taken and are -100 elsewhere.
"""

import dataclasses

import torch
from torch import Tensor
from trl import SFTTrainer

from rlhf import distributed
from rlhf.config.schema import DataConfig, SftObjective
from rlhf.data.load import load_demonstrations, parse_sources
from rlhf.data.sources import source_sha256
from rlhf.errors import ArtifactError, EncodingError, UserError
from rlhf.seeding import generator
from rlhf.text.encoding import encode_answer, encode_dialogue, encode_text, encoded, marked_text
from rlhf.text.prompts import fit_prompt
from rlhf.tracking.meanings import Meaning
from rlhf.training.trainer import GlobalSteps

IGNORED = -100  # what torch's cross-entropy leaves out
TOKEN_MEANS = ("entropy", "mean_token_accuracy")  # what TRL measures beside the loss
IS_TEXT = (
    "the record holds plain text; learn it with sft.objective=text, or name the columns of question and answer with "
    "+data.fields.prompt=... +data.fields.completion=..."
)
IS_DIALOGUE = (
    "sft.objective=text learns the field 'text' of records that are no dialogue, and this one is read as a "
    "dialogue; use sft.objective=completion, or leave its columns out, e.g. +data.fields.prompt=null"
)


def require_objective(splits: dict[str, list], objective: SftObjective) -> None:
    """Raises UserError when no record is what the objective learns: plain text where it is text, else dialogues."""
    records, is_for_text = [record for part in splits.values() for record in part], objective is SftObjective.text
    if all((record.text is None) == is_for_text for record in records):
        raise UserError(f"{records[0].where}: {IS_DIALOGUE if is_for_text else IS_TEXT}")


def sft_examples(
    tokenizer, demonstrations, objective: SftObjective, data: DataConfig, split: str, report
) -> list[dict]:
    """Examples for one objective. Over-long answers are left out and counted, long texts are cut in blocks.

    Raises UserError naming a record that cannot be learned, or counts it where data.on_error=skip.
    """
    encode = {SftObjective.completion: _completion, SftObjective.assistant: _dialogue, SftObjective.text: _text}[
        objective
    ]
    report.see_answers(len(demonstrations))
    results = encoded(demonstrations, lambda record: encode(tokenizer, record, data, report), data, report)
    examples = [example for _, part in results for example in part]
    report.count_tokens("demonstrations", split, [len(example["input_ids"]) for example in examples])
    if examples:
        report.show("demonstrations", learned_text(tokenizer, **examples[0]))
    return examples


def learned_text(tokenizer, input_ids: list[int], labels: list[int]) -> str:
    """An example for people to read: what is learned stands in [[ ]]; how many tokens that are of how many."""
    is_learned = [label != IGNORED for label in labels]
    text = marked_text(tokenizer, input_ids, is_learned)
    return f"{text} ({sum(is_learned)} of {len(labels)} tokens are learned)"


def _completion(tokenizer, demonstration, data: DataConfig, report) -> list[dict]:
    *prompt, answer = _messages(demonstration)
    context = fit_prompt(tokenizer, prompt, data, demonstration.where, report)
    if context is None:
        return []
    response = encode_answer(tokenizer, context, answer["content"])
    if len(response) > data.max_response_tokens:
        report.over_long(demonstration.where, len(response), data.max_response_tokens)
        return []
    return [_example(context.ids + response, [False] * len(context.ids) + [True] * len(response))]


def _dialogue(tokenizer, demonstration, data: DataConfig, report) -> list[dict]:
    sequences = encode_dialogue(tokenizer, _messages(demonstration), demonstration.not_learned)
    if len(sequences) > 1:
        report.find("split", demonstration.where)
    limit, examples = data.max_prompt_tokens + data.max_response_tokens, []
    for ids, learned in sequences:
        if len(ids) > limit:
            report.over_long(demonstration.where, len(ids), limit)
        elif any(learned):  # not so where all answers in it have weight 0
            examples.append(_example(ids, learned))
    return examples


def _text(tokenizer, demonstration, data: DataConfig, report) -> list[dict]:
    if demonstration.text is None:
        raise EncodingError(IS_DIALOGUE)
    ids = encode_text(tokenizer, demonstration.text)
    size = data.max_prompt_tokens + data.max_response_tokens
    blocks = [ids[i : i + size] for i in range(0, len(ids), size)]
    return [_example(block, [True] * len(block)) for block in blocks if len(block) > 1]


def _example(ids: list[int], learned: list[bool]) -> dict:
    return {
        "input_ids": ids,
        "labels": [i if is_learned else IGNORED for i, is_learned in zip(ids, learned, strict=True)],
    }


def _messages(demonstration) -> tuple:
    if demonstration.text is not None:
        raise EncodingError(IS_TEXT)
    return demonstration.messages


class CheckedSFTTrainer(GlobalSteps, SFTTrainer):
    """TRL's trainer. Loss and metrics are means over the learned tokens of a whole step, or of all validation data."""

    def __init__(self, *, model, **kwargs):
        own = {parameter: parameter.data for parameter in model.parameters() if parameter.requires_grad}
        text_config = model.config.get_text_config()
        router_coef = getattr(text_config, "router_aux_loss_coef", None)
        super().__init__(model=model, **kwargs)
        if router_coef is not None:  # TRL writes its own into the model's config
            text_config.router_aux_loss_coef = router_coef
        for parameter, value in own.items():
            if parameter.dtype is not value.dtype:  # TRL rounds adapters on a 4-bit base to bfloat16
                parameter.data = value.to(parameter.device)

    def blank(self, example: dict) -> dict:
        return {**example, "labels": [IGNORED] * len(example["labels"])}

    def first_ids(self, inputs: dict) -> Tensor:
        return inputs["input_ids"][0]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.check_loss(result[0] if return_outputs else result, inputs)
        self._note_tokens(inputs["labels"])
        return result

    def _note_tokens(self, labels: Tensor) -> None:
        """TRL's means over the learned tokens of this micro-batch on all ranks, weighed by their number."""
        count = distributed.over_ranks((labels[:, 1:] != IGNORED).sum()).item()
        own = {name: values.pop() * count for name, values in self._metrics["train"].items() if name in TOKEN_MEANS}
        if distributed.is_main():  # the sums are over ranks
            self.note(tokens=count, **own)
        else:
            self.note(tokens=0.0, **dict.fromkeys(own, 0.0))

    def fill_in(self, logs: dict, sums: dict[str, float]) -> None:
        super().fill_in(logs, sums)
        logs |= {name: sums[name] / sums["tokens"] for name in TOKEN_MEANS}

    def log(self, logs: dict, *args, **kwargs) -> None:
        for name in TOKEN_MEANS:
            self._metrics["train"].pop(name, None)  # else TRL writes what it has over what `fill_in` wrote
        super().log(logs, *args, **kwargs)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Means over all learned tokens of the validation data: eval_loss in nats, eval_entropy, and so on."""
        sums = token_sums(self.model_wrapped, self.eval_dataset, self.args.per_device_eval_batch_size, self._collated)
        count = sums.pop("tokens")
        metrics = {f"eval_{name}": value / count for name, value in sums.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _collated(self, examples: list[dict]) -> dict[str, Tensor]:
        return self._prepare_inputs(self.data_collator(examples))


@torch.no_grad()
def token_sums(model, examples, batch_size: int, collated) -> dict[str, float]:
    """Sums over the learned tokens of examples: their number, loss, entropy and correct guesses, over all ranks.

    The ranks share out the examples and make equally many forwards. model: one that TRL has given its fused head.
    """
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64)
    own = distributed.own_places(len(examples))
    for i in own[::batch_size]:
        places = [place for place in own[i - own.start :][:batch_size] if place < len(examples)]
        inputs = collated([examples[place] for place in places or [0]])
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)
        parts = (outputs.label_mask, -outputs.log_probs, outputs.entropy, outputs.is_top1)
        if places:
            sums += torch.stack([part.sum().double() for part in parts]).cpu()
    names = ("tokens", "loss", "entropy", "mean_token_accuracy")
    return dict(zip(names, distributed.over_ranks(sums).tolist(), strict=True))


def texts_of(demonstrations) -> list[str]:
    """All text of the demonstrations, for training a tokenizer."""
    texts = [[d.text] if d.text is not None else [m["content"] for m in d.messages] for d in demonstrations]
    return [text for group in texts for text in group]


def rehearsal(data: DataConfig, share: float, earlier: dict, num_new: int, report, seed: int) -> list:
    """Demonstrations of an earlier SFT artifact that make up `share` of the training data with num_new new ones.

    earlier: the artifact's manifest. Raises ArtifactError when its data changed.
    """
    for source in earlier["data"]:
        if source_sha256(source["path"], "rehearsal") != source["sha256"]:
            raise ArtifactError(f"{source['path']} is not what the earlier SFT artifact was trained on; restore it")
    old = load_demonstrations(_as_it_was_read(data, earlier), report)["train"]
    wanted = round(num_new * share / (1 - share))
    order = torch.randperm(len(old), generator=generator(seed, "rehearsal")).tolist()
    return [old[i] for i in order[:wanted]]


def _as_it_was_read(data: DataConfig, earlier):
    """The `data` section for the sources of an earlier artifact, with the names that their fields were given there."""
    config = earlier["config"]
    prefix = "data.fields."
    fields = {key.removeprefix(prefix): name for key, name in config.items() if key.startswith(prefix)}
    own = {source.path: source.fields or {} for source in parse_sources(config["data.demonstrations"], "data")}
    sources = [
        {"path": source["path"], "fields": {**fields, **own[source["path"]]} if source["path"] in own else {}}
        for source in earlier["data"]
    ]
    return dataclasses.replace(data, demonstrations=sources, fields={})


MEANINGS = {
    "train/loss": Meaning(
        "nats per learned token, >= 0",
        "cross-entropy of the learned tokens, mean over the steps since the last line",
        "falls, steeply first (6.7 to 0.4 in the toy run, from scratch). Not falling: raise sft.learning_rate; the "
        "data report shows the first record as the model reads it",
    ),
    "train/entropy": Meaning(
        "nats per token, >= 0",
        "entropy of the next-token distribution at the learned tokens",
        "falls towards train/loss. Far below it: the model is surer than it is right",
    ),
    "train/mean_token_accuracy": Meaning(
        "share of tokens, 0 to 1", "learned tokens that are the likeliest ones by the model", "rises, then levels off"
    ),
    "eval/loss": Meaning(
        "nats per learned token, >= 0",
        "the same loss over all learned tokens of the validation split",
        "falls, then levels off; the checkpoint with the lowest is kept. Rising while train/loss falls: sft.patience "
        "ends the stage; fewer sft.num_epochs, or more demonstrations",
    ),
    "eval/entropy": Meaning("nats per token, >= 0", "as train/entropy, on the validation split", "near eval/loss"),
    "eval/mean_token_accuracy": Meaning(
        "share of tokens, 0 to 1", "as train/mean_token_accuracy, on the validation split", "rises with it"
    ),
}
