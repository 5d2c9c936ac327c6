"""The chat template that a tokenizer brings (``tokenizer_config.json``), which is a program of whoever made it.

It runs in Jinja's sandbox, which reaches neither files nor Python's objects; it can waste time. It is told no date,
so that its output does not depend on the day.

**Where the answers are.** A template that marks them (``{% generation %} ... {% endgeneration %}``, as
``transformers`` has it) is believed. Otherwise an answer is what the text gains when one more message is rendered,
over the text that asks for an answer (``add_generation_prompt``): what is masked is then exactly what a model is
given to answer. A template that writes earlier messages in another way once there are later ones has no such places;
it is refused at the first conversation that shows it.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from evocore.data.chat.conversation import BadRecordError, Conversation
from evocore.data.chat.segments import Segment
from evocore.data.tokenizer import Tokenizer
from evocore.errors import UserError

_OTHER = "name another one, for example --chat-template chatml"
Span = tuple[int, int]


class OwnTemplate:
    """The template of a tokenizer.

    Raises:
        UserError: it is no valid template.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        source = tokenizer.config.chat_template
        assert source is not None
        self._name = f"the chat template beside {tokenizer.files[0]}"
        self._tokens = tokenizer.special_tokens
        self._named = dict(tokenizer.config.named)
        special = sorted(self._tokens, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special)) or r"(?!)")
        # Marks that no text holds: nobody can know them before.
        self._marks = tuple(f"\N{START OF TEXT}{secrets.token_hex(16)}{end}" for end in "()")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals[_Generation.MARKS] = self._marks
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise UserError(
                f"{self._name} is no template: line {error.lineno}: {error.message}", "a Jinja template", _OTHER
            ) from None

    def __call__(self, conversation: Conversation, where: object) -> list[Segment]:
        for message in conversation.messages:
            if found := self._special.search(message.text):
                raise BadRecordError(
                    f"{where}: a message has {found[0]!r} in its text, which would become that token",
                    "text without special tokens, or a named template, which tells them apart",
                    "remove it, name a template (--chat-template), or leave out such records with --skip-bad",
                )
        messages = [{"role": message.role, "content": message.text} for message in conversation.messages]
        text = self._render(messages, where)
        text, spans = _without_marks(text, self._marks)
        if not spans:
            spans = list(self._answers(messages, text, where))
        return list(self._cut(text, spans))

    def _render(self, messages: list[dict[str, str]], where: object, *, ask: bool = False) -> str:
        try:
            return self._template.render(messages=messages, add_generation_prompt=ask, **self._named)
        except Exception as error:  # noqa: BLE001 - a stranger's program can raise anything
            told = error.message if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
            raise BadRecordError(
                f"{where}: {self._name} fails: {told}", "a template that writes this", _OTHER
            ) from None

    def _answers(self, messages: list[dict[str, str]], text: str, where: object) -> Iterator[Span]:
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._render(messages[:number], where, ask=True)
            after = self._render(messages[: number + 1], where)
            if not (after.startswith(before) and text.startswith(after)):
                raise BadRecordError(
                    f"{where}: {self._name} does not write message after message: its text for the first "
                    f"{number + 1} does not begin its text for all {len(messages)}, or not with that which asks for "
                    "an answer, so that nothing tells where the answer is",
                    "a template that only adds to its text, or marks answers with {% generation %}",
                    _OTHER,
                )
            yield len(before), len(after)

    def _cut(self, text: str, spans: list[Span]) -> Iterator[Segment]:
        """At the edges of spans and around special tokens."""
        tokens = [(found.start(), found.end()) for found in self._special.finditer(text)]
        begins = {start for start, _ in tokens}
        within = {place for start, stop in tokens for place in range(start + 1, stop)}
        edges = {0, len(text), *(edge for pair in (*spans, *tokens) for edge in pair)} - within
        strips = False
        for start, stop in pairwise(sorted(edges)):
            trained = any(first <= start < last for first, last in spans)
            part = text[start:stop]
            if start in begins:
                token = self._tokens[part]
                strips = token.strips_right
                yield Segment(token=token.id, trained=trained)
                continue
            if strips:
                part, strips = part.lstrip(), False
            following = self._special.match(text, stop)
            if following and self._tokens[following[0]].strips_left:
                part = part.rstrip()
            yield Segment(part, trained=trained)


class _Generation(Extension):
    """``{% generation %} ... {% endgeneration %}``: puts marks around what an assistant says."""

    tags = {"generation"}
    MARKS = "evocore_marks"

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Any) -> str:
        marks: Any = self.environment.globals[self.MARKS]
        return f"{marks[0]}{caller()}{marks[1]}"


def _without_marks(text: str, marks: tuple[str, ...]) -> tuple[str, list[Span]]:
    parts = re.split("|".join(map(re.escape, marks)), text)
    ends = list(accumulate(map(len, parts)))
    spans = [(ends[number - 1], ends[number]) for number in range(1, len(parts), 2)]
    return "".join(parts), spans


def _to_json(value: Any, **options: Any) -> str:
    """Jinja's own escapes characters for HTML."""
    return json.dumps(value, ensure_ascii=False, **options)


def _refuse(message: str) -> None:
    raise TemplateError(message)
