"""Rankings from Open Assistant's message trees: the replies of assistants to one question, by `rank`, 0 for the best.

Trees, one a line (2023-04-12_oasst_ready.trees.jsonl.gz): {"message_tree_id": "...", "prompt": {message}}, a message
{"message_id": "...", "text": "...", "role": "prompter" | "assistant", "rank": 0, "replies": [{message}, ...]};
or single messages (OpenAssistant/oasst1, oasst2), each with its parent_id.
Deleted messages are left out. Replies without a rank are not ranked.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace

from reward.collect.formats.canonical import row_of
from reward.collect.formats.values import ranking_of
from reward.ranks import ranks_by_score, score
from rlhf.data.records import RecordError, Row, kind_of
from rlhf.errors import UserError

ROLES = {"prompter": "user", "assistant": "assistant"}


def parse(row: Row) -> list[dict]:
    """The messages of a tree, or a message, each with `parent_id` and its `row`."""
    if not isinstance(row.values.get("prompt"), dict):
        return [_message(row, row.values, row.values.get("parent_id"))]
    return list(_flat(row, row.values["prompt"], None))


def _flat(row, top, parent_id):
    waiting = [(top, parent_id)]
    for message, parent in waiting:
        yield (checked := _message(row, message, parent))
        replies = message.get("replies") or []
        if not isinstance(replies, list):
            raise row.error(f"field 'replies' must be a list of messages, not {kind_of(replies)}")
        waiting += [(reply, checked["message_id"]) for reply in replies]


def _message(row, values, parent_id):
    if not isinstance(values, dict):
        raise row.error(f"a message must be an object, not {kind_of(values)}")
    inside = replace(row, values=values)
    message = {name: inside.text(name) for name in ("message_id", "role")}
    if message["role"] not in ROLES:
        raise row.error(f"field 'role' is {message['role']!r:.40}, must be prompter or assistant", "unknown role")
    if parent_id is not None and not isinstance(parent_id, str):
        raise row.error(f"field 'parent_id' must be a name, not {kind_of(parent_id)}")
    rank = score(inside, "rank", values["rank"]) if inside.has("rank") else None
    is_deleted = bool(values.get("deleted"))
    return {
        **message,
        "text": values.get("text"),
        "rank": rank,
        "deleted": is_deleted,
        "parent_id": parent_id,
        "row": row,
    }


def rankings(messages: Iterable[dict], tell) -> Iterator[dict]:
    """The canonical row of each question with two ranked replies or more."""
    by_id = {message["message_id"]: message for message in messages}
    replies = defaultdict(list)
    for message in by_id.values():
        if message["role"] == "assistant" and not message["deleted"]:
            replies[message["parent_id"]].append(message)
    for question_id, answers in replies.items():
        if sum(answer["rank"] is not None for answer in answers) >= 2:
            try:
                yield _ranking(by_id, question_id, answers)
            except UserError as error:
                tell(error)


def _ranking(by_id, question_id, answers):
    best_first = [None if answer["rank"] is None else -answer["rank"] for answer in answers]
    values = {
        "messages": list(reversed(_thread(by_id, question_id, answers[0]["row"].where))),
        "responses": [answer["text"] for answer in answers],
        "ranks": list(ranks_by_score(best_first)),  # from 1, and without the gap that a deleted reply leaves
        "prompt_id": question_id,
    }
    return row_of(ranking_of(answers[0]["row"], values), given=("prompt_id",))


def _thread(by_id, message_id, where):
    """The messages from a message up to the top of its tree."""
    passed, thread = set(), []
    while message_id is not None:
        if message_id not in by_id or message_id in passed:
            found = "comes again above itself" if message_id in passed else "is not in the file"
            raise RecordError(where, f"its thread goes up to {message_id!r:.60}, which {found}", f"a message {found}")
        message = by_id[message_id]
        passed.add(message_id)
        thread.append({"role": ROLES[message["role"]], "content": message["text"]})
        message_id = message["parent_id"]
    return thread
