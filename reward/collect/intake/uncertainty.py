"""Which items to ask about first: those whose order a reward model is least sure of.

Rankings of hard pairs teach more, and rankings of nothing else would misrepresent the prompts. So a share of the items
keeps a random place among the others, and each item says how it came by its place. Places are from 0 to 1, as entropies
in bits are; items that came without a reward model are in the middle (items.MIDDLE_PRIORITY).
"""

import math
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from statistics import fmean

from sqlalchemy import select
from sqlalchemy.orm import Session

from reward.collect.home import ACTOR
from reward.collect.ranking.items import NewItem
from reward.collect.store import audit
from reward.collect.store.collection import collection_of, with_texts
from reward.collect.store.database import Database
from reward.collect.store.tables import Item, Prompt
from rlhf.artifacts.manifest import load_manifest
from rlhf.errors import ArtifactError

Score = Callable[[list, list[str]], list[float]]  # (prompts, responses) -> one score each


def load_score(artifact: str, trust_remote_code: bool = False) -> Score:
    """The score of a reward artifact, verified, where models live. Raises ArtifactError."""
    from reward.scorer import load_scorer
    from rlhf.models.policies import device

    if (stage := load_manifest(artifact)["stage"]) != "reward":
        raise ArtifactError(f"{artifact} is an artifact of {stage}, and one of stages.reward is needed")
    scorer = load_scorer(artifact, prepare=lambda model: model.to(device()), trust_remote_code=trust_remote_code)
    return lambda prompts, responses: scorer(prompts, responses).tolist()


def pair_entropy(scores: list[float]) -> float:
    """Mean over pairs of the binary entropy, in bits, of P(i beats j) = sigma(r_i - r_j): 1 where all are equal."""
    return fmean(binary_entropy(1 / (1 + math.exp(-min(abs(a - b), 700)))) for a, b in combinations(scores, 2))


def binary_entropy(p: float) -> float:
    """-p log2 p - (1 - p) log2 (1 - p); zero at both ends."""
    return sum(-q * math.log2(q) for q in (p, 1 - p) if q > 0)


def priorities(entropies: dict[str, float], random_share: float, seed: str) -> dict[str, tuple[float, str]]:
    """Item name -> (priority, "uncertainty" | "random"). An item's priority is its entropy, or in that share of the
    items the entropy of one that is drawn at random: a random place. The same names and seed give the same places.
    """
    ordered = sorted(entropies.values())
    chosen = {}
    for name, entropy in entropies.items():
        chance = random.Random(f"{seed} {name}")
        is_random = chance.random() < random_share
        chosen[name] = (chance.choice(ordered), "random") if is_random else (entropy, "uncertainty")
    return chosen


def prioritise_new(items: list[NewItem], score: Score, random_share: float, seed: str) -> list[NewItem]:
    """The items with a priority, and in `meta` how it came about."""
    names = [f"{number} {item.where}" for number, item in enumerate(items)]
    texts = [[response.text for response in item.responses] for item in items]
    content = {name: (item.messages, own) for name, item, own in zip(names, items, texts, strict=True)}
    places = place(content, score, random_share, seed)
    return [
        replace(item, priority=places[name][0], meta={**item.meta, **places[name][1]})
        for name, item in zip(names, items, strict=True)
    ]


def prioritise_open(database: Database, score: Score, random_share: float, now: float, artifact: str) -> int:
    """Gives the open items new places; returns how many. Gold items and comparisons keep theirs.

    Scores outside the transaction that writes: annotators need not wait for a model.
    """
    with database.read() as session:
        content = {item.id: content_of(session, item) for item in open_items(session)}
        seed = collection_of(session).seed
    places = place(content, score, random_share, seed)
    with database.write() as session:
        audit.one_writer(session)
        for item in open_items(session):
            if item.id in places:
                item.priority, meta = places[item.id]
                item.meta = {**item.meta, **meta}
        after = {"items": len(places), "random_share": random_share, "reward": artifact}
        audit.append(session, ACTOR, "prioritise", "items", None, after, now=now)
    return len(places)


def open_items(session: Session) -> list[Item]:
    """Those that somebody may still be asked about, and that are there to train on."""
    return list(
        session.scalars(select(Item).where(Item.state == "open", Item.kind == "normal", Item.comparison.is_(None)))
    )


def content_of(session: Session, item: Item) -> tuple[list, list[str]]:
    """(messages, texts of the answers) of an item."""
    texts = [text for _, text in with_texts(session, item.response_ids)]
    return session.get_one(Prompt, item.prompt_id).messages, texts


def place(content: dict[str, tuple[list, list[str]]], score: Score, random_share: float, seed: str) -> dict:
    """Name -> (priority, what an item keeps of where it comes from). content: name -> (messages, answers)."""
    entropies = entropies_of(content, score)
    chosen = priorities(entropies, random_share, seed)
    return {
        name: (priority, {"priority_from": where, "entropy": entropies[name]})
        for name, (priority, where) in chosen.items()
    }


def entropies_of(content: dict[str, tuple[list, list[str]]], score: Score) -> dict[str, float]:
    """Name -> entropy, in bits per pair. All answers are scored in one go."""
    rows = [(messages, text) for messages, texts in content.values() for text in texts]
    scores = iter(score([messages for messages, _ in rows], [text for _, text in rows]) if rows else [])
    return {name: pair_entropy([next(scores) for _ in texts]) for name, (_, texts) in content.items()}
