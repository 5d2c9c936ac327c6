"""A conversation cut where tokens with a meaning stand and where training begins and ends, and how it becomes ids.

Each segment is encoded by itself, so that a token never lies on both sides of an edge: what stands before an answer
has exactly the ids that it will have when the model is asked for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from evocore.data.chat.conversation import Conversation
from evocore.data.tokenizer import Follows, Tokenizer


@dataclass(frozen=True)
class Segment:
    """Text, or one special token.

    Attributes:
        text: to be encoded, if there is no ``token``.
        token: id of the special token.
        trained: whether its tokens are targets.
        fresh: whether the text is encoded as if it began a document, whatever stands before it.
    """

    text: str = ""
    token: int | None = None
    trained: bool = False
    fresh: bool = False


class ChatTemplate(Protocol):
    """Writes conversations as a model is to see them."""

    def __call__(self, conversation: Conversation, where: object) -> list[Segment]:
        """The segments; ``where`` is file and line, for messages.

        Raises:
            BadRecordError: the template cannot write this conversation.
        """
        ...


def encode_segments(segments: Sequence[Segment], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """Ids, and whether each is trained on."""
    ids: list[int] = []
    trained: list[bool] = []
    follows: Follows = "nothing"
    for segment in segments:
        if segment.token is not None:
            new, follows = [segment.token], "token"
        elif segment.text:
            new, follows = tokenizer.encode(segment.text, "nothing" if segment.fresh else follows), "text"
        else:
            continue
        ids += new
        trained += [segment.trained] * len(new)
    return ids, trained
