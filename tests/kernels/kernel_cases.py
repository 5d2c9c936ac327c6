"""The declared grid: for each op the cases that every kernel of it must serve, and how their inputs are made.

A case is a recipe: it makes the same numbers each time it is asked, in whichever dtype. Attention alone has cases of
some hundred tokens, for what is cut into blocks; they are not ``small``, and low precision, slow on most CPUs, takes
the small ones only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import accumulate, product
from typing import Any

import torch
from torch import Tensor

from evocore.ops.adamw import AdamWRequest
from evocore.ops.attention import AttentionRequest, CuSeqlens
from evocore.ops.cross_entropy import CrossEntropyRequest, LinearCrossEntropyRequest
from evocore.ops.glu import GeGLURequest, SwiGLURequest
from evocore.ops.kernel import Request
from evocore.ops.layer_norm import LayerNormRequest
from evocore.ops.rms_norm import AddRMSNormRequest, RMSNormRequest
from evocore.ops.rotary import RotaryRequest


@dataclass(frozen=True)
class Example:
    """One call: ``function(*inputs, *constants, **options)``.

    Attributes:
        request: what a layer would ask resolution for.
        inputs: the differentiable tensors.
        constants: the other positional arguments.
        options: keyword arguments.
    """

    request: Request
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor | None, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def in_float64(self) -> Example:
        """The same numbers in float64."""
        constants = tuple(x.double() if x is not None and x.is_floating_point() else x for x in self.constants)
        return replace(self, inputs=tuple(x.double() for x in self.inputs), constants=constants)

    def strided(self) -> Example:
        """The same numbers, activations with gaps between their elements.

        Weights, the inputs whose shape does not start with the tokens, have no promise about strides.
        """
        tokens = self.inputs[0].shape[0]
        inputs = (_with_gaps(x) if x.dim() > 1 and x.shape[0] == tokens else x for x in self.inputs)
        return replace(self, inputs=tuple(inputs))


@dataclass(frozen=True)
class Case:
    """A recipe for an ``Example``.

    Attributes:
        op: name of the contract.
        label: of the case, unique in its op.
        make: the recipe.
        small: whether it is fit for low precision and for numeric gradients.
        mixed: whether some inputs are float32 whatever the dtype is; only low precision makes that a case of its own.
    """

    op: str
    label: str
    make: Callable[[torch.dtype], Example]
    small: bool = True
    mixed: bool = False

    def __str__(self) -> str:
        return self.label


def cases(op: str) -> list[Case]:
    """The declared grid of ``op``; see ``adamw_tensors`` for adamw, which is not differentiable."""
    return _GRIDS[op]()


def empty(op: str, dtype: torch.dtype) -> list[Example]:
    """Calls without a token."""
    return {
        "attention": lambda: [
            _attention(dtype, [0], [0], 4, 2, 8, {}),
            _attention(dtype, [], [], 4, 2, 8, {}),
            _attention(dtype, [0, 0], [3, 0], 2, 2, 4, {"causal": False}),
        ],
        "rms_norm": lambda: [_rms_norm(dtype, 0, 8, unit_offset, False) for unit_offset in (False, True)],
        "add_rms_norm": lambda: [_add_rms_norm(dtype, 0, 8, False, fp32, False) for fp32 in (False, True)],
        "layer_norm": lambda: [_layer_norm(dtype, 0, 8, bias, False) for bias in (False, True)],
        "rotary": lambda: [_rotary(dtype, 0, 2, 8, pairs, way) for pairs in (4, 3) for way in (False, True)],
        "swiglu": lambda: [_swiglu(dtype, 0, 8)],
        "geglu": lambda: [_geglu(dtype, 0, 8, way) for way in ("tanh", "none")],
        "cross_entropy": lambda: [_cross_entropy(dtype, 0, 11, weighted, {}) for weighted in (False, True)],
        "linear_cross_entropy": lambda: [
            _linear_cross_entropy(dtype, 0, 8, 11, weighted, {}) for weighted in (False, True)
        ],
    }[op]()


def adamw_tensors(dtype: torch.dtype) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Parameters of several shapes, one of them empty, and their gradients of four steps."""
    random = _Random()
    shapes = ((7,), (3, 5), (2, 3, 4), (0, 4), ())
    return [random(*shape).to(dtype) for shape in shapes], [
        [random(*shape).to(dtype) for shape in shapes] for _ in range(4)
    ]


