"""Public sets that have all answers to a prompt in one record, a list of objects.

ultrafeedback  {"instruction": "...", "completions": [{"response": "...", "model": "...", "overall_score": 8.5,
                "fine-grained_score": 4.5, "annotations": {"helpfulness": {"Rating": "4"}, ...}}, ...]}
                option score says which
nectar         {"prompt": "\\n\\nHuman: ...\\n\\nAssistant: ",
                "answers": [{"answer": "...", "rank": 1, "model": "..."}, ...]}
stack_answers  {"qid": 1, "question": "...", "answers": [{"text": "...", "pm_score": 3}, ...]}    HuggingFaceH4's
"""

from reward.collect.formats.canonical import row_of
from reward.collect.formats.values import at, ranking_of
from rlhf.data.records import Row

RATINGS = ("helpfulness", "honesty", "instruction_following", "truthfulness")
ULTRAFEEDBACK_SCORES = ("overall_score", "fine-grained_score", *RATINGS)


def parse_ultrafeedback(row: Row, score: str) -> list[dict]:
    """Ranked by one of the scores; where a rating is "N/A" the answer is not ranked."""
    answers = _answers(row, "completions")
    if score in RATINGS:
        scores = [_rating(answer, score) for answer in answers]
    else:
        scores = [answer.get(score) for answer in answers]
    values = {"prompt": at(row, "instruction"), **_responses(answers, "response"), "scores": scores}
    return [row_of(ranking_of(row, values), meta=_sources(answers), given=())]


def parse_nectar(row: Row) -> list[dict]:
    answers = _answers(row, "answers")
    ranks = [answer.get("rank") for answer in answers]
    values = {"prompt": at(row, "prompt"), **_responses(answers, "answer"), "ranks": ranks}
    return [row_of(ranking_of(row, values), meta=_sources(answers), given=())]


def parse_stack_answers(row: Row) -> list[dict]:
    answers = _answers(row, "answers")
    scores = [answer.get("pm_score") for answer in answers]
    values = {"prompt": at(row, "question"), **_responses(answers, "text"), "scores": scores}
    return [row_of(ranking_of(row, {**values, "prompt_id": row.values.get("qid")}), given=("prompt_id",))]


def _answers(row, name):
    answers = at(row, name)
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise row.error(f"field '{name}' must be a list of objects, one for each answer")
    return answers


def _responses(answers, name):
    return {"responses": [answer.get(name) for answer in answers]}


def _rating(answer, name):
    rating = ((answer.get("annotations") or {}).get(name) or {}).get("Rating")
    return None if rating == "N/A" else rating


def _sources(answers):
    """Which model gave each answer, as the canonical meta has it."""
    models = [answer.get("model") for answer in answers]
    return {"sources": [[{"policy": model}] if model else [] for model in models]} if any(models) else None
