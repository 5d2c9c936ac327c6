"""Conversations, and the shapes in which files hold them.

- ``alpaca``: ``{"instruction": ..., "input": ..., "output": ...}``; the input may be missing or empty.
- ``sharegpt``: ``{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, ...]}``.
- ``messages``: ``{"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}, ...]}``.

The first two may have a text ``"system"`` beside it, the last has a message of that role. Either list is read with
either pair of keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from evocore.errors import UserError

Role = Literal["system", "user", "assistant"]
Shape = Literal["auto", "text", "alpaca", "sharegpt", "messages"]
SHAPES: tuple[Shape, ...] = ("auto", "text", "alpaca", "sharegpt", "messages")
_ROLES: Mapping[Any, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
_LISTS = {"sharegpt": "conversations", "messages": "messages"}
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell them, UTF-8 cannot
_LEAVE_OUT = "mend or remove the record, or leave out such records with --skip-bad"


class BadRecordError(UserError):
    """A record that is not what it should be, in a file of which others may be."""


@dataclass(frozen=True)
class _Within:
    """A part of a record; as text only if a message needs it."""

    where: object
    part: str

    def __str__(self) -> str:
        return f"{self.where}, {self.part}"


@dataclass(frozen=True)
class Message:
    """What one side says.

    Attributes:
        content: the text.
        context: what an instruction is about, where it is told apart (``input`` of Alpaca).
    """

    role: Role
    content: str
    context: str = ""

    @property
    def text(self) -> str:
        """All of it."""
        return f"{self.content}\n{self.context}" if self.context else self.content


@dataclass(frozen=True)
class Conversation:
    """A system message or none, then questions and answers in turn; the last message is an answer."""

    messages: tuple[Message, ...]

    @property
    def system(self) -> str | None:
        """The text of the system message."""
        return self.messages[0].text if self.messages[0].role == "system" else None

    @property
    def turns(self) -> tuple[tuple[Message, Message], ...]:
        """Questions with their answers."""
        rest = self.messages[self.system is not None :]
        return tuple(zip(rest[::2], rest[1::2], strict=True))


def read_record(record: Any, shape: Shape, field: str, where: object) -> str | Conversation:
    """What a record of a JSON file is: plain text or a conversation.

    Args:
        record: a string, or an object.
        shape: of the record; "auto" goes by its keys.
        field: where an object of shape "text" holds it.
        where: file and line, for messages.

    Raises:
        BadRecordError: the record is of no known shape or of two, or its conversation is none.
    """
    if shape == "auto":
        shape = _shape_of(record, field, where)
    if shape == "text":
        return _text(record.get(field) if isinstance(record, dict) else record, f"under {field!r}", record, where)
    if not isinstance(record, dict) or not _has_shape(record, shape):
        raise _no_shape(record, f"a record of shape {shape}", where)
    return _alpaca(record, where) if shape == "alpaca" else _messages(record, _LISTS[shape], where)


def clean(text: str) -> str:
    """Without halves of characters, which JSON can spell and UTF-8 cannot."""
    return _LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)


def _shape_of(record: Any, field: str, where: object) -> Shape:
    if isinstance(record, str):
        return "text"
    found: list[Shape] = []
    if isinstance(record, dict):
        found = [shape for shape in SHAPES[2:] if _has_shape(record, shape)]
        found += ["text"] if field in record else []
    if len(found) == 1:
        return found[0]
    if not found:
        expected = f'text under "{field}", {", ".join(SHAPES[2:])}; `evocore data tokenize --help` tells their keys'
        raise _no_shape(record, f"a record of one of these shapes: {expected}", where)
    raise BadRecordError(
        f"{where} is of several shapes: {', '.join(found)}", "one shape", f"name it, for example --shape {found[0]}"
    )


def _has_shape(record: Mapping[str, Any], shape: Shape) -> bool:
    if shape == "alpaca":
        return "instruction" in record and "output" in record
    return isinstance(record.get(_LISTS[shape]), list)


def _no_shape(record: Any, expected: str, where: object) -> BadRecordError:
    keys = ", ".join(map(repr, record)) if isinstance(record, dict) else f"no object but a {type(record).__name__}"
    return BadRecordError(
        f"{where} is of no known shape: it has {keys or 'no keys'}",
        expected,
        "name the field that holds the text with --field, or convert the file",
    )


def _alpaca(record: Mapping[str, Any], where: object) -> Conversation:
    texts = {key: record.get(key) or "" for key in ("system", "instruction", "input", "output")}
    for key, value in texts.items():
        _text(value, f"under {key!r}", record, where)
    question = Message("user", clean(texts["instruction"]), clean(texts["input"]))
    answer = Message("assistant", clean(texts["output"]))
    return _checked(clean(texts["system"]), [question, answer], where)


def _messages(record: Mapping[str, Any], name: str, where: object) -> Conversation:
    system = _text(record.get("system") or "", "under 'system'", record, where)
    messages = []
    for number, entry in enumerate(record[name]):
        here = _Within(where, f"{name}[{number}]")
        if not isinstance(entry, dict):
            raise _no_shape(entry, "an object with who says what", here)
        said = entry.get("role", entry.get("from"))
        role = _ROLES.get(said) if isinstance(said, str) else None
        if role is None:
            raise BadRecordError(
                f"{here} is from {said!r}", f'"role" or "from" as one of {", ".join(_ROLES)}', _LEAVE_OUT
            )
        content = entry.get("content", entry.get("value"))
        messages.append(Message(role, _text(content, "under 'content' or 'value'", entry, here)))
    return _checked(system, messages, where)


def _text(value: Any, place: str, record: Any, where: object) -> str:
    if not isinstance(value, str):
        keys = ", ".join(map(repr, record)) if isinstance(record, dict) else type(record).__name__
        raise BadRecordError(
            f"{where} has no text {place}, but {keys if value is None else type(value).__name__}",
            "a string",
            "name the field that holds the text with --field, or mend the record",
        )
    return clean(value)


def _checked(system: str, messages: list[Message], where: object) -> Conversation:
    """Questions and answers in turn, without a last question that nobody answers."""
    if messages and messages[0].role == "system":
        first, *messages = messages
        system = "\n".join(filter(None, (system, first.content)))
    if messages and messages[-1].role == "user":
        messages = messages[:-1]
    for number, message in enumerate(messages):
        expected = "assistant" if number % 2 else "user"
        if message.role != expected:
            raise BadRecordError(
                f"{where}: message {number + 1} is from {message.role!r}",
                "at most one system message, then user and assistant in turn",
                _LEAVE_OUT,
            )
        if message.role == "assistant" and not message.content.strip():
            raise BadRecordError(f"{where}: answer {number // 2 + 1} is empty", "text to be learnt", _LEAVE_OUT)
    if not messages:
        raise BadRecordError(f"{where} has no answer", "a question and an answer", _LEAVE_OUT)
    return Conversation(((Message("system", system),) if system else ()) + tuple(messages))