def adamw_request(dtype: torch.dtype) -> Request:
    return AdamWRequest(dtype)


class _Random:
    """Normal numbers in float64, the same in every run: an example of any dtype rounds the same ones."""

    def __init__(self, seed: int = 1234) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def below(self, high: int, size: int) -> Tensor:
        return torch.randint(high, (size,), generator=self.generator)


def _with_gaps(x: Tensor) -> Tensor:
    """Equal to ``x``, but stored with the first two dimensions swapped and with another number after each element."""
    spread = torch.stack((x, x + 1), -1).transpose(0, 1).contiguous().transpose(0, 1)
    return spread[..., 0].detach()


def _attention(
    dtype: torch.dtype, queries: list[int], keys: list[int], heads: int, kv_heads: int, width: int, options: dict
) -> Example:
    random = _Random()
    tensors = (
        random(sum(queries), heads, width),
        random(sum(keys), kv_heads, width),
        random(sum(keys), kv_heads, width),
    )
    documents = {
        "q_documents": CuSeqlens.of([0, *accumulate(queries)]),
        "k_documents": CuSeqlens.of([0, *accumulate(keys)]),
    }
    asked = {key: value for key, value in options.items() if key != "scale"}
    return Example(
        AttentionRequest(dtype, heads, kv_heads, width, **asked),
        tuple(x.to(dtype) for x in tensors),
        options=documents | options,
    )


def _attention_cases() -> list[Case]:
    several, cache = [3, 0, 5, 5, 1, 0], [4, 2, 5, 9, 6, 0]
    grid: list[tuple[str, list[int], list[int], int, int, int, dict]] = [
        ("causal", [9], [9], 2, 2, 8, {}),
        ("full", [9], [9], 2, 2, 8, {"causal": False}),
        ("grouped", [7], [7], 6, 2, 4, {}),
        ("one-kv-head-full", [7], [7], 4, 1, 4, {"causal": False}),
        ("documents", several, several, 4, 2, 4, {}),
        ("documents-full", several, several, 4, 2, 4, {"causal": False}),
        ("cache", several, cache, 4, 2, 4, {}),
        ("cache-full", several, cache, 4, 2, 4, {"causal": False}),
        ("more-queries-than-keys-full", [5, 3, 2], [2, 0, 4], 2, 1, 4, {"causal": False}),
        ("one-query", [1, 1], [6, 3], 2, 1, 4, {}),
        ("window", [9, 4], [9, 4], 2, 1, 4, {"window": 3}),
        ("window-of-itself", [6], [6], 2, 2, 4, {"window": 1}),
        ("window-wider-than-document", [6], [6], 2, 2, 4, {"window": 50}),
        ("window-cache", several, cache, 4, 2, 4, {"window": 2}),
        ("softcap", [8, 3], [8, 3], 2, 1, 4, {"softcap": 1.5}),
        ("scale", [8, 3], [8, 3], 2, 1, 4, {"scale": 0.9}),
        ("everything", several, cache, 4, 2, 4, {"window": 3, "softcap": 2.0, "scale": 0.7}),
    ]
    large: list[tuple[str, list[int], list[int], int, int, int, dict]] = [
        ("long", [300, 17], [300, 17], 2, 1, 8, {}),
        ("long-full", [150], [290], 2, 1, 8, {"causal": False}),
        ("long-cache", [140], [333], 2, 1, 8, {}),
        ("long-window", [300, 150], [300, 150], 2, 1, 8, {"window": 70}),
        ("long-window-cache", [140], [333], 2, 1, 8, {"window": 33, "softcap": 3.0}),
        ("many-equal-documents", [64] * 40, [64] * 40, 8, 2, 4, {}),
    ]
    return [
        Case("attention", label, lambda dtype, rest=tuple(rest): _attention(dtype, *rest), rows is grid)
        for rows in (grid, large)
        for label, *rest in rows
    ]


