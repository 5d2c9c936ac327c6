"""Shadow mode: on sampled steps the references run beside the chosen kernels, and every call leaves a fingerprint.

This is how a device is aligned with another, or a new kernel with an old one, inside a real run: with its weights,
data and gradients. Nothing that training computes changes, to the bit. A config without ``kernels_check`` binds
the kernels' own functions, and nothing here is on their path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from evocore.data.batch import MicroBatch
from evocore.ops.kernel import Request
from evocore.ops.resolution import Resolution
from evocore.training.shadow.calls import CHECKED, RESULTS, UPDATE, named, tensors_of
from evocore.training.shadow.fingerprints import data_digest
from evocore.training.shadow.log import Facts, StepLog
from evocore.training.shadow.references import Seen, UpdateCheck, compare_call, oracle_dtype
from evocore.training.shadow.selection import checked_ops, references
from evocore.training.shadow.taps import tapped

if TYPE_CHECKING:
    from evocore.config.schema_kernels import KernelsCheck

Function = Callable[..., Any]


class Shadow:
    """Watches the kernels of one run on one rank.

    Args:
        settings: ``kernels_check`` of the config.
        resolution: the run's kernels.

    Raises:
        UserError: if an op is named that cannot be checked, or a reference is missing.
    """

    def __init__(self, settings: KernelsCheck, resolution: Resolution) -> None:
        self.active = False
        """Whether the step is sampled; what a bound kernel looks at first."""
        self._settings = settings
        self._providers = {choice.request: choice.kernel.provider for choice in resolution.choices}
        self._references = references(checked_ops(settings, resolution), resolution)
        self._unwatched = sorted({choice.request.op for choice in resolution.choices} - set(CHECKED))
        self._oracle = torch.float32
        self._log: StepLog | None = None
        self._turn, self._micro_batch, self._recomputing = 0, -1, False
        self._calls: Counter[tuple[str, str]] = Counter()

    # --- before the run ---------------------------------------------------------------------------------------------

    def wrap(self, function: Function, request: Request, layer: str) -> Function:
        """What to bind instead of a kernel: the kernel itself if its op is not watched.

        Args:
            layer: name of the layer in the model; the model itself has none.
        """
        op = request.op
        if op not in CHECKED or not (self._settings.fingerprints or op in self._references):
            return function
        facts = {
            "layer": layer or "(model)",
            "op": op,
            "provider": self._providers[request],
            "dtype": str(request.dtype).removeprefix("torch."),
        }
        return (WatchedUpdate if op == UPDATE else Watched)(self, function, facts)

    def attach(self, model: nn.Module, folder: Path, device: torch.device, first_step: int) -> list[str]:
        """Get ready to watch a model whose layers hold what ``wrap`` returned.

        Returns:
            Lines for the launch report.
        """
        self._oracle = oracle_dtype(device)
        self._log = StepLog(folder, first_step, fingerprints=self._settings.fingerprints)
        model.register_forward_pre_hook(lambda *_: self._start_forward())
        model.register_forward_hook(lambda module, inputs, hidden: self._end_forward(hidden))
        wide = str(self._oracle).removeprefix("torch.")
        lines = [
            f"kernels check at step 1 and every {self._settings.every} steps, oracle in {wide}: "
            + ", ".join(self._references)
        ]
        if self._unwatched:
            lines.append(f"kernels check: {', '.join(self._unwatched)} cannot be watched")
        return lines

    # --- during the run ---------------------------------------------------------------------------------------------

    def start_step(self, step: int, micro_batches: Sequence[MicroBatch]) -> None:
        """Decide whether this step is sampled."""
        self.active = step == 1 or step % self._settings.every == 0
        if self.active:
            self._turn, self._micro_batch = step // self._settings.every, -1
            self.log.start(step, [(data_digest(batch), batch.tokens_T.numel()) for batch in micro_batches])

    def end_step(self, loss: float, grad_norm: float) -> list[str]:
        """Write what was found in a sampled step; a line that sums it up, and one per kernel that errs too much."""
        if not self.active:
            return []
        self.active = False
        return self.log.end(loss, grad_norm)

    @property
    def log(self) -> StepLog:
        assert self._log is not None, "attach comes first"
        return self._log

    def _start_forward(self) -> None:
        self._micro_batch, self._recomputing = self._micro_batch + 1, False
        self._calls.clear()

    def _end_forward(self, hidden: Tensor) -> None:
        """The gradient of the model's result comes before those of its layers: from then on calls are repetitions."""
        if self.active and hidden.requires_grad:
            hidden.register_hook(lambda gradient: self._start_backward())

    def _start_backward(self) -> None:
        self._recomputing = True

    # --- calls ------------------------------------------------------------------------------------------------------

    def call(self, function: Function, facts: Facts, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """One call of a kernel in a sampled step."""
        call, repeated = self._numbered(facts), self._recomputing
        op, arguments = facts["op"], named(facts["op"], args, kwargs)
        inputs = list(tensors_of(arguments))
        constants = {name: None if name in inputs else x for name, x in arguments.items()}  # no tensor is kept alive

        def differentiated(
            input_tensors: Sequence[Tensor],
            output_tensors: Sequence[Tensor],
            from_above: Sequence[Tensor | None],
            input_gradients: Sequence[Tensor | None],
        ) -> None:
            gradients = {name: x for name, x in zip(inputs, input_gradients, strict=True) if x is not None}
            above = {name: x for name, x in zip(RESULTS[op], from_above, strict=True) if x is not None}
            tensors = dict(zip(inputs, input_tensors, strict=True))
            seen = Seen(constants | tensors, dict(zip(RESULTS[op], output_tensors, strict=True)), above, gradients)
            self.log.add_fingerprints(call, "backward", {_gradient_of(name): x for name, x in gradients.items()})
            self._compare(function, call, seen, with_forward=not repeated)

        returned, results = tapped(function, args, kwargs, differentiated)
        outputs = dict(zip(RESULTS[op], results, strict=True))
        if not repeated:
            self.log.add_fingerprints(call, "forward", outputs)
            if not _is_differentiable(returned):
                self._compare(function, call, Seen(arguments, outputs), with_forward=True)
        return returned

    def update(
        self, function: Function, facts: Facts, tensors: Sequence[list[Tensor]], options: dict[str, Any]
    ) -> None:
        """One call of the optimizer's kernel in a sampled step."""
        call, reference = self._numbered(facts), self._references.get(UPDATE)
        check = None if reference is None else UpdateCheck(tensors, self._turn)
        function(*tensors, **options)
        if check is not None and reference is not None:
            self.log.add_ratios(call, "forward", check.compare(reference, options, self._oracle), check.part)
        for name, entries in zip(("param", None, "exp_avg", "exp_avg_sq"), tensors, strict=True):
            if name is not None:
                many = len(entries) > 1
                named_entries = {f"{name} {number}" if many else name: x for number, x in enumerate(entries)}
                self.log.add_fingerprints(call, "forward", named_entries)

    def _compare(self, kernel: Function, call: Facts, seen: Seen, *, with_forward: bool) -> None:
        reference = self._references.get(call["op"])
        if reference is None:
            return
        verdict = compare_call(call["op"], kernel, reference, seen, self._oracle, self._turn)
        if with_forward:
            self.log.add_ratios(call, "forward", verdict.forward, verdict.part)
        gradients = {_gradient_of(name): x for name, x in verdict.backward.items()}
        self.log.add_ratios(call, "backward", gradients, verdict.part)

    def _numbered(self, facts: Facts) -> Facts:
        """``facts`` of this call: which one it is of its op, in its layer and micro-batch."""
        key = facts["layer"], facts["op"]
        number = self._calls[key]
        self._calls[key] += 1
        return {"micro_batch": self._micro_batch, "call": number, **facts}


class Watched:
    """Stands in for a kernel; on a step that is not sampled it is one look at an attribute away from it."""

    __slots__ = ("_facts", "_function", "_shadow")

    def __init__(self, shadow: Shadow, function: Function, facts: Facts) -> None:
        self._shadow, self._function, self._facts = shadow, function, facts

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._shadow.active:
            return self._function(*args, **kwargs)
        return self._shadow.call(self._function, self._facts, args, kwargs)


class WatchedUpdate(Watched):
    """The same for the optimizer's kernel, which changes its arguments."""

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._shadow.active:
            return self._function(*args, **kwargs)
        return self._shadow.update(self._function, self._facts, args, kwargs)


def _gradient_of(name: str) -> str:
    return f"gradient of {name}"


def _is_differentiable(returned: Any) -> bool:
    values = [returned] if isinstance(returned, Tensor) else returned
    return any(value.requires_grad for value in values)
