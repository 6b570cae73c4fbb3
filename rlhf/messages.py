"""One message of a dialogue, in the forms that are met: {role, content}, ShareGPT's {from, value}, OpenAI's parts."""

from rlhf.records import Row, kind_of, shown
from rlhf.row import is_filled

ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "developer": "system"}
CALLS = ("tool_calls", "function_call", "tool_call_id")
WEIGHTS = ("weight", "train", "training")  # of an answer: 0 or false where it is not to be learned
NOT_TEXT = "only text is learned here"


def read_message(message, row: Row, place: str) -> dict:
    """{role, content}, both strings. What changes the meaning of a message and is not learned here is refused."""
    role_name, content_name = ("from", "value") if is_sharegpt(message) else ("role", "content")
    message = message if isinstance(message, dict) else {}
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
    role = message.get("from" if is_sharegpt(message) else "role") if isinstance(message, dict) else None
    return ROLES.get(role, role) if isinstance(role, str) else None


def is_sharegpt(message) -> bool:
    return isinstance(message, dict) and message.get("role") is None and message.get("from") is not None


def is_empty_system(message) -> bool:
    """A system turn without a word: what some sets write where there is none."""
    if not isinstance(message, dict):
        return False
    role, content = ("from", "value") if is_sharegpt(message) else ("role", "content")
    content = message.get(content)
    return message.get(role) == "system" and (content is None or (isinstance(content, str) and not content.strip()))


def not_learned(messages: list[dict], row: Row) -> tuple[int, ...]:
    """The places, counted from the end, of the answers whose weight is 0, in messages that were read."""
    places = []
    for place, message in enumerate(messages, -len(messages)):
        given = {name: message[name] for name in WEIGHTS if message.get(name) is not None}
        for name, weight in given.items():
            if weight not in (0, 1):
                rule = f"the weight of a message is 0 or 1, not {weight!r:.40}"
                raise row.error(f"field '{name}' of a message: {rule}", "the weight of a message is 0 or 1")
        role = message["from"] if is_sharegpt(message) else message["role"]
        if 0 in given.values() and ROLES.get(role, role) == "assistant":
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
