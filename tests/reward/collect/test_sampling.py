"""Answers to rank: distinct ones, the same again from the same seed, and none that a later stage could not use."""

from collections import Counter
from types import SimpleNamespace

import pytest
from tiny_world import write_jsonl

from reward.collect.intake.policies import data_settings, find_policy
from reward.collect.intake.sampling import Drawing, sample_prompts
from rlhf.artifacts.commit import commit
from rlhf.config.schema import LongPrompts
from rlhf.data.load import prompt_key, split_of
from rlhf.errors import ArtifactError, UserError
from rlhf.text.batches import pad_right
from rlhf.text.encoding import context_of, encode_sample

QUESTIONS = [f"what is the time in {place} {number}" for place in ("paris", "rome", "oslo") for number in range(10)]
SHARED = {
    "valid_share": 0.2,
    "test_share": 0.2,
    "max_prompt_tokens": 40,
    "max_response_tokens": 8,
    "long_prompts": "error",
}


def keys(questions) -> set[str]:
    return {prompt_key([{"role": "user", "content": text}]) for text in questions}


@pytest.fixture(scope="module")
def talkers(make_policy, tokenizer):
    """Two policies that end their answers: each learned, in 60 steps, to say one or two words whatever it is asked."""
    return [taught(make_policy(seed), tokenizer) for seed in (1, 2)]


