"""Chat templates by name, for tokenizers that bring none of their own.

An answer is trained on together with the token that ends it; all else is masked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from evocore.data.chat.conversation import Conversation
from evocore.data.chat.segments import ChatTemplate, Segment
from evocore.data.tokenizer import Tokenizer
from evocore.errors import UserError

BEGIN, END = "begin of document", "end of document"
"""Stand for the tokenizer's own, however they are written."""
_ABOUT = "Below is an instruction that describes a task"
_ALONE = f"{_ABOUT}. Write a response that appropriately completes the request."
_PAIRED = (
    f"{_ABOUT}, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)


def chat_template(name: str | None, tokenizer: Tokenizer) -> ChatTemplate:
    """The template of that name, or the one that the tokenizer brings.

    Raises:
        UserError: there is none, or the tokenizer lacks a token that it needs.
    """
    if name is not None:
        return NamedTemplate(name, tokenizer)
    if tokenizer.config.chat_template is None:
        raise UserError(
            f"there are conversations, and the tokenizer {tokenizer.files[0]} brings no chat template",
            f"a template by name: {', '.join(TEMPLATES)}",
            "name one, for example --chat-template chatml",
        )
    from evocore.data.chat.own_template import OwnTemplate  # Jinja is for those who need it

    return OwnTemplate(tokenizer)


class NamedTemplate:
    """One of ``TEMPLATES`` with the ids of a tokenizer.

    Raises:
        UserError: there is no such template, or the tokenizer lacks a token that it needs.
    """

    def __init__(self, name: str, tokenizer: Tokenizer) -> None:
        self._segments, needed = template_named(name)
        own = {BEGIN: tokenizer.bos_id, END: tokenizer.eos_id}
        ids = {token: special.id for token, special in tokenizer.special_tokens.items()}
        self._ids = {token: number for token, number in (ids | own).items() if number >= 0}
        if missing := [token for token in needed if token not in self._ids]:
            raise UserError(
                f"the tokenizer {tokenizer.files[0]} has no token for {', '.join(missing)}, which the chat template "
                f"{name} needs",
                f"a tokenizer with {', '.join(needed)}",
                f"use the tokenizer of a model that has them, another template ({', '.join(TEMPLATES)}), or "
                "--train-tokenizer, which adds them",
            )

    def __call__(self, conversation: Conversation, where: object) -> list[Segment]:
        return list(self._segments(conversation, self._ids))


def template_named(name: str) -> tuple[Callable[[Conversation, Mapping[str, int]], Iterator[Segment]], list[str]]:
    """What writes a conversation, and the tokens that it needs.

    Raises:
        UserError: there is none of that name.
    """
    if name not in TEMPLATES:
        raise UserError(
            f"--chat-template {name}: there is no such template",
            f"one of {', '.join(TEMPLATES)}",
            "name one of these, or leave it out to use the one that the tokenizer brings",
        )
    return TEMPLATES[name]


def special_tokens(name: str) -> list[str]:
    """The tokens that a template needs besides begin and end of document; as ``template_named``."""
    return [token for token in template_named(name)[1] if token not in (BEGIN, END)]


def _chatml(conversation: Conversation, ids: Mapping[str, int]) -> Iterator[Segment]:
    """OpenAI's ChatML, as Qwen has it."""
    for message in conversation.messages:
        answer = message.role == "assistant"
        yield Segment(token=ids["<|im_start|>"])
        yield Segment(f"{message.role}\n" if answer else f"{message.role}\n{message.text}")
        if answer:
            yield Segment(message.text, trained=True)
        yield Segment(token=ids["<|im_end|>"], trained=answer)
        yield Segment("\n")


def _internlm2(conversation: Conversation, ids: Mapping[str, int]) -> Iterator[Segment]:
    """ChatML after the begin of a document."""
    yield Segment(token=ids[BEGIN])
    yield from _chatml(conversation, ids)


def _llama3(conversation: Conversation, ids: Mapping[str, int]) -> Iterator[Segment]:
    """Llama 3's release."""
    yield Segment(token=ids["<|begin_of_text|>"])
    for message in conversation.messages:
        answer, text = message.role == "assistant", message.text.strip()
        yield Segment(token=ids["<|start_header_id|>"])
        yield Segment(message.role)
        yield Segment(token=ids["<|end_header_id|>"])
        yield Segment("\n\n" if answer else f"\n\n{text}")
        if answer:
            yield Segment(text, trained=True)
        yield Segment(token=ids["<|eot_id|>"], trained=answer)


def _llama2(conversation: Conversation, ids: Mapping[str, int]) -> Iterator[Segment]:
    """Llama 2's release: each pair of question and answer is a document of its own."""
    for number, (question, answer) in enumerate(conversation.turns):
        text = question.text
        if number == 0 and conversation.system is not None:
            text = f"<<SYS>>\n{conversation.system}\n<</SYS>>\n\n{text}"
        yield Segment(token=ids[BEGIN])
        yield Segment(f"[INST] {text.strip()} [/INST]", fresh=True)
        yield Segment(f" {answer.text.strip()} ", trained=True)
        yield Segment(token=ids[END], trained=True)


def _alpaca(conversation: Conversation, ids: Mapping[str, int]) -> Iterator[Segment]:
    """Stanford Alpaca; a system message takes the place of its introduction."""
    if BEGIN in ids:
        yield Segment(token=ids[BEGIN])
    for number, (question, answer) in enumerate(conversation.turns):
        about = f"### Instruction:\n{question.content}\n\n"
        if question.context:
            about += f"### Input:\n{question.context}\n\n"
        if number == 0:
            about = f"{conversation.system or (_PAIRED if question.context else _ALONE)}\n\n{about}"
        yield Segment(f"{about}### Response:", fresh=True)
        yield Segment(answer.text, trained=True)
        yield Segment(token=ids[END], trained=True)


def _internlm(conversation: Conversation, ids: Mapping[str, int]) -> Iterator[Segment]:
    """InternLM, as InternEvo's tool for Alpaca writes it: begin, end and the last newline are targets as well."""
    yield Segment(token=ids[BEGIN], trained=True)
    for number, (question, answer) in enumerate(conversation.turns):
        text = question.text
        if number == 0 and conversation.system is not None:
            text = f"{conversation.system}\n{text}"
        yield Segment(f"<|User|>:{text}", fresh=True)
        yield Segment(token=ids["<eoh>"])
        yield Segment("\n")
        yield Segment("<|Bot|>:", fresh=True)
        yield Segment(answer.text, trained=True, fresh=True)
        yield Segment(token=ids["<eoa>"], trained=True)
        yield Segment("\n", trained=True)
    yield Segment(token=ids[END], trained=True)


TEMPLATES: dict[str, tuple[Callable[[Conversation, Mapping[str, int]], Iterator[Segment]], list[str]]] = {
    "chatml": (_chatml, ["<|im_start|>", "<|im_end|>"]),
    "llama2": (_llama2, [BEGIN, END]),
    "llama3": (_llama3, ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]),
    "internlm": (_internlm, [BEGIN, END, "<eoh>", "<eoa>"]),
    "internlm2": (_internlm2, [BEGIN, "<|im_start|>", "<|im_end|>"]),
    "alpaca": (_alpaca, [END]),
}
"""Name -> what writes a conversation, and the tokens that it needs."""
