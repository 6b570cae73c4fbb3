"""Rewards that are a function instead of a model, and the gold rule that judges the toy world.

A rule gives each response a number, higher is better. Write your own in any module that Python can import from the
folder you start the stages in, say my_rules.py:

    from reward.rules import rule

    @rule
    def short(prompts, responses):
        return [1.0 if len(response.split()) <= 20 else 0.0 for response in responses]

and name it where a config asks for a rule: `my_rules:short`. prompts: B dialogues, each a list of messages
{"role": ..., "content": ...} that ends with the user's turn; responses: B strings; the result: B numbers. A function
with a third parameter `records` is also given B dicts: what each prompt's record holds beside the prompt, such as a
`reference` answer. It may be `async`. Only functions marked with @rule can be named, so that a config file from
elsewhere cannot call whatever is installed. docs/rewards.md has examples.
"""

import asyncio
import inspect
import re
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, wraps
from importlib import import_module
from math import prod

from rlhf.errors import UserError

Messages = list[dict[str, str]]
Rule = Callable[..., list[float]]  # (prompts, responses, records=None)

RULES: dict[str, Rule] = {}  # "module:function" -> what @rule has marked so far


def rule(function: Callable) -> Rule:
    """The function itself, registered as a reward that a config may name, with its number of scores checked.

    A prompt that is a string is a single user turn; without records each is {}.
    """
    name = f"{function.__module__}:{function.__qualname__}"
    sees_records = "records" in inspect.signature(function).parameters

    @wraps(function)
    def checked(prompts, responses, records=None):
        more = {"records": list(records or [{}] * len(responses))} if sees_records else {}
        try:
            result = function([_as_messages(prompt) for prompt in prompts], list(responses), **more)
            scores = [float(score) for score in (_awaited(result) if inspect.iscoroutine(result) else result)]
        except UserError:  # of a rule of ours, which says itself what to do
            raise
        except Exception as error:  # it is the user's function: it may raise anything
            raise UserError(
                f"rule '{name}' failed ({type(error).__name__}: {error}); mend it, run.debug=true shows where"
            ) from error
        if len(scores) != len(responses):
            raise UserError(
                f"rule '{name}' gave {len(scores)} scores for {len(responses)} responses; return one for each"
            )
        return scores

    RULES[name] = checked
    return checked


def _awaited(coroutine: Coroutine) -> list[float]:
    """What a coroutine returns; in a notebook, which has an event loop of its own, on another thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


def _as_messages(prompt: str | Sequence[dict[str, str]]) -> Messages:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def load_rule(name: str) -> Rule:
    """The rule that `module:function` names. UserError where there is none."""
    module, _, function = name.partition(":")
    if not re.fullmatch(r"\w+(\.\w+)*", module) or not function.isidentifier():
        raise UserError(f"rule '{name}' is not of the form module:function; write e.g. reward.rules:no_repetition")
    try:
        import_module(module)
    except ImportError as error:
        raise UserError(
            f"rule '{name}': cannot import '{module}' ({error}); start in its folder or install it"
        ) from error
    except Exception as error:  # what the user's module does when it is imported
        raise UserError(f"rule '{name}': '{module}' fails when imported ({type(error).__name__}: {error})") from error
    if name not in RULES:
        known = ", ".join(sorted(rule for rule in RULES if rule.startswith(f"{module}:"))) or "none"
        raise UserError(
            f"rule '{name}': '{module}' has no function '{function}' marked with @rule (marked there: {known}); "
            "mark it with `from reward.rules import rule`"
        )
    return RULES[name]


@rule
def no_repetition(prompts: list[Messages], responses: list[str]) -> list[float]:
    """Share of a response's runs of three words that are not repeats of an earlier run: 1 is best, an empty response 0.

    Meant as a small term beside a reward model, against policies that say the same thing twice.
    """
    return [_distinct_share(response.casefold().split()) for response in responses]


def _distinct_share(words: list[str]) -> float:
    runs = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(runs)) / len(runs) if runs else float(bool(words))


# ---- The toy world: the support desk of a shop that does not exist. -------------------------------------------------
# data/make_toy.py writes questions and answers from these tables and the gold rule reads them back with the same.

PRODUCTS = (
    "mug",
    "scarf",
    "pillow",
    "candle",
    "teapot",
    "blanket",
    "basket",
    "vase",
    "towel",
    "notebook",
    "desk",
    "sofa",
    "wardrobe",
    "bookcase",
    "mattress",
    "table",
    "bench",
    "piano",
    "cabinet",
    "mirror",
    "kettle",
    "lantern",
    "toaster",
    "fan",
    "radio",
    "heater",
    "blender",
    "printer",
    "speaker",
    "lamp",
)


@dataclass(frozen=True)
class Intent:
    """What a customer may want to know: ways to ask, and ways to say the fact that answers it."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]


