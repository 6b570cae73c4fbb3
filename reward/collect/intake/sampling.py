"""Answers for people to rank: K distinct ones per prompt, sampled from policies.

What a policy answers depends on the policy, the seed, the temperature and the prompt alone: not on the other prompts,
nor on their order. So sampling the same again gives the same items, and the collection knows them already.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

from reward.collect.intake.policies import PolicySource, load, trained_prompts
from reward.collect.ranking.items import MIDDLE_PRIORITY, NewItem, NewResponse
from reward.collect.texts import is_text, plural
from rlhf.config.schema import DataConfig, RolloutConfig
from rlhf.data.load import SPLITS, Prompt, distinct, parse_prompt, prompt_key, prompt_keys, read_records, split_of
from rlhf.data.report import DataReport
from rlhf.errors import UserError
from rlhf.hashing import text_sha256
from rlhf.tracking.display import open_display

COMPARISON_PRIORITY = 1.0  # asked for by name, so it comes before what is there to train on
DRAWS_PER_ANSWER = 5  # after so many times the wanted answers, a policy that repeats itself is left alone


@dataclass(frozen=True)
class Drawing:
    """How answers are drawn. comparison: its name, where each policy gives one answer per prompt."""

    num_responses: int
    temperature: float
    seed: int
    batch_size: int
    comparison: str | None = None
    trust_remote_code: bool = False


@dataclass
class Sampled:
    """What came of sampling. splits: prompts by split, as the stages will split them; none in a comparison."""

    items: list[NewItem] = field(default_factory=list)
    num_prompts: int = 0
    splits: Counter = field(default_factory=Counter)
    left_out: Counter = field(default_factory=Counter)  # reason -> prompts
    warnings: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For the terminal."""
        splits = ", ".join(f"{split} {self.splits[split]}" for split in SPLITS)
        drawn = plural(self.num_prompts, "prompt") + (f" ({splits})" if self.splits else "")
        left_out = [f"{plural(number, 'prompt')} left out: {reason}" for reason, number in self.left_out.items()]
        return [f"{drawn}, {len(self.items)} with answers to rank", *left_out, *self.warnings]


def sample_prompts(sources: list[PolicySource], data: DataConfig, limit: int | None, drawing: Drawing) -> Sampled:
    """Items with answers of the policies to at most `limit` prompts, with a progress bar. data: as the config's."""
    told = Sampled()
    prompts = choose_prompts(sources, data, limit, drawing, told)
    wanted = len(prompts) * (len(sources) if drawing.comparison else drawing.num_responses)
    display, number = open_display("answers", wanted, 0, ()), count(1)
    try:
        return sample_items(sources, prompts, data, drawing, told, lambda: display.update(next(number), {}))
    finally:
        display.close()


# Prompts


def choose_prompts(sources: list[PolicySource], data: DataConfig, limit: int | None, drawing: Drawing, told: Sampled):
    """At most `limit` distinct prompts of data.prompts, which ones the seed decides; a larger limit adds to them.

    For training, those of data.heldout are left out. Every split of the others is asked about: the reward stage splits
    rankings by the same hash of the prompt, and validates and tests on the prompts that no stage trains on.
    For a comparison, what the policies were trained on is left out.
    """
    prompts = distinct([prompt for prompt, _ in read_records(data, DataReport(), "prompts", parse_prompt)], None)
    if drawing.comparison:
        reason, excluded = "a policy was trained on them", trained_prompts(sources)
        told.warnings += [unknown_training(source) for source in sources if source.manifest is None]
    else:
        reason, excluded = "they are held out for the evaluation", heldout_keys(data)
    allowed = [prompt for prompt in prompts if not excluded & {prompt.key, prompt_key(prompt.messages)}]
    if len(allowed) < len(prompts):
        told.left_out[reason] = len(prompts) - len(allowed)
    if not allowed:
        raise UserError(f"{data.prompts}: all {len(prompts)} prompts are left out, since {reason}; give others")
    chosen = sorted(allowed, key=lambda prompt: text_sha256(f"{drawing.seed} {prompt_key(prompt.messages)}"))[:limit]
    told.num_prompts = len(chosen)
    if not drawing.comparison:  # which nothing is trained on
        told.splits.update(split_of(prompt.key, data.valid_share, data.test_share) for prompt in chosen)
    return chosen


def unknown_training(source: PolicySource) -> str:
    return f"warning: {source.path} is no artifact of ours: which of the prompts it was trained on is not known"


