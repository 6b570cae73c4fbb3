"""Writes the toy world of data/toy: demonstrations, rankings by simulated annotators, prompts, held-out prompts.

    python data/make_toy.py [--out data/toy]

The same seed writes the same bytes. The shop's products, questions, facts and the gold rule are in reward/rules.py;
here is how good the answers are, and how the annotators err. Prints the figures that data/README.md quotes.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations, pairwise, product
from pathlib import Path
from random import Random

from reward.rules import FAREWELLS, GREETINGS, INTENTS, OPENINGS, PHRASES, PRODUCTS, support_desk

SEED = 2
NUM_PER_COMBINATION = {"demonstrations": 10, "rankings": 9, "prompts": 2}  # of 24 ways to ask, each in one file only
NUM_HELDOUT = 240
NUM_ANSWERS = 4  # of a ranking

FAULTS = {  # how often an answer has it; independent of each other, so a quarter of the answers have none
    "evasive": 0.12,
    "garbled": 0.05,
    "other intent": 0.12,
    "other product": 0.10,
    "impolite": 0.30,
    "padded": 0.32,
    "invented": 0.28,
}
NOISE = {  # std of an annotator's error, utility
    "sim-1": 0.06,
    "sim-2": 0.09,
    "sim-3": 0.12,
    "sim-4": 0.15,
    "sim-5": 0.24,
}
TIE_WIDTH = 0.1  # an annotator ties answers that seem closer than this, utility
NUM_OPINIONS = {1: 0.8, 2: 0.1, 3: 0.1}  # annotators of a ranking: share of the rankings

Combination = tuple[str, str]  # intent, product


def make(seed: int = SEED) -> dict[str, list[dict]]:
    """File stem -> its records."""
    rng = Random(seed)
    asked = {combination: all_prompts(combination, rng) for combination in product(INTENTS, PRODUCTS)}
    take = {stem: [(c, asked[c].pop()) for c in asked for _ in range(n)] for stem, n in NUM_PER_COMBINATION.items()}
    for rows in take.values():
        rng.shuffle(rows)
    return {
        "demonstrations": [{"prompt": p, "completion": write_answer(c, rng)} for c, p in take["demonstrations"]],
        "rankings": [row for i, (c, p) in enumerate(take["rankings"]) for row in rankings(f"r{i:04}", c, p, rng)],
        "prompts": [{"prompt": p} for _, p in take["prompts"]],
        "heldout": [{"prompt": asked[c].pop()} for c in rng.sample(list(asked), NUM_HELDOUT)],
    }


def all_prompts(combination: Combination, rng: Random) -> list[str]:
    intent, name = combination
    questions = [question.format(product=name) for question in INTENTS[intent].questions]
    prompts = [o + (q[0].lower() + q[1:] if o else q) for o in OPENINGS for q in questions]
    rng.shuffle(prompts)
    return prompts


def write_answer(combination: Combination, rng: Random) -> str:
    """An answer with the faults that chance gives it."""
    intent, name = combination
    faults = {fault for fault, share in FAULTS.items() if rng.random() < share}
    if "other intent" in faults:
        intent = rng.choice([other for other in INTENTS if other != intent])
    if "other product" in faults:
        name = rng.choice([other for other in PRODUCTS if other != name])
    fact = [] if "evasive" in faults else [write_fact(intent, name, rng)]
    if fact and "garbled" in faults:
        fact = [garble(fact[0], write_fact(rng.choice(list(INTENTS)), name, rng), rng)]
    greeting, farewell = ([], []) if "impolite" in faults else choose_courtesies(name, rng)
    rude = rng.sample(PHRASES["rude"], rng.randint(0, 1)) if "impolite" in faults else []
    padding = choose_padding(fact, rng) if "padded" in faults or not (fact or greeting or farewell) else []
    invented = [rng.choice(PHRASES["invented"])] if "invented" in faults else []
    extras = padding + invented + rude
    rng.shuffle(extras)
    return " ".join([*greeting, *fact, *extras, *farewell])


def write_fact(intent: str, name: str, rng: Random) -> str:
    return rng.choice(INTENTS[intent].answers).format(product=name)


def garble(fact: str, other: str, rng: Random) -> str:
    """A sentence as a tired person or a small model writes it: run into another one, with a word twice or left out."""
    words, place = fact.split(), rng.randrange(1, len(fact.split()) - 1)
    kind = rng.choice(["run together", "twice", "left out"])
    if kind == "run together":
        return " ".join(words[:place] + other.split()[place:])
    return " ".join(words[: place + (kind == "twice")] + words[place + (kind == "left out") :])


def choose_courtesies(name: str, rng: Random) -> tuple[list[str], list[str]]:
    num_greetings, num_farewells = rng.choice([(1, 0), (0, 1), (1, 1)])
    greetings = [greeting.format(product=name) for greeting in rng.sample(GREETINGS, num_greetings)]
    return greetings, rng.sample(FAREWELLS, num_farewells)


def choose_padding(fact: list[str], rng: Random) -> list[str]:
    """One or two filler sentences, or, once in four, the fact again."""
    return fact if fact and rng.random() < 0.25 else rng.sample(PHRASES["filler"], rng.randint(1, 2))


def rankings(prompt_id: str, combination: Combination, prompt: str, rng: Random) -> Iterator[dict]:
    """The same answers as ranked by one to three annotators."""
    answers: list[str] = []
    while len(answers) < NUM_ANSWERS:
        answer = write_answer(combination, rng)
        answers += [answer] if answer not in answers else []
    (num_opinions,) = rng.choices(list(NUM_OPINIONS), NUM_OPINIONS.values())
    utilities = support_desk([prompt] * NUM_ANSWERS, answers)
    for annotator in rng.sample(list(NOISE), num_opinions):
        yield {
            "prompt": prompt,
            "responses": answers,
            "ranks": rank([utility + rng.gauss(0, NOISE[annotator]) for utility in utilities]),
            "annotator": annotator,
            "prompt_id": prompt_id,
            "meta": {"simulated": True},
        }


def rank(seen: list[float]) -> list[int]:
    """1 for the answer that seems best; one that seems less than TIE_WIDTH worse than the one above ties with it."""
    order = sorted(range(len(seen)), key=lambda i: -seen[i])
    ranks = [1] * len(seen)
    for above, below in pairwise(order):
        ranks[below] = ranks[above] + (seen[above] - seen[below] >= TIE_WIDTH)
    return ranks


def figures(files: dict[str, list[dict]]) -> dict[str, float]:
    """What data/README.md quotes about the data."""
    demonstrations = files["demonstrations"]
    gold = support_desk([d["prompt"] for d in demonstrations], [d["completion"] for d in demonstrations])
    by_gold = order_agreement(files["rankings"], lambda r: support_desk([r["prompt"]] * NUM_ANSWERS, r["responses"]))
    by_length = order_agreement(files["rankings"], lambda r: [len(response) for response in r["responses"]])
    share_perfect = sum(utility == 1.0 for utility in gold) / len(gold)
    return {
        "mean gold utility of the demonstrations": sum(gold) / len(gold),
        "share of demonstrations with gold utility 1": share_perfect,
        "wins (ties half) of an always good policy against the demonstrations": 1 - share_perfect / 2,
        "pair accuracy of the gold utility": by_gold,
        "pair accuracy of the longer answer": by_length,
        "pair agreement of two annotators": annotator_agreement(files["rankings"]),
        "share of pairs that an annotator tied": share_tied(files["rankings"]),
    }


def order_agreement(rows: list[dict], score) -> float:
    """Share of the pairs which the annotator did not tie where the higher score has the better rank; equal: half."""
    points = []
    for row in rows:
        scores, ranks = score(row), row["ranks"]
        for i, j in combinations(range(len(ranks)), 2):
            if ranks[i] != ranks[j]:
                points.append(sign((scores[i] - scores[j]) * (ranks[j] - ranks[i])) / 2 + 0.5)
    return sum(points) / len(points)


def annotator_agreement(rows: list[dict]) -> float:
    """Share of the pairs that two annotators of a prompt both did not tie which they order alike."""
    opinions = defaultdict(list)
    for row in rows:
        opinions[row["prompt_id"]].append(row["ranks"])
    products = [
        sign((a[i] - a[j]) * (b[i] - b[j]))
        for ranks in opinions.values()
        for a, b in combinations(ranks, 2)
        for i, j in combinations(range(NUM_ANSWERS), 2)
    ]
    return products.count(1) / (products.count(1) + products.count(-1))


def share_tied(rows: list[dict]) -> float:
    is_tie = [a == b for row in rows for a, b in combinations(row["ranks"], 2)]
    return sum(is_tie) / len(is_tie)


def sign(x: float) -> int:
    return (x > 0) - (x < 0)


def write(files: dict[str, list[dict]], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, rows in files.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{stem}.jsonl").write_text(lines, encoding="utf-8", newline="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "toy")
    folder = parser.parse_args().out
    files = make()
    write(files, folder)
    for stem, rows in files.items():
        print(f"{folder / stem}.jsonl: {len(rows)} records")
    for name, value in figures(files).items():
        print(f"{name}: {value:.3f}")


if __name__ == "__main__":
    main()
