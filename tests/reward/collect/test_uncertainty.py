"""First what the reward model is least sure of, and a share of the items in random places."""

import math

import pytest
from collect_world import NOW, add_new_items, add_people, hand_in, items_of, new_item, take
from scipy.special import expit
from scipy.stats import entropy, ks_2samp

from reward.collect.intake.uncertainty import binary_entropy, pair_entropy, priorities, prioritise_new, prioritise_open
from reward.collect.ranking.items import add_items


def score(prompts, responses):
    """Of the answers "i.0", "i.1", ...: i * j, so that item 0 is undecided and a later item is the clearer."""
    return [float(text.split(".")[0]) * float(text.split(".")[1]) for text in responses]


def test_equal_scores_are_one_bit_of_doubt_and_far_ones_none():
    assert pair_entropy([2.0, 2.0, 2.0]) == 1.0
    assert pair_entropy([0.0, 1e6]) == 0.0


def test_the_entropy_is_the_mean_over_pairs_of_that_of_the_bradley_terry_probability():
    scores = [0.3, -1.2, 2.0]
    expected = [entropy([expit(d), expit(-d)], base=2) for d in (1.5, -1.7, -3.2)]
    assert pair_entropy(scores) == pytest.approx(sum(expected) / 3, abs=1e-12)


def test_the_entropy_does_not_depend_on_the_order_of_the_answers_nor_on_a_shift():
    assert pair_entropy([0.1, 0.7, 3.0]) == pytest.approx(pair_entropy([103.0, 100.7, 100.1]))


def test_binary_entropy_is_that_of_a_coin():
    assert binary_entropy(0.0) == binary_entropy(1.0) == 0.0
    assert binary_entropy(0.25) == pytest.approx(2 - 0.75 * math.log2(3))


def test_without_a_random_share_each_priority_is_its_entropy():
    assert priorities({"a": 0.2, "b": 0.9}, 0.0, "seed") == {"a": (0.2, "uncertainty"), "b": (0.9, "uncertainty")}


def test_about_that_share_of_the_items_is_in_random_places_the_same_ones_each_time():
    entropies = {str(i): i / 1000 for i in range(1000)}
    chosen = priorities(entropies, 0.3, "seed")
    random = [name for name in chosen if chosen[name][1] == "random"]
    assert 250 < len(random) < 350
    assert priorities(dict(reversed(entropies.items())), 0.3, "seed") == chosen
    assert priorities(entropies, 0.3, "other") != chosen
    own, given = [entropies[name] for name in random], [chosen[name][0] for name in random]
    assert ks_2samp(given, list(entropies.values())).pvalue > 0.01  # spread over the queue like all the others
    assert abs(sum(a > b for a, b in zip(own, given, strict=True)) / len(random) - 0.5) < 0.1


def test_new_items_say_how_they_came_by_their_place():
    first, second = prioritise_new([new_item(0), new_item(5, meta={"kept": 1})], score, 0.0, "seed")
    assert (first.priority, first.meta) == (1.0, {"priority_from": "uncertainty", "entropy": 1.0})
    assert second.priority == second.meta["entropy"] < 0.1 and second.meta["kept"] == 1


def test_the_least_certain_item_is_asked_about_first(database):
    (ann,) = add_people(database, "ann")
    with database.write() as session:
        add_items(session, prioritise_new([new_item(i) for i in (3, 0, 2)], score, 0.0, "seed"), "command line", NOW)
    assert take(database, ann).messages == [{"role": "user", "content": "Prompt 0?"}]


def test_an_item_that_comes_without_a_reward_model_is_neither_first_nor_last(database):
    (ann,) = add_people(database, "ann")
    with database.write() as session:
        add_items(session, prioritise_new([new_item(0), new_item(5)], score, 0.0, "seed"), "command line", NOW)
    add_new_items(database, 1, first=7)
    prompts = []
    for _ in range(3):
        work = take(database, ann)
        prompts.append(work.messages[0]["content"])
        hand_in(database, ann, work)
    assert prompts == ["Prompt 0?", "Prompt 7?", "Prompt 5?"]


def test_open_items_get_new_places_and_comparisons_keep_theirs(database):
    add_new_items(database, 3)
    with database.write() as session:
        add_items(session, [new_item(9, comparison="c")], "command line", NOW)
    assert prioritise_open(database, score, 0.0, NOW, "outputs/toy/reward") == 3
    assert sorted(item.priority for item in items_of(database, comparison=None))[-1] == 1.0
    assert [item.priority for item in items_of(database, comparison="c")] == [0.5]
    assert all(item.meta["priority_from"] == "uncertainty" for item in items_of(database, comparison=None))