def heldout_keys(data: DataConfig) -> set[str]:
    """The keys of the prompts that only the evaluation may see. data.heldout: a source, or null where there is none."""
    if data.heldout is None:
        return set()
    return set(prompt_keys([prompt for prompt, _ in read_records(data, DataReport(), "heldout", parse_prompt)]))


# Answers

Advance = Callable[[], None]  # called at each new answer


def sample_items(
    sources: list[PolicySource],
    prompts: list[Prompt],
    data: DataConfig,
    drawing: Drawing,
    told: Sampled,
    advance: Advance,
) -> Sampled:
    """Adds to `told` an item per prompt: K answers shared out evenly between the policies."""
    answers = {prompt_key(prompt.messages): [] for prompt in prompts}
    for number, source in enumerate(sources):
        share = drawing.num_responses // len(sources) + (number < drawing.num_responses % len(sources))
        add_answers(source, prompts, data, drawing, 1 if drawing.comparison else share, answers, advance)
    for prompt in prompts:
        own = answers[prompt_key(prompt.messages)]
        if drawing.comparison and len(own) < len(sources):
            told.left_out["a policy gave no answer"] += 1
        elif len(own) < 2:
            told.left_out[f"fewer than 2 distinct answers that end within {data.max_response_tokens} tokens"] += 1
        else:
            told.items.append(new_item(prompt, own, drawing.comparison))
    return told


def new_item(prompt: Prompt, responses: list[NewResponse], comparison: str | None) -> NewItem:
    prompt_id, group = (prompt.meta.get(name) for name in ("prompt_id", "group"))
    return NewItem(
        messages=list(prompt.messages),
        responses=responses,
        where=prompt.where,
        prompt_id=None if prompt_id is None else str(prompt_id),
        group=None if group is None else str(group),
        comparison=comparison,
        priority=MIDDLE_PRIORITY if comparison is None else COMPARISON_PRIORITY,
    )


def add_answers(source, prompts, data: DataConfig, drawing: Drawing, wanted: int, answers: dict, advance: Advance):
    """Adds `wanted` answers of a policy to each prompt, none of them there yet; in a comparison, what it says first."""
    draw = drawer(source, prompts, data, drawing)
    record = {"policy": source.path, "manifest_sha256": source.manifest_sha256}
    record |= {"temperature": drawing.temperature, "seed": drawing.seed}
    goals = {name: len(own) + wanted for name, own in answers.items()}
    for sample in range(1 if drawing.comparison else wanted * DRAWS_PER_ANSWER):
        missing = [name for name, own in answers.items() if len(own) < goals[name]]
        for name, text in draw(missing, sample):
            if is_new(text, [] if drawing.comparison else answers[name]):
                answers[name].append(NewResponse(text, {**record, "sample": sample}))
                advance()


def drawer(source: PolicySource, prompts: list[Prompt], data: DataConfig, drawing: Drawing):
    """draw(keys of prompts, number of the sample): yields (key, answer of the policy).

    For training only answers that end within the token limit: the reward stage would leave out any other.
    """
    from rlhf.models.policies import require_context
    from rlhf.rollout.choose import sampler_of
    from rlhf.text.control_tokens import control_tokens
    from rlhf.text.encoding import encode_sample
    from rlhf.text.prompts import prompt_contexts

    policy, tokenizer = load(source, drawing.trust_remote_code)
    require_context(policy, data)
    rollout = RolloutConfig(temperature=drawing.temperature, batch_size=drawing.batch_size)
    sampler = sampler_of(rollout, policy, tokenizer, data.max_response_tokens, drawing.seed)
    kept = prompt_contexts(tokenizer, prompts, data, DataReport())
    contexts = {prompt_key(prompt.messages): context for prompt, context in kept}

    def is_learnable(context, text: str) -> bool:
        fits = len(encode_sample(tokenizer, context, text)) <= data.max_response_tokens
        return fits and not control_tokens(tokenizer).search(text)

    def draw(wanted: list[str], sample: int) -> Iterator[tuple[str, str]]:
        for names in batches([name for name in wanted if name in contexts], drawing.batch_size):
            ids = [contexts[name].ids for name in names]
            texts = sampler.texts(sampler(policy, ids, "collect", sample, names=names))
            for name, text in zip(names, texts, strict=True):
                if drawing.comparison or is_learnable(contexts[name], text):
                    yield name, text

    return draw


def is_new(text: str, others: list[NewResponse]) -> bool:
    """Whether a person would tell it from the others: it says something, and not the same but for white space."""
    words = text.split()
    return bool(words) and is_text(text) and all(words != other.text.split() for other in others)


def batches(names: list[str], size: int) -> Iterator[list[str]]:
    return (names[i : i + size] for i in range(0, len(names), size))