INTENTS = {
    "delivery time": Intent(
        questions=(
            "When will my {product} arrive?",
            "How long does the {product} take to arrive?",
            "How many days until the {product} is here?",
            "What is the delivery time of the {product}?",
            "How soon can you deliver a {product}?",
            "Will the {product} be here soon?",
        ),
        answers=("Your {product} arrives within nine days.", "The {product} reaches you in nine days."),
    ),
    "delivery cost": Intent(
        questions=(
            "What does delivery of the {product} cost?",
            "How much do you charge to deliver a {product}?",
            "Is delivery of the {product} free?",
            "What do I pay to have a {product} delivered?",
            "How expensive is it to deliver the {product}?",
            "Can you tell me the delivery price of the {product}?",
        ),
        answers=(
            "Delivery of the {product} costs forty dollars.",
            "You pay forty dollars for delivery of the {product}.",
        ),
    ),
    "refund": Intent(
        questions=(
            "Can I get my money back for the {product}?",
            "How do I get a refund for the {product}?",
            "When do you refund my {product}?",
            "Is there a refund on the {product}?",
            "How long does the refund of my {product} take?",
            "Do you pay back the price of the {product}?",
        ),
        answers=("We refund the {product} within ten days.", "Your money for the {product} returns in ten days."),
    ),
    "return": Intent(
        questions=(
            "How do I return my {product}?",
            "Where can I send the {product} back?",
            "What is the way to return a {product}?",
            "Can I give the {product} back?",
            "How can I send back the {product}?",
            "The {product} does not suit me, how do I return it?",
        ),
        answers=("You can return the {product} with our van.", "Send the {product} back to us with our van."),
    ),
    "warranty": Intent(
        questions=(
            "How long is the warranty of the {product}?",
            "Does the {product} come with a warranty?",
            "What warranty do you give on a {product}?",
            "Is my {product} still under warranty?",
            "For how many years do you cover the {product}?",
            "Can you tell me about the warranty of the {product}?",
        ),
        answers=("The {product} has a warranty of six years.", "Our warranty covers the {product} for six years."),
    ),
    "repair": Intent(
        questions=(
            "My {product} is broken, can you repair it?",
            "Who can mend my {product}?",
            "Where do I get the {product} repaired?",
            "Do you repair a {product}?",
            "How do I have my {product} mended?",
            "The {product} fell apart, can you mend it?",
        ),
        answers=("Our workshop repairs the {product} in a week.", "We mend the {product} in our workshop."),
    ),
    "cancel": Intent(
        questions=(
            "How do I cancel my {product}?",
            "Can I still cancel the {product}?",
            "Please cancel the order of my {product}.",
            "Can you stop my order of the {product}?",
            "What must I do to cancel the {product}?",
            "Is it too late to cancel my {product}?",
        ),
        answers=("You can cancel the {product} until it ships.", "We stop the {product} if it is still here."),
    ),
    "address": Intent(
        questions=(
            "Can I change the address for my {product}?",
            "How do I send the {product} to a new address?",
            "The address for my {product} is wrong, what now?",
            "Where do I change the address of the {product}?",
            "Can the {product} go to another address?",
            "Can you correct the address for the {product}?",
        ),
        answers=("You can change the address for the {product} online.", "Mail us the new address for the {product}."),
    ),
    "invoice": Intent(
        questions=(
            "Where is the invoice for my {product}?",
            "Can you send me the invoice of the {product}?",
            "How do I get a bill for the {product}?",
            "Is there a bill for the {product}?",
            "Where can I find the bill of my {product}?",
            "What about the invoice for the {product}?",
        ),
        answers=("We sent the invoice for the {product} by mail.", "The invoice for the {product} is in your inbox."),
    ),
    "cleaning": Intent(
        questions=(
            "How do I clean the {product}?",
            "What is the best way to clean a {product}?",
            "Can I wash my {product}?",
            "How should the {product} be cleaned?",
            "What do I clean my {product} with?",
            "My {product} is dirty, how do I clean it?",
        ),
        answers=("Clean the {product} with a dry cloth.", "You should wash the {product} with a dry cloth."),
    ),
    "colour": Intent(
        questions=(
            "Which colours does the {product} come in?",
            "What colours do you have for the {product}?",
            "Can I choose the colour of the {product}?",
            "Is there a {product} in another colour?",
            "In which colours do you sell the {product}?",
            "What colour is the {product}?",
        ),
        answers=("The {product} comes in brown and grey.", "You can have the {product} in brown and grey."),
    ),
    "stock": Intent(
        questions=(
            "Is the {product} in stock?",
            "Do you still have the {product}?",
            "When is the {product} back in stock?",
            "Can I buy a {product} today?",
            "Is a {product} still for sale?",
            "How many of the {product} do you have left?",
        ),
        answers=("The {product} is in stock next month.", "We have the {product} in our shops next month."),
    ),
}