def _rms_norm(dtype: torch.dtype, tokens: int, width: int, unit_offset: bool, fp32_weight: bool) -> Example:
    random = _Random()
    x, weight = random(tokens, width), random(width)
    return Example(
        RMSNormRequest(dtype, width, unit_offset),
        (x.to(dtype), weight.to(torch.float32 if fp32_weight else dtype)),
        options={"eps": 1e-5, "unit_offset": unit_offset},
    )


def _rms_norm_cases() -> list[Case]:
    return [
        Case(
            "rms_norm",
            _words(f"{tokens}x{width}", unit_offset=offset, fp32_weight=fp32),
            lambda dtype, rest=(tokens, width, offset, fp32): _rms_norm(dtype, *rest),
            mixed=fp32,
        )
        for (tokens, width), offset, fp32 in product(((1, 1), (5, 16), (3, 37)), (False, True), (False, True))
    ]


def _add_rms_norm(
    dtype: torch.dtype, tokens: int, width: int, unit_offset: bool, fp32_residual: bool, fp32_weight: bool
) -> Example:
    random = _Random()
    x, residual, weight = random(tokens, width), random(tokens, width), random(width)
    return Example(
        AddRMSNormRequest(dtype, width, unit_offset, fp32_residual),
        (
            x.to(dtype),
            residual.to(torch.float32 if fp32_residual else dtype),
            weight.to(torch.float32 if fp32_weight else dtype),
        ),
        options={"eps": 1e-5, "unit_offset": unit_offset},
    )


def _add_rms_norm_cases() -> list[Case]:
    flags = (False, True)
    return [
        Case(
            "add_rms_norm",
            _words(f"{tokens}x{width}", unit_offset=offset, fp32_residual=residual, fp32_weight=weight),
            lambda dtype, rest=(tokens, width, offset, residual, weight): _add_rms_norm(dtype, *rest),
            mixed=residual or weight,
        )
        for (tokens, width), offset, residual, weight in product(((5, 16), (3, 37)), flags, flags, flags)
    ]


def _layer_norm(dtype: torch.dtype, tokens: int, width: int, bias: bool, fp32_weight: bool) -> Example:
    random, weights = _Random(), torch.float32 if fp32_weight else dtype
    x, weight, shift = random(tokens, width) + 0.5, random(width), random(width)
    inputs = (x.to(dtype), weight.to(weights))
    request, options = LayerNormRequest(dtype, width, bias), {"eps": 1e-5}
    if bias:
        return Example(request, (*inputs, shift.to(weights)), options=options)
    return Example(request, inputs, (None,), options)


def _layer_norm_cases() -> list[Case]:
    return [
        Case(
            "layer_norm",
            _words(f"{tokens}x{width}", bias=bias, fp32_weight=fp32),
            lambda dtype, rest=(tokens, width, bias, fp32): _layer_norm(dtype, *rest),
            mixed=fp32,
        )
        for (tokens, width), bias, fp32 in product(((1, 4), (5, 16), (3, 37)), (False, True), (False, True))
    ]


def _rotary(dtype: torch.dtype, tokens: int, heads: int, width: int, pairs: int, interleaved: bool) -> Example:
    random = _Random()
    x, angles = random(tokens, heads, width), 3 * random(tokens, pairs)
    return Example(
        RotaryRequest(dtype, width, pairs, interleaved),
        (x.to(dtype),),
        (angles.cos().float(), angles.sin().float()),
        {"interleaved": interleaved},
    )


def _rotary_cases() -> list[Case]:
    return [
        Case(
            "rotary",
            _words(f"{pairs}-pairs-of-{width}", interleaved=interleaved),
            lambda dtype, rest=(5, 3, width, pairs, interleaved): _rotary(dtype, *rest),
        )
        for (width, pairs), interleaved in product(((8, 4), (8, 3), (8, 1), (2, 1), (7, 3)), (False, True))
    ]


def _swiglu(dtype: torch.dtype, tokens: int, width: int) -> Example:
    random = _Random()
    gate, up = 2 * random(tokens, width), random(tokens, width)
    return Example(SwiGLURequest(dtype, width), (gate.to(dtype), up.to(dtype)))


