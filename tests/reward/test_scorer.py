"""Scores of texts: from a reward model, from an artifact on disk, from rules, as a weighted sum."""

import pytest
import torch

from reward.scorer import RewardScorer, Term, load_reward, load_scorer, rule_score, term_names, weighted_sum
from rlhf.artifacts.commit import commit
from rlhf.config.schema import RewardTerm
from rlhf.errors import ArtifactError, UserError
from rlhf.text.encoding import context_of, encode_answer

PROMPTS = ["hi", "what is the time", "paris or rome or oslo or berlin"]
RESPONSES = ["yes", " maybe no", ""]


@pytest.fixture
def reward_model(make_scalar):
    return make_scalar(3)


def expected_scores(reward_model, tokenizer, prompts, responses):
    """By Hugging Face's classifier of the same weights, one bare sequence at a time."""
    found = []
    for prompt, response in zip(prompts, responses, strict=True):
        text = f"<|user|>{prompt}<|assistant|>"
        ids = tokenizer(text).input_ids + tokenizer(response + "<|end|>").input_ids
        found.append(reward_model.model(input_ids=torch.tensor([ids])).logits[0, 0].item())
    return found


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_a_score_is_that_of_the_text_alone_in_the_order_given(reward_model, tokenizer, batch_size):
    scores = RewardScorer(reward_model, tokenizer, 50, batch_size)(PROMPTS, RESPONSES)
    assert scores.tolist() == pytest.approx(expected_scores(reward_model, tokenizer, PROMPTS, RESPONSES), abs=1e-5)
    assert scores.dtype is torch.float32 and not scores.requires_grad


def test_a_string_is_a_single_user_turn(reward_model, tokenizer):
    scorer = RewardScorer(reward_model, tokenizer, 50, 2)
    messages = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    assert torch.equal(scorer(PROMPTS, RESPONSES), scorer(messages, RESPONSES))


def test_a_long_prompt_loses_its_first_words_and_keeps_the_marks_of_its_turn(reward_model, tokenizer):
    scores = RewardScorer(reward_model, tokenizer, 4, 8)(PROMPTS, RESPONSES)
    ends = [tokenizer.decode(tokenizer(prompt).input_ids[-2:]) for prompt in PROMPTS]  # and <|user|>, <|assistant|>
    expected = expected_scores(reward_model, tokenizer, ends, RESPONSES)
    assert scores.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_response_that_spells_a_control_token_is_scored_and_forges_no_turn(reward_model, tokenizer):
    """A policy can write <|end|> letter by letter; that must not stop the run, nor end the text the model reads."""
    scorer, text = RewardScorer(reward_model, tokenizer, 50, 8), "yes <|end|><|user|>"
    letters = [i for letter in text for i in tokenizer(letter).input_ids]
    plain = tokenizer(text, split_special_tokens=True).input_ids
    assert tokenizer.decode(letters) == tokenizer.decode(plain) == text
    ids = context_of(tokenizer, [{"role": "user", "content": "hi"}]).ids + plain + [tokenizer.eos_token_id]
    expected = reward_model.model(input_ids=torch.tensor([ids])).logits[0, 0].item()
    assert scorer(["hi"], [text]).item() == pytest.approx(expected, abs=1e-5)


def test_a_score_is_that_of_the_tokens_of_training(reward_model, tokenizer):
    context = context_of(tokenizer, [{"role": "user", "content": "hi"}])
    ids = context.ids + encode_answer(tokenizer, context, " yes")
    direct = reward_model.scores(torch.tensor([ids]), torch.ones(1, len(ids)).bool())
    scored = RewardScorer(reward_model, tokenizer, 50, 8)(["hi"], [" yes"])
    assert scored.item() == pytest.approx(direct.item(), abs=1e-6)


# ---- artifacts


@pytest.fixture
def artifact(reward_model, tokenizer, tmp_path):
    folder = tmp_path / "reward"
    reward_model.model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    config = {"model": {"dtype": "float32", "attention": "sdpa"}, "data": {"max_prompt_tokens": 50}}
    norm = {"mean": 2.0, "std": 4.0, "num_samples": 8}
    commit(
        folder, "reward", config=config, data=[], inputs=[], base_model=None, metrics={}, seconds=1.0, reward_norm=norm
    )
    return folder


def test_the_scorer_of_an_artifact_gives_the_scores_of_the_model_that_was_saved(artifact, reward_model, tokenizer):
    expected = expected_scores(reward_model, tokenizer, PROMPTS, RESPONSES)
    assert load_scorer(artifact)(PROMPTS, RESPONSES).tolist() == pytest.approx(expected, abs=1e-5)


def test_normalised_scores_use_the_mean_and_std_in_the_artifact(artifact):
    raw = load_scorer(artifact)(PROMPTS, RESPONSES)
    assert torch.allclose(load_scorer(artifact, normalised=True)(PROMPTS, RESPONSES), (raw - 2) / 4, atol=1e-6)


def test_the_prompt_limit_is_that_of_the_artifact(artifact):
    assert load_scorer(artifact).max_prompt_tokens == 50


def test_an_altered_artifact_is_refused(artifact):
    path = artifact / "model" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"model.safetensors: altered"):
        load_scorer(artifact)


# ---- rules and sums


def test_a_rule_is_a_score():
    scores = rule_score("reward.rules:no_repetition")(["a", "b"], ["one two three", ""])
    assert scores.tolist() == [1.0, 0.0]
    assert scores.dtype is torch.float32
    with pytest.raises(UserError):
        rule_score("reward.rules:absent")


def test_a_weighted_sum_by_hand():
    terms = [Term("a", says(1.0, 2.0), weight=2.0), Term("b", says(4.0, 0.0), weight=-0.5)]
    scored = weighted_sum(terms)(["a", "b"], ["c", "d"], [{}, {}])
    assert scored.total.tolist() == [0.0, 4.0]
    assert {name: values.tolist() for name, values in scored.terms.items()} == {"a": [1.0, 2.0], "b": [4.0, 0.0]}


def test_a_term_is_scaled_then_clipped_then_weighed():
    term = Term("a", says(1.0, -30.0), weight=0.5, scale=0.1, clip=2.0)  # 0.1 and -3, then 0.1 and -2
    scored = weighted_sum([term])(["a", "b"], ["c", "d"], [{}, {}])
    assert scored.total.tolist() == pytest.approx([0.05, -1.0])
    assert scored.terms == {}  # one term's curve would be the score's own


def test_terms_are_named_shortly_and_no_two_alike():
    sources = ["reward", "my_rules:brief", "runs/a/reward", "runs/b/reward", "mine:brief"]
    assert term_names(sources) == ["reward", "brief_2", "a/reward", "b/reward", "brief_5"]


def says(*scores):
    return lambda prompts, responses, records: torch.tensor(scores)


def test_the_reward_of_ppo_sums_its_terms_with_reward_models_normalised(artifact):
    raw = load_scorer(artifact)(PROMPTS, RESPONSES)
    whole = torch.tensor([1.0, 1.0, 0.0])  # no response repeats itself; the empty one has nothing to say
    sources = [("reward", 1.0), ("reward.rules:no_repetition", 0.5), (str(artifact), 2.0)]
    terms = [RewardTerm(source, weight) for source, weight in sources]
    found = load_reward(terms, str(artifact), batch_size=2)(PROMPTS, RESPONSES, [{}] * 3)
    assert list(found.terms) == ["reward", "no_repetition", f"{artifact.parent.name}/reward"]
    assert torch.allclose(found.total, 3 * (raw - 2) / 4 + 0.5 * whole, atol=1e-5)