OPENINGS = ("", "Hello, ", "Hi, ", "Good morning, ")  # of a question

GREETINGS = (
    "Thanks for asking about the {product}.",
    "Glad to help with the {product}.",
    "Good question about the {product}.",
    "Thank you for choosing the {product}.",
)
FAREWELLS = ("Have a lovely day.", "We wish you well.", "Happy to help.", "Please write again.")
PHRASES = {  # what an answer may say besides facts: kind -> sentences
    "courtesy": GREETINGS + FAREWELLS,
    "rude": ("You should know this.", "Do not ask again.", "Read our page instead.", "We have no time."),
    "filler": (
        "Many people ask this.",
        "Our shop is old.",
        "We think a lot.",
        "Much could be said.",
        "This week was long.",
    ),
    "invented": (
        "You get a free gift.",
        "You get a discount.",
        "You won a holiday.",
        "Our boss will call you.",
        "The next is free.",
    ),
}

# ---- The gold rule. -------------------------------------------------------------------------------------------------

RIGHT, WRONG_SUBJECT, WRONG_QUESTION = 1.0, 0.4, 0.2  # what the best fact of an answer is worth
FACTORS = {"curt": 0.7, "rude": 0.7, "padded": 0.7, "invented": 0.5, "broken": 0.3}  # for each such fault
MAX_COURTESIES = 2  # more is padding


@dataclass(frozen=True)
class Sentence:
    """A sentence of an answer as the tables know it, with the product it names; `intent`: of a fact only."""

    text: str
    kind: str  # fact, a key of PHRASES, or broken: in no table, or cut off
    product: str = ""
    intent: str = ""