def _swiglu_cases() -> list[Case]:
    return [
        Case("swiglu", f"{tokens}x{width}", lambda dtype, rest=(tokens, width): _swiglu(dtype, *rest))
        for tokens, width in ((1, 1), (5, 16), (3, 37))
    ]


def _geglu(dtype: torch.dtype, tokens: int, width: int, approximate: str) -> Example:
    example = _swiglu(dtype, tokens, width)
    return Example(GeGLURequest(dtype, width, approximate), example.inputs, (), {"approximate": approximate})


def _geglu_cases() -> list[Case]:
    return [
        Case("geglu", f"{tokens}x{width}-{way}", lambda dtype, rest=(tokens, width, way): _geglu(dtype, *rest))
        for (tokens, width), way in product(((1, 1), (5, 16), (3, 37)), ("tanh", "none"))
    ]


_LOSS_OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("plain", {}),
    ("smoothing", {"label_smoothing": 0.1}),
    ("z-loss", {"z_loss": 1e-2}),
    ("own-ignore-index", {"ignore_index": 3}),
    ("everything", {"label_smoothing": 0.2, "z_loss": 1e-2, "ignore_index": -1}),
)


def _labels(logits_TV: Tensor, ignore_index: int) -> Tensor:
    """A third of the labels is what the logits favour, a third is random, a third ignored."""
    labels_T = logits_TV.argmax(-1)
    labels_T[1::3] = _Random(5).below(logits_TV.shape[1], len(labels_T[1::3]))
    labels_T[2::3] = ignore_index
    return labels_T


def _weights(tokens: int, weighted: bool) -> Tensor | None:
    return _Random(6)(tokens).abs().float() if weighted else None


def _cross_entropy(dtype: torch.dtype, tokens: int, vocab: int, weighted: bool, options: dict) -> Example:
    logits = 3 * _Random()(tokens, vocab)
    constants = (_labels(logits, options.get("ignore_index", -100)), _weights(tokens, weighted))
    return Example(CrossEntropyRequest(dtype, vocab), (logits.to(dtype),), constants, options)


def _cross_entropy_cases() -> list[Case]:
    return [
        Case(
            "cross_entropy",
            _words(f"{tokens}x{vocab}-{label}", weighted=weighted),
            lambda dtype, rest=(tokens, vocab, weighted, options): _cross_entropy(dtype, *rest),
        )
        for (tokens, vocab), (label, options), weighted in product(((2, 5), (13, 37)), _LOSS_OPTIONS, (False, True))
    ]


def _linear_cross_entropy(
    dtype: torch.dtype, tokens: int, width: int, vocab: int, weighted: bool, options: dict
) -> Example:
    random = _Random()
    hidden, weight = random(tokens, width), random(vocab, width)
    constants = (_labels(hidden @ weight.T, options.get("ignore_index", -100)), _weights(tokens, weighted))
    request = LinearCrossEntropyRequest(dtype, width, vocab)
    return Example(request, (hidden.to(dtype), weight.to(dtype)), constants, options)


def _linear_cross_entropy_cases() -> list[Case]:
    return [
        Case(
            "linear_cross_entropy",
            _words(f"{tokens}x{width}x{vocab}-{label}", weighted=weighted),
            lambda dtype, rest=(tokens, width, vocab, weighted, options): _linear_cross_entropy(dtype, *rest),
        )
        for (tokens, width, vocab), (label, options), weighted in product(
            ((2, 3, 5), (13, 8, 37)), _LOSS_OPTIONS, (False, True)
        )
    ]


def _words(*words: str, **flags: bool) -> str:
    return "-".join((*words, *(name for name, value in flags.items() if value)))


_GRIDS: dict[str, Callable[[], list[Case]]] = {
    "attention": _attention_cases,
    "rms_norm": _rms_norm_cases,
    "add_rms_norm": _add_rms_norm_cases,
    "layer_norm": _layer_norm_cases,
    "rotary": _rotary_cases,
    "swiglu": _swiglu_cases,
    "geglu": _geglu_cases,
    "cross_entropy": _cross_entropy_cases,
    "linear_cross_entropy": _linear_cross_entropy_cases,
}
