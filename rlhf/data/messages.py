"""One message of a dialogue, in the forms that are met: {role, content}, ShareGPT's {from, value}, OpenAI's parts."""

from rlhf.data.records import Row, kind_of, shown
from rlhf.data.row import is_filled

ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "developer": "system"}
CALLS = ("tool_calls", "function_call", "tool_call_id")
WEIGHTS = ("weight", "train", "training")  # of an answer: 0 or false where it is not to be learned
NOT_TEXT = "only text is learned here"


def read_message(message, row: Row, place: str) -> dict:
    """{role, content}, both strings. What changes the meaning of a message and is not learned here is refused."""
    message = message if isinstance(message, dict) else {}
    role_name, content_name = _names(message)
    _refuse_calls(message, row, place)
    role, content = message.get(role_name), message.get(content_name)
    if isinstance(content, list):
        content = "".join(_text_of_part(part, row, f"{place}.{content_name}[{i}]") for i, part in enumerate(content))
    if not isinstance(content, str) or not isinstance(role, str):
        raise row.error(f"field '{place}' must be {{role, content}}, both strings", "a message must be {role, content}")
    if not content.strip():
        raise row.error(f"field '{place}.{content_name}' is empty", "a message is empty")
    for name in message:
        if name not in (role_name, content_name, *WEIGHTS) and is_filled(message[name]):
            row.note(f"field '{shown([name])}' of messages not used")
    return {"role": ROLES.get(role, role), "content": content}


def role_of(message) -> str | None:
    """Who speaks, in our words; None of what is no message."""
    role = message.get(_names(message)[0]) if isinstance(message, dict) else None
    return ROLES.get(role, role) if isinstance(role, str) else None


def _names(message):
    """What a message has its role and its content under: ShareGPT's names where it has those alone."""
    is_sharegpt = message.get("role") is None and message.get("from") is not None
    return ("from", "value") if is_sharegpt else ("role", "content")


def read_answer(value, row: Row, place: str) -> str:
    """An answer: a text, or one message of the assistant."""
    message = value[0] if isinstance(value, list) and len(value) == 1 else value
    if role_of(message) == "assistant":
        return read_message(message, row, place)["content"]
    if not isinstance(value, str):
        rule = "an answer must be a string, or one message of the assistant"
        raise row.error(f"field '{place}' is {kind_of(value)}; {rule}", rule)
    if not value.strip():
        raise row.error(f"field '{place}' is empty", "an answer is empty")
    return value


def is_empty_system(message) -> bool:
    """A system turn without a word: what some sets write where there is none."""
    if role_of(message) != "system":
        return False
    content = message.get(_names(message)[1])
    return content is None or (isinstance(content, str) and not content.strip())


def not_learned(messages: list[dict], row: Row) -> tuple[int, ...]:
    """The places, counted from the end, of the answers whose weight is 0, in messages that were read."""
    places = []
    for place, message in enumerate(messages, -len(messages)):
        given = {name: message[name] for name in WEIGHTS if message.get(name) is not None}
        for name, weight in given.items():
            if weight not in (0, 1):
                rule = f"the weight of a message is 0 or 1, not {weight!r:.40}"
                raise row.error(f"field '{name}' of a message: {rule}", "the weight of a message is 0 or 1")
        if 0 in given.values() and role_of(message) == "assistant":
            places.append(place)
    return tuple(places)


def _refuse_calls(message, row, place):
    for name in CALLS:
        if is_filled(message.get(name)):
            rule = f"messages with '{name}' are not learned here"
            raise row.error(f"field '{place}.{name}' is there; {rule}. Leave the record out (data.on_error=skip)", rule)


def _text_of_part(part, row, place):
    kind = part.get("type") if isinstance(part, dict) else kind_of(part)
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    rule = f"a part of a message is {shown([kind])}, and {NOT_TEXT}"
    raise row.error(f"field '{place}': {rule}", rule)