@rule
def support_desk(prompts: list[Messages], responses: list[str]) -> list[float]:
    """How good each answer of the toy shop's support desk is, 0 to 1: what it says times how it says it.

    What it says, by its best fact: 1 the asked thing of the asked product; 0.4 the asked thing, but of another product
    or beside a greeting that names another product; 0.2 a fact of the asked product that was not asked for; else 0, so
    that text without any such sentence scores 0.
    How it says it: times 0.7 without any word of courtesy; times 0.7 for each rude sentence; times 0.7 for each that
    pads (filler, a repeat, a third courtesy, a further fact); times 0.5 for each that invents (gifts, a further fact of
    another product); times 0.3 for each that is no sentence of this world, or is cut off.
    """
    return [_utility(response, *question_asked(prompt)) for prompt, response in zip(prompts, responses, strict=True)]


def question_asked(prompt: Messages) -> tuple[str, str]:
    """(intent, product) of the last user turn. UserError where it is no question of the toy world."""
    text = _last_user_turn(prompt)
    question = _fold(text)
    for opening in OPENINGS:
        question = question.removeprefix(_fold(opening)).strip()
    if question not in _question_table():
        raise UserError(
            f"rule 'reward.rules:support_desk' judges only prompts of data/toy, and '{text}' is not one; "
            "name another rule for other data, or null"
        )
    return _question_table()[question]


def _utility(response: str, intent: str, product: str) -> float:
    sentences = _parse(response)
    contents = {sentence: _content(sentence, intent, product) for sentence in sentences if sentence.kind == "fact"}
    best = max(contents, key=contents.get, default=None)
    if best is None:
        return 0.0
    names_other = any(sentence.kind == "courtesy" and sentence.product not in ("", product) for sentence in sentences)
    content = min(contents[best], WRONG_SUBJECT) if names_other else contents[best]
    faults = _count_faults(sentences, [fact for fact in contents if fact != best], product)
    return content * prod(FACTORS[fault] ** count for fault, count in faults.items())


def _content(fact: Sentence, intent: str, product: str) -> float:
    if fact.intent == intent:
        return RIGHT if fact.product == product else WRONG_SUBJECT
    return WRONG_QUESTION if fact.product == product else 0.0


def _count_faults(sentences: list[Sentence], further_facts: list[Sentence], product: str) -> dict[str, int]:
    distinct = set(sentences)
    kinds = Counter(sentence.kind for sentence in distinct)
    num_true = sum(fact.product == product for fact in further_facts)
    num_repeats = len(sentences) - len(distinct)
    return {
        "curt": int(kinds["courtesy"] == 0),
        "rude": kinds["rude"],
        "padded": kinds["filler"] + num_repeats + max(0, kinds["courtesy"] - MAX_COURTESIES) + num_true,
        "invented": kinds["invented"] + len(further_facts) - num_true,
        "broken": kinds["broken"],
    }


def _parse(response: str) -> list[Sentence]:
    texts = [_fold(text) for text in re.findall(r"[^.!?]*[.!?]|[^.!?]+$", response)]
    return [_sentence_table().get(text, Sentence(text, "broken")) for text in texts if text]


@cache
def _sentence_table() -> dict[str, Sentence]:
    known = [sentence for kind, texts in PHRASES.items() for text in texts for sentence in _phrase(text, kind)]
    for name, intent in INTENTS.items():
        for product in PRODUCTS:
            known += [
                Sentence(_fold(answer.format(product=product)), "fact", product, name) for answer in intent.answers
            ]
    return {sentence.text: sentence for sentence in known}


def _phrase(text: str, kind: str) -> list[Sentence]:
    names = PRODUCTS if "{product}" in text else [""]
    return [Sentence(_fold(text.format(product=name)), kind, name) for name in names]


@cache
def _question_table() -> dict[str, tuple[str, str]]:
    return {
        _fold(question.format(product=product)): (name, product)
        for name, intent in INTENTS.items()
        for question in intent.questions
        for product in PRODUCTS
    }


def _last_user_turn(messages: Messages) -> str:
    return next((turn["content"] for turn in reversed(messages) if turn["role"] == "user"), "")


def _fold(text: str) -> str:
    return " ".join(text.split()).casefold()
