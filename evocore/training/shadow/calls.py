"""What shadow mode knows of each op: the names of its tensors, and which part of a call is computed again.

Names end with the dimensions of the tensor, as in the contracts: T tokens, S key tokens, N query heads, K key-value
heads. A part is a slice of some dimensions along which the results of an op do not depend on each other, so that it
needs only slices of what went in and came out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from torch import Tensor

from evocore.ops.attention import CuSeqlens

ARGUMENTS: dict[str, tuple[str, ...]] = {
    "add_rms_norm": ("x_TD", "residual_TD", "weight_D"),
    "attention": ("q_TNH", "k_SKH", "v_SKH"),
    "cross_entropy": ("logits_TV", "labels_T", "weights_T"),
    "geglu": ("gate_TF", "up_TF"),
    "layer_norm": ("x_TD", "weight_D", "bias_D"),
    "linear_cross_entropy": ("hidden_TD", "weight_VD", "labels_T", "weights_T"),
    "rms_norm": ("x_TD", "weight_D"),
    "rotary": ("x_TNH", "cos_TP", "sin_TP"),
    "swiglu": ("gate_TF", "up_TF"),
}
"""Op -> its positional arguments, by the names of the contract."""

RESULTS: dict[str, tuple[str, ...]] = {
    "add_rms_norm": ("y_TD", "s_TD"),
    "attention": ("out_TNH",),
    "cross_entropy": ("total", "loss_T", "correct_T"),
    "geglu": ("out_TF",),
    "layer_norm": ("y_TD",),
    "linear_cross_entropy": ("total", "loss_T", "correct_T"),
    "rms_norm": ("y_TD",),
    "rotary": ("out_TNH",),
    "swiglu": ("out_TF",),
}
"""Op -> names of what it returns."""

UPDATE = "adamw"
"""The op that changes its arguments instead of returning something."""

CHECKED = tuple(sorted([*ARGUMENTS, UPDATE]))
"""Every op that can be checked."""

ELEMENTS = 2**23
"""Elements of the largest tensor of a part: 64 MB in float64, of which a reference holds a handful."""
SCORES = 2**23
"""Attention scores of a part."""
WEIGHTS = 2**26
"""Elements of the largest weight whose gradient is checked: 512 MB in float64."""

Arguments = dict[str, Any]


def named(op: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Arguments:
    """The arguments of a call by the names of the contract."""
    return dict(zip(ARGUMENTS[op], args, strict=False)) | dict(kwargs)


def tensors_of(arguments: Arguments) -> dict[str, Tensor]:
    """The tensors among arguments, by name."""
    return {name: x for name, x in arguments.items() if isinstance(x, Tensor)}


@dataclass(frozen=True)
class Part:
    """A piece of a call.

    Attributes:
        slices: dimension -> what is kept of it; nothing cut is the whole call.
        complete: dimensions of which a tensor must have one for its slice to be what the piece alone would give;
            others are sums that the rest of the call takes part in. Everything is complete if nothing is cut.
        options: arguments that the piece is called with instead.
        text: for the record.
    """

    slices: Mapping[str, slice] = field(default_factory=dict)
    complete: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    text: str = "whole"

    def of(self, name: str, tensor: Tensor) -> Tensor:
        """The piece's share of a tensor."""
        return tensor[tuple(self.slices.get(letter, slice(None)) for letter in _dimensions(name))]

    def is_complete(self, name: str) -> bool:
        """Whether the share of a result is what the piece alone would give."""
        return not self.slices or any(letter in self.complete for letter in _dimensions(name))


def choose_part(op: str, arguments: Arguments, turn: int) -> Part:
    """What of a call to check; another part at each turn, so that in the end all are."""
    return _attention_part(arguments, turn) if op == "attention" else _rows_part(arguments, turn)


def _rows_part(arguments: Arguments, turn: int) -> Part:
    by_row = [x for name, x in tensors_of(arguments).items() if _dimensions(name).startswith("T")]
    rows = len(by_row[0])
    widest = max(x.numel() // max(rows, 1) for x in by_row)
    if "weight_VD" in arguments:
        widest = max(widest, len(arguments["weight_VD"]))  # the reference builds the logits
    size = max(1, ELEMENTS // max(widest, 1))
    if rows <= size:
        return Part()
    start = min(turn % -(-rows // size) * size, rows - size)
    return Part({"T": slice(start, start + size)}, "T", text=f"rows {start}:{start + size} of {rows}")


def _attention_part(arguments: Arguments, turn: int) -> Part:
    """One key-value head with its query heads, and as many documents as the bound on scores allows, one at least.

    Documents with one key are no place to begin: the gradients of their queries and keys are 0 by cancellation, and
    what rounding leaves of that has no measure.
    """
    queries, keys = arguments["q_documents"].host, arguments["k_documents"].host
    kv_heads = arguments["k_SKH"].shape[1]
    group = arguments["q_TNH"].shape[1] // kv_heads
    sizes = [(end - start, k_end - k_start) for (start, end), (k_start, k_end) in _spans(queries, keys)]
    scores = [group * count * k_count for count, k_count in sizes]
    beginnings = [number for number, (count, k_count) in enumerate(sizes) if count and k_count > 1]
    rest, head = divmod(turn, kv_heads)
    rest, number = divmod(rest, max(len(beginnings), 1))
    first = last = 0
    if beginnings:
        first = beginnings[number]
        last = first + 1
    while first < last < len(sizes) and sum(scores[first : last + 1]) <= SCORES:
        last += 1
    text = f"head {head} of {kv_heads}, documents {first}:{last} of {len(sizes)}"
    q_ends, k_ends, complete = queries[first : last + 1], keys[first : last + 1], "TS"
    if sum(scores[first:last]) > SCORES:
        q_ends, k_ends = _some_queries(q_ends, k_ends, SCORES // group, rest, arguments.get("causal", True))
        complete = "T"  # gradients of keys and values are sums over the document's other queries too
        text += f", queries {q_ends[0]}:{q_ends[1]}"
    device = arguments["q_TNH"].device
    return Part(
        slices={
            "N": slice(head * group, (head + 1) * group),
            "K": slice(head, head + 1),
            "T": slice(q_ends[0], q_ends[-1]),
            "S": slice(k_ends[0], k_ends[-1]),
        },
        complete=complete,
        options={
            "q_documents": CuSeqlens.of([end - q_ends[0] for end in q_ends], device),
            "k_documents": CuSeqlens.of([end - k_ends[0] for end in k_ends], device),
        },
        text=text,
    )


def _some_queries(
    queries: tuple[int, ...], keys: tuple[int, ...], scores: int, turn: int, causal: bool
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Ends of so many queries of a long document that the scores stay in their bound, and of the keys they see."""
    (start, end), (k_start, k_end) = queries, keys
    size = min(max(2, scores // (k_end - k_start)), end - start)  # a query alone may see a single key
    first = min(start + turn % -(-(end - start) // size) * size, end - size)
    unseen = end - (first + size) if causal else 0  # the document's last query sees its last key
    return (first, first + size), (k_start, k_end - unseen)


def _spans(queries: Sequence[int], keys: Sequence[int]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Start and end of each document among the queries and among the keys."""
    return zip(pairwise(queries), pairwise(keys), strict=True)


def _dimensions(name: str) -> str:
    """The letters at the end of a name; none for a scalar or what is no tensor."""
    letters = name.rpartition("_")[2]
    return letters if letters.isupper() else ""
