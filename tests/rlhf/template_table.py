"""The ids that each stage makes of a dialogue. `python tests/rlhf/template_table.py` prints all templates x stages."""

import tempfile
from datetime import datetime
from types import SimpleNamespace

from imitated import OF_IMAGES, TEMPLATES, byte_level
from transformers import AutoTokenizer

from reward.examples import ranking_examples
from reward.rankings import Ranking
from reward.scorer import RewardScorer
from rlhf.config.schema import LongPrompts, OnError, SftObjective
from rlhf.data.load import Demonstration, Prompt
from rlhf.data.report import DataReport
from rlhf.text.chat_template import pin_template
from rlhf.text.encoding import decode_response
from rlhf.text.prompts import encode_prompts
from rlhf.training.sft import sft_examples

STAGES = ("sft", "reward", "ppo: rollout", "ppo: scoring", "evaluate")
LIMITS = {"max_prompt_tokens": 2000, "max_response_tokens": 200, "long_prompts": LongPrompts.error}
DATA = SimpleNamespace(**LIMITS, on_error=OnError.error)


def said(role: str, text: str) -> dict:
    return {"role": role, "content": text}


DIALOGUES = {
    "one question": [said("user", "hello"), said("assistant", "yes please")],
    "system turn": [said("system", "be kind"), said("user", "hello"), said("assistant", "Hello world")],
    "three turns": [
        *(said("user", "what is it"), said("assistant", "no"), said("user", "hello world")),
        said("assistant", "the time is 7:30\nin Rome"),
    ],
}


def dialogues_of(name: str) -> list:
    """Gemma's first template takes no system turn."""
    return [dialogue for kind, dialogue in DIALOGUES.items() if name != "gemma" or kind != "system turn"]


def pinned(name: str, dialogues=None, **options):
    """A tokenizer with a template of TRL's, saved by stage 1 and read again by a later one."""
    tokenizer = byte_level(TEMPLATES[name])
    pin_template(tokenizer, dialogues or DIALOGUES.values(), options, datetime.now())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder)


def stage_ids(tokenizer, dialogue: list[dict]) -> dict[str, tuple[list[int], list[int] | None]]:
    """(ids before the answer, ids of the answer) in each stage; None where a stage has no answer of data."""
    prompt, answer = tuple(dialogue[:-1]), dialogue[-1]["content"]
    (example,) = sft_examples(
        tokenizer, [Demonstration(tuple(dialogue), None, "", "")], SftObjective.completion, DATA, "train", DataReport()
    )
    num_context = sum(label < 0 for label in example["labels"])
    judged = {"annotator": None, "weight": 1.0, "margin": None, "key": "", "prompt_id": None, "where": ""}
    ranking = Ranking(messages=prompt, responses=(answer, "thanks"), ranks=(1, 2), **judged)
    (ranked,) = ranking_examples(tokenizer, [ranking], DATA, "train", DataReport())
    num_ranked = len(ranked.sequences[0]) - ranked.lengths[0]
    ((ids,),) = encode_prompts(tokenizer, [Prompt(prompt, "", "")], DATA, DataReport())[1:]
    sampled = decode_response(tokenizer, example["input_ids"][num_context:-1])
    scored = RewardScorer(None, tokenizer, DATA.max_prompt_tokens, 1)._encode(prompt, sampled)
    return {
        "sft": (example["input_ids"][:num_context], example["input_ids"][num_context:]),
        "reward": (ranked.sequences[0][:num_ranked], ranked.sequences[0][num_ranked:]),
        "ppo: rollout": (ids, None),
        "ppo: scoring": (scored[: len(ids)], scored[len(ids) :]),
        "evaluate": (ids, None),
    }


def row(name: str) -> list[str]:
    """A template's line of the table: equal to SFT's ids in each stage, by the number of dialogues."""
    if name in OF_IMAGES:
        return [name, "refused: takes no plain text", *[""] * 6]
    tokenizer = pinned(name)
    found = [stage_ids(tokenizer, dialogue) for dialogue in dialogues_of(name)]
    same = {stage: sum(is_same(ids[stage], ids["sft"]) for ids in found) for stage in STAGES}
    change = len(tokenizer.chat_template) - len(TEMPLATES[name])
    end = tokenizer.eos_token.replace("|", "\\|")  # a bar would end the cell
    return [name, f"`{end}`", *(f"{same[stage]} of {len(found)}" for stage in STAGES), "yes" if change else "no"]


def is_same(own, others) -> bool:
    return own[0] == others[0] and own[1] in (None, others[1])


if __name__ == "__main__":
    header = ["template", "end of turn", *STAGES, "pinned"]
    lines = [header, ["---"] * len(header), *(row(name) for name in TEMPLATES)]
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))
