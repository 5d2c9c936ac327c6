"""Angles of the rotary position embedding (Su et al., 2021, section 3.2.2), and the ways to stretch them.

A model that was trained on short documents reads longer ones if its angles grow more slowly. How much more slowly is
decided for each pair of features: all alike (linear), by a larger base (dynamic NTK), or the slow pairs only, which
never see a whole turn in training (Llama 3, YaRN).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from evocore.ops.attention import CuSeqlens

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn"]


@dataclass(frozen=True)
class RopeScaling:
    """How angles are stretched.

    Attributes:
        kind: ``linear`` divides all of them by ``factor`` (Chen et al., 2023). ``dynamic`` enlarges the base for
            sequences longer than ``trained_positions``, the more the longer they are. ``llama3`` divides those of
            pairs whose wavelength is more than ``trained_positions / low_frequency``, leaves those below
            ``trained_positions / high_frequency`` and goes from one to the other in between (Llama 3.1's release).
            ``yarn`` does the same between pairs that turn ``beta_fast`` and ``beta_slow`` times in
            ``trained_positions`` and scales queries and keys (Peng et al., 2023, sections 3.2 and 3.4).
        trained_positions: length of the sequences that the model was trained on before.
        attention_factor: of cosines and sines with ``yarn``; None for ``0.1 ln(factor) + 1``, or with ``mscales``
            ``(0.1 a ln(factor) + 1) / (0.1 b ln(factor) + 1)``.
        mscales: a and b of that formula (DeepSeek-V2).
        truncate: with ``yarn``, let the pairs between which it changes be whole numbers.
    """

    kind: RopeKind = "default"
    factor: float = 1.0
    trained_positions: int = 2048
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscales: tuple[float, float] | None = None
    truncate: bool = True

    @property
    def amplitude(self) -> float:
        """Factor of cosines and sines."""
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscales is None:
            return _yarn_amplitude(self.factor, 1.0)
        above, below = self.mscales
        return _yarn_amplitude(self.factor, above) / _yarn_amplitude(self.factor, below)

    @property
    def latent_scale(self) -> float:
        """Factor of the scores of latent attention: the square of what ``amplitude`` is divided by (DeepSeek-V2)."""
        if self.kind != "yarn" or self.mscales is None:
            return 1.0
        return _yarn_amplitude(self.factor, self.mscales[1]) ** 2

    def frequencies(self, head_dim: int, base: float, length: int = 0) -> list[float]:
        """Radians per position of each of the ``head_dim / 2`` pairs, for a sequence of ``length``."""
        if self.kind == "dynamic" and length > self.trained_positions:
            growth = self.factor * length / self.trained_positions - (self.factor - 1)
            base *= growth ** (head_dim / (head_dim - 2))
        plain = [base ** (-2 * pair / head_dim) for pair in range(head_dim // 2)]
        if self.kind == "linear":
            return [frequency / self.factor for frequency in plain]
        if self.kind == "llama3":
            return [self._between(frequency, self._llama3_share(frequency)) for frequency in plain]
        if self.kind == "yarn":
            shares = self._yarn_shares(head_dim, base)
            return [self._between(frequency, share) for frequency, share in zip(plain, shares, strict=True)]
        return plain

    def _between(self, frequency: float, share: float) -> float:
        """``share`` of it as it is, the rest divided by the factor."""
        return frequency * share + frequency / self.factor * (1 - share)

    def _llama3_share(self, frequency: float) -> float:
        turns = self.trained_positions * frequency / (2 * math.pi)
        return _clamped((turns - self.low_frequency) / (self.high_frequency - self.low_frequency))

    def _yarn_shares(self, head_dim: int, base: float) -> list[float]:
        def pair_with(turns: float) -> float:
            """The pair, a fraction perhaps, that makes so many turns in ``trained_positions``."""
            return head_dim * math.log(self.trained_positions / (turns * 2 * math.pi)) / (2 * math.log(base))

        first, last = pair_with(self.beta_fast), pair_with(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, head_dim - 1)
        width = last - first or 0.001
        return [1 - _clamped((pair - first) / width) for pair in range(head_dim // 2)]


PLAIN = RopeScaling()


class RotaryAngles:
    """Turns positions into cosines and sines, once per micro-batch for all layers.

    Args:
        head_dim: H; pair p turns by ``position * base ** (-2 p / H)`` unless ``scaling`` changes it.
        base: of the geometric series of frequencies.
        scaling: how these are stretched.
    """

    def __init__(self, head_dim: int, base: float, scaling: RopeScaling = PLAIN) -> None:
        self.pairs = head_dim // 2
        self._head_dim, self._base, self._scaling = head_dim, base, scaling
        self._frequencies = scaling.frequencies(head_dim, base)
        self._on_device: dict[torch.device, Tensor] = {}

    def __call__(
        self, positions_T: Tensor, documents: CuSeqlens, seen: CuSeqlens | None = None
    ) -> tuple[Tensor, Tensor]:
        """``(cos_TP, sin_TP)`` in float32; the product is exact to float32's last bits for any sensible position.

        Args:
            documents: of a whole micro-batch. With dynamic scaling its longest one decides, for all of them.
            seen: in generation, all that each sequence has so far. With dynamic scaling it decides by itself; what is
                in a cache keeps the angles that it was stored with.
        """
        if self._scaling.kind == "dynamic":
            frequencies = self._by_length(positions_T, documents, seen)
        else:
            frequencies = self._fixed(positions_T.device)
        angles_TP = positions_T.float().unsqueeze(1) * frequencies
        cos_TP, sin_TP = angles_TP.cos(), angles_TP.sin()
        amplitude = self._scaling.amplitude
        return (cos_TP, sin_TP) if amplitude == 1 else (cos_TP * amplitude, sin_TP * amplitude)

    def _fixed(self, device: torch.device) -> Tensor:
        """``[P]``."""
        if device not in self._on_device:
            self._on_device[device] = torch.tensor(self._frequencies, dtype=torch.float32, device=device)
        return self._on_device[device]

    def _by_length(self, positions_T: Tensor, documents: CuSeqlens, seen: CuSeqlens | None) -> Tensor:
        """``[P]`` or, where each sequence has its own, ``[T, P]``."""
        lengths = [documents.longest] if seen is None else seen.lengths
        if max(lengths) <= self._scaling.trained_positions:
            return self._fixed(positions_T.device)
        rows = [self._scaling.frequencies(self._head_dim, self._base, length) for length in lengths]
        frequencies = torch.tensor(rows, dtype=torch.float32, device=positions_T.device)
        if seen is None:
            return frequencies[0]
        new = torch.tensor(documents.lengths, device=positions_T.device)
        return frequencies.repeat_interleave(new, dim=0, output_size=documents.total)


def _yarn_amplitude(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0


def _clamped(share: float) -> float:
    return min(max(share, 0.0), 1.0)
