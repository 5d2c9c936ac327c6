"""What a step has to do with the routers of a model: their losses' weights, their loads, their biases.

The auxiliary losses of a step are means over its micro-batches, whichever ranks these are on, as every router's are
means over a micro-batch's tokens: what is differentiated is
``cross entropy + sum over layers of (balance coefficient * balance loss + z coefficient * z-loss)``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from evocore.nn.router import LossWeights, Router
from evocore.parallel.runtime import Runtime
from evocore.seeds import derive_seed


class Routers:
    """The routers on this rank, and what all ranks' have done.

    Args:
        layers: of the whole model.
        experts: of each of its mixtures.
        coefficients: of the losses.
    """

    def __init__(
        self, model: nn.Module, runtime: Runtime, *, layers: int, experts: int, coefficients: LossWeights
    ) -> None:
        self._routers = [module for module in model.modules() if isinstance(module, Router)]
        self._seed = self._first = 0
        self._runtime, self._layers, self._experts, self._coefficients = runtime, layers, experts, coefficients

    def begin(self, micro_batches: int, loss_scale: float, seed: int) -> None:
        """Before the first forward of a step with so many micro-batches on this rank.

        Args:
            seed: of the step's random numbers, the same on all ranks.
        """
        self._seed, self._first = seed, self._runtime.data_rank * micro_batches
        share = loss_scale / (micro_batches * self._runtime.data_size)
        weights = LossWeights(self._coefficients.balance * share, self._coefficients.z * share)
        for router in self._routers:
            router.loss_weights = weights
            router.record.take()

    def at(self, micro: int) -> None:
        """What comes next is of this micro-batch: the random numbers are its own, whichever rank computes it."""
        for router in self._routers:
            if router.rule.draws:
                router.seed = derive_seed(self._seed, self._first + micro)

    def finish(self, micro_batches: int, device: torch.device, *, applied: bool) -> dict[str, Any]:
        """After a step: correct the biases if it was applied, and tell what happened.

        Returns:
            ``moe_loss``: the weighted sum of the losses; and for each layer n with experts ``moe/load/n`` (choices of
            each expert), ``moe/load_max/n`` (of the busiest, relative to the mean), ``moe/dropped/n`` (choices that
            no expert took) and ``moe/entropy/n`` (mean over tokens, in nats).
        """
        sums = torch.zeros(self._layers, 2 * self._experts + 4, dtype=torch.float32, device=device)
        for router in self._routers:
            mine = router.record.take()
            assert mine is not None, router.layer
            sums[router.layer] = mine
        self._runtime.sum_of_routed(sums)
        if applied:
            for router in self._routers:
                router.correct_bias(sums[router.layer, : self._experts])
        return self._figures(sums.cpu(), micro_batches * self._runtime.data_size)

    def _figures(self, sums: Tensor, micro_batches: int) -> dict[str, Any]:
        experts, total = self._experts, 0.0
        found: dict[str, Any] = {}
        for layer, row in enumerate(sums):
            load_E, kept_E = row[:experts], row[experts : 2 * experts]
            tokens, entropy, balance, z = row[2 * experts :].tolist()
            if not tokens:  # a dense layer
                continue
            total += (self._coefficients.balance * balance + self._coefficients.z * z) / micro_batches
            found |= {
                f"moe/load/{layer}": [int(load) for load in load_E],
                f"moe/load_max/{layer}": float(load_E.max() / load_E.mean()),
                f"moe/dropped/{layer}": int(load_E.sum() - kept_E.sum()),
                f"moe/entropy/{layer}": entropy / tokens,
            }
        return {"moe_loss": total, **found}
