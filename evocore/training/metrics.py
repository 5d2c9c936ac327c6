"""The figures of each step, under the names that InternEvo's users know, and MFU and HFU from exact counts.

Shapes: T tokens.
"""

from __future__ import annotations

import math
from collections import deque

import torch
from torch import Tensor

from evocore.data.batch import MicroBatch
from evocore.ops.cross_entropy import IGNORE_INDEX, TokenLoss
from evocore.training.flops import Flops


class TokenMeter:
    """Sums of loss, hits and tokens over a step's micro-batches, for all tokens and for each dataset type.

    Everything stays on the device until ``sums`` is read, so that no micro-batch waits for it. Row 0 is for all
    tokens, row 1 + i for type i; columns are targets, loss, hits.
    """

    def __init__(self, type_names: tuple[str, ...], device: torch.device) -> None:
        self.type_names = type_names
        self.sums = torch.zeros(1 + len(type_names), 3, dtype=torch.float32, device=device)

    def add(self, loss: TokenLoss, labels_T: Tensor, types_T: Tensor | None) -> None:
        """Count one micro-batch."""
        columns_T3 = torch.stack([(labels_T != IGNORE_INDEX).float(), loss.loss_T, loss.correct_T.float()], dim=1)
        self.sums[0] += columns_T3.sum(0)
        if types_T is not None and len(self.type_names) > 1:
            self.sums[1:].index_add_(0, types_T, columns_T3)

    def figures(self) -> dict[str, float]:
        """Accuracy, loss and perplexity, also by type, from sums that were reduced over the data ranks."""
        rows = self.sums.tolist()
        targets, loss, hits = rows[0]
        mean = loss / max(targets, 1)
        found = {"acc": hits / max(targets, 1), "perplexity": perplexity(mean), "loss_from_metric": mean}
        for name, (count, part, right) in zip(self.type_names, rows[1:], strict=True):
            if count:
                found |= {f"loss/{name}": part / count, f"acc/{name}": right / count, f"tokens/{name}": int(count)}
        return found


def perplexity(loss: float) -> float:
    """``exp(loss)``; infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


class Throughput:
    """Tokens per second and device (tgs) of the last step and over several horizons."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, float]] = deque(maxlen=50)
        self._rates_sum, self._steps = 0.0, 0
        self._tokens, self._seconds = 0.0, 0.0
        self._held = {"tgs/last_tgs_10": 0.0, "tgs/last_tgs_50": 0.0}

    def add(self, tokens: float, seconds: float) -> dict[str, float]:
        """Count a step of this device; ``last_tgs_n`` changes every n steps, ``tgs_SMA`` moves over 50."""
        self._recent.append((tokens, seconds))
        self._steps += 1
        self._tokens += tokens
        self._seconds += seconds
        rate = tokens / seconds
        self._rates_sum += rate
        for length in (10, 50):
            if self._steps % length == 0:
                self._held[f"tgs/last_tgs_{length}"] = self._rate_of_last(length)
        return {
            "tgs": rate,
            "tgs/last_tgs_1": rate,
            "tgs/tgs_all": self._tokens / self._seconds,
            "tgs/tgs_avg": self._rates_sum / self._steps,
            "tgs/tgs_SMA": self._rate_of_last(50),
            **self._held,
        }

    def _rate_of_last(self, length: int) -> float:
        last = list(self._recent)[-length:]
        return sum(tokens for tokens, _ in last) / sum(seconds for _, seconds in last)


def batch_figures(micro_batches: list[MicroBatch]) -> dict[str, int]:
    """How many documents the step holds on this rank, the longest, and the largest and smallest micro-batch."""
    lengths = [batch.lengths for batch in micro_batches]
    counts = [len(documents) for documents in lengths]
    return {
        "num_samples_in_batch": sum(counts),
        "largest_length": max(max(documents) for documents in lengths),
        "largest_batch": max(counts),
        "smallest_batch": min(counts),
    }


def utilisation(flops: Flops, seconds: float, peak: float | None) -> dict[str, float | None]:
    """TFLOP/s of this device and its shares of the peak; None where the peak is unknown."""
    return {
        "tflops": flops.hardware / seconds / 1e12,
        "mfu": None if peak is None else flops.model / seconds / peak,
        "hfu": None if peak is None else flops.hardware / seconds / peak,
    }
