"""Public sets of two answers to a prompt and a verdict on them. Each is a `TwoAnswers`: columns, what verdicts mean.

shp              {"history": "...", "human_ref_A": "...", "human_ref_B": "...", "labels": 1}    1: A is better, 0: B
webgpt           {"question": {"full_text": "..."}, "answer_0": "...", "answer_1": "...", "score_0": 1, "score_1": -1}
pku              {"prompt": "...", "response_0": "...", "response_1": "...", "better_response_id": 0,
                  "safer_response_id": 1}    PKU-SafeRLHF; option by says which of the two is meant
arena            {"conversation_a": [{role, content}, ...], "conversation_b": [...], "winner": "model_a"}
                  Chatbot Arena; or "model_b", "tie", "tie (bothbad)", "both_bad"
helpsteer_pairs  {"prompt": "...", "response_1": "...", "response_2": "...", "preference_strength": -3}
                  -3 to 3, below 0: the first is better
helpsteer3       {"context": [{role, content}, ...], "response1": "...", "response2": "...", "overall_preference": -3}
alpaca_farm      {"instruction": "...", "input": "...", "output_1": "...", "output_2": "...", "preference": 1}    or 2
stack_paired     {"question": "...", "response_j": "...", "response_k": "..."}    j is better
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from reward.collect.formats.canonical import row_of
from reward.collect.formats.values import at, helpsteer_prompt, ranking_of, word
from reward.ranks import READ_AS_RANKS, Ranks, ranks_by_score, score
from rlhf.data.records import Row, shown

FIRST, SECOND, TIE = (1, 2), (2, 1), (1, 1)
Verdict = Callable[[Row], Ranks]


@dataclass(frozen=True)
class TwoAnswers:
    prompt: str | Callable | None  # a column, by dots into objects, or a function of the row; None: dialogues have it
    answers: tuple[str, str]
    verdict: Verdict
    prompt_id: str | None = None

    def parse(self, row: Row) -> list[dict]:
        """The canonical row of one comparison, the answers in their order."""
        first, second = (at(row, name) for name in self.answers)
        prompt = self.prompt(row) if callable(self.prompt) else self.prompt and at(row, self.prompt)
        prompt_id = row.values.get(self.prompt_id)
        ranking = ranking_of(row, {"prompt": prompt, "chosen": first, "rejected": second, "prompt_id": prompt_id})
        return [row_of(replace(ranking, ranks=self.verdict(row)), given=("prompt_id",))]


def by_label(column: str, meanings: dict[str, Ranks]) -> Verdict:
    """The verdict is a word or a number in a column."""

    def verdict(row: Row) -> Ranks:
        value = at(row, column)
        if word(value) not in meanings:
            rule = f"must be one of {shown(meanings)}"
            raise row.error(f"field '{column}' is {value!r:.40}; {rule}", f"field '{column}' {rule}")
        return meanings[word(value)]

    return verdict


def by_sign(column: str) -> Verdict:
    """Below 0 the first answer is better, above 0 the second, at 0 neither."""
    return lambda row: ranks_by_score([-(strength := score(row, column, at(row, column))), strength])


def by_scores(*columns: str) -> Verdict:
    def verdict(row: Row) -> Ranks:
        row.note(READ_AS_RANKS)
        return ranks_by_score([score(row, column, at(row, column)) for column in columns])

    return verdict


def _instruction(row):
    given = row.values.get("input") or ""
    return f"{row.text('instruction')}\n\n{given}" if str(given).strip() else row.text("instruction")


ARENA = {"model_a": FIRST, "model_b": SECOND, "tie": TIE, "tie (bothbad)": TIE, "both_bad": TIE}
SHP = TwoAnswers(
    "history", ("human_ref_A", "human_ref_B"), by_label("labels", {"1": FIRST, "0": SECOND}), prompt_id="post_id"
)
WEBGPT = TwoAnswers("question.full_text", ("answer_0", "answer_1"), by_scores("score_0", "score_1"))
ARENA_BATTLE = TwoAnswers(
    None, ("conversation_a", "conversation_b"), by_label("winner", ARENA), prompt_id="question_id"
)
HELPSTEER_PAIRS = TwoAnswers(helpsteer_prompt, ("response_1", "response_2"), by_sign("preference_strength"))
HELPSTEER3 = TwoAnswers("context", ("response1", "response2"), by_sign("overall_preference"))
ALPACA_FARM = TwoAnswers(_instruction, ("output_1", "output_2"), by_label("preference", {"1": FIRST, "2": SECOND}))
STACK_PAIRED = TwoAnswers("question", ("response_j", "response_k"), lambda row: FIRST, prompt_id="qid")


def parse_pku(row: Row, by: str) -> list[dict]:
    """by: better or safer, whichever verdict is meant. On many prompts the two differ."""
    verdict = by_label(f"{by}_response_id", {"0": FIRST, "1": SECOND})
    return TwoAnswers("prompt", ("response_0", "response_1"), verdict).parse(row)