def taught(policy, tokenizer):
    import torch

    words = ["yes", "no", "maybe", "hello", "paris", "rome", "oslo", "berlin"]
    answers = [f"{one} {other}".strip() for one in words for other in ("", *words)]
    context = context_of(tokenizer, [{"role": "user", "content": "x"}])
    rows = [context.ids + encode_sample(tokenizer, context, answer) for answer in answers]
    ids, mask = pad_right(rows, tokenizer.pad_token_id)
    optimizer = torch.optim.Adam(policy.parameters(), 0.02)
    for _ in range(60):
        policy(ids, attention_mask=mask.long(), labels=ids.masked_fill(~mask, -100)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return policy


@pytest.fixture
def world(tmp_path, talkers, tokenizer):
    """An SFT and a PPO artifact that answer in a word or two, a reward artifact's manifest, 30 prompts."""
    for name, policy, trained in (("sft", 0, QUESTIONS[:5]), ("ppo", 1, QUESTIONS[5:8]), ("reward", 1, [])):
        folder = tmp_path / name
        talkers[policy].save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        (folder / "train_prompts.txt").write_text("\n".join(keys(trained)))
        facts = {"data": [], "inputs": [], "base_model": None, "metrics": {}, "seconds": 0.0}
        commit(folder, name, config={"model": {"dtype": "float32", "attention": "sdpa"}, "data": SHARED}, **facts)
    prompts = write_jsonl(
        tmp_path / "prompts.jsonl", [{"prompt": text, "prompt_id": i} for i, text in enumerate(QUESTIONS)]
    )
    return SimpleNamespace(folder=tmp_path, sft=str(tmp_path / "sft"), ppo=str(tmp_path / "ppo"), prompts=str(prompts))


@pytest.fixture
def sample(world):
    """sample(num_prompts, policies=[...], heldout=...): what came of sampling 3 answers each, unless said otherwise."""

    def run(num_prompts=None, policies=None, **changes):
        sources = [find_policy(path) for path in policies or [world.sft]]
        own = {name: changes.pop(name) for name in list(changes) if name in Drawing.__dataclass_fields__}
        drawing = Drawing(**{"num_responses": 3, "temperature": 1.0, "seed": 0, "batch_size": 8, **own})
        return sample_prompts(sources, data_settings(sources, prompts=world.prompts, **changes), num_prompts, drawing)

    return run


def answers(told) -> dict[str, list[str]]:
    return {item.messages[-1]["content"]: [response.text for response in item.responses] for item in told.items}


def test_each_prompt_gets_so_many_distinct_answers_that_say_where_they_are_from(sample, world):
    told = sample(10)
    assert len(told.items) == 10
    for item in told.items:
        assert len({tuple(response.text.split()) for response in item.responses}) == 3
        for response in item.responses:
            source = dict(response.source)
            assert source.pop("sample") < 15
            sha256 = find_policy(world.sft).manifest_sha256
            assert source == {"policy": world.sft, "manifest_sha256": sha256, "temperature": 1.0, "seed": 0}
        assert item.prompt_id == str(QUESTIONS.index(item.messages[-1]["content"]))


def test_the_same_seed_gives_the_same_answers_and_another_seed_others(sample):
    assert answers(sample(6)) == answers(sample(6))
    assert answers(sample(6, seed=1)) != answers(sample(6))


def test_more_prompts_and_other_batches_change_no_answer(sample):
    few, many = answers(sample(4)), answers(sample(12, batch_size=5))
    assert {prompt: many[prompt] for prompt in few} == few


def test_a_policy_that_says_one_thing_only_leaves_nothing_to_rank(sample):
    told = sample(5, temperature=1e-4)
    assert told.items == [] or all(len(item.responses) >= 2 for item in told.items)
    assert sum(told.left_out.values()) + len(told.items) == 5
    assert "fewer than 2 distinct answers that end within 8 tokens" in "\n".join(told.lines())


def test_every_answer_fits_the_reward_stage_s_limit(sample, tokenizer):
    for texts in answers(sample(10)).values():
        assert all(len(tokenizer(text, add_special_tokens=False).input_ids) + 1 <= 8 for text in texts)


def test_all_splits_are_asked_about_as_the_stages_will_split_the_rankings(sample):
    told = sample()
    expected = Counter(split_of(key, 0.2, 0.2) for key in keys(QUESTIONS))
    assert told.splits == expected and set(expected) == {"train", "valid", "test"}


def test_held_out_prompts_are_never_asked_about_for_training_and_are_counted(sample, world):
    heldout = write_jsonl(world.folder / "heldout.jsonl", [{"prompt": text} for text in QUESTIONS[:4]])
    told = sample(heldout=str(heldout))
    assert not keys(answers(told)) & keys(QUESTIONS[:4])
    assert told.left_out["they are held out for the evaluation"] == 4


def test_a_comparison_has_one_answer_of_each_policy_on_prompts_that_none_was_trained_on(sample, world):
    told = sample(policies=[world.sft, world.ppo], comparison="sft against ppo")
    assert not keys(answers(told)) & keys(QUESTIONS[:8])
    assert told.left_out["a policy was trained on them"] == 8
    for item in told.items:
        assert [response.source["policy"] for response in item.responses] == [world.sft, world.ppo]
        assert item.comparison == "sft against ppo"
        assert item.priority == 1.0  # before what there is to train on


def test_a_comparison_tells_no_splits_and_warns_of_a_policy_whose_training_is_not_known(sample, world, talkers):
    told = sample(policies=[world.sft, world.ppo], comparison="c")
    assert told.lines()[0] == f"22 prompts, {len(told.items)} with answers to rank"
    assert not any("warning" in line for line in told.lines())
    assert "(train " in sample(6).lines()[0]
    told = sample(6, policies=[world.sft, str(world.folder / "sft" / "model")], comparison="c")
    assert told.lines()[-1] == (
        f"warning: {world.folder}/sft/model is no artifact of ours: which of the prompts it was trained on is not known"
    )


def test_in_a_comparison_the_same_answer_of_two_policies_stays(sample, world, talkers, tokenizer):
    twin = world.folder / "twin"
    talkers[0].save_pretrained(twin)
    tokenizer.save_pretrained(twin)
    told = sample(6, policies=[world.sft, str(twin)], comparison="twins")
    assert told.items and all(item.responses[0].text == item.responses[1].text for item in told.items)
    assert told.items[0].responses[1].source["manifest_sha256"] is None  # a model's folder is no artifact


def test_several_policies_share_out_the_answers(sample, world):
    told = sample(8, policies=[world.sft, world.ppo], num_responses=3)
    full = [item for item in told.items if len(item.responses) == 3]
    assert full
    for item in full:
        assert Counter(response.source["policy"] for response in item.responses) == {world.sft: 2, world.ppo: 1}


def test_prompts_are_split_and_cut_as_the_artifact_was_trained(world):
    data = data_settings([find_policy(world.sft)], prompts=world.prompts, max_response_tokens=None)
    assert (data.valid_share, data.max_response_tokens, data.long_prompts) == (0.2, 8, LongPrompts.error)


def test_an_altered_artifact_and_one_that_answers_nothing_are_refused(world):
    with pytest.raises(ArtifactError, match="is an artifact of reward, not a policy"):
        find_policy(str(world.folder / "reward"))
    (world.folder / "sft" / "train_prompts.txt").write_text("other")
    with pytest.raises(ArtifactError, match=r"train_prompts\.txt: truncated"):
        find_policy(world.sft)


def test_what_is_no_model_is_named(sample, world):
    with pytest.raises(UserError, match=r"^--policy .*nowhere: no such folder, and no hub id"):
        sample(policies=[str(world.folder / "nowhere")])


def test_a_folder_without_a_model_is_named(sample, world):
    (world.folder / "empty").mkdir()
    with pytest.raises(UserError, match=r"^--policy .*empty: cannot load its tokenizer"):
        sample(policies=[str(world.folder / "empty")])


def test_when_all_prompts_are_left_out_nothing_is_sampled(sample, world):
    with pytest.raises(UserError, match="all 30 prompts are left out, since they are held out for the evaluation"):
        sample(heldout=world.prompts)
