"""Chooses one kernel per request before the first step, and can say why it chose it.

Nothing here runs in a step: a layer receives the chosen function itself. Nothing falls back by catching an exception
either: ranks would diverge. All ranks compare ``Resolution.digest`` before step 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from evocore.errors import UserError
from evocore.ops.contracts import check_contracts
from evocore.ops.kernel import Kernel, Request

ENVIRONMENT = "EVOCORE_KERNELS"


@dataclass(frozen=True)
class Choice:
    """One request with the kernel that won it and the reason why each other candidate did not."""

    request: Request
    kernel: Kernel
    rejected: tuple[tuple[Kernel, str], ...]


@dataclass(frozen=True)
class Resolution:
    """The table of choices of a whole model."""

    device: str
    choices: tuple[Choice, ...]
    _functions: dict[Request, Callable[..., Any]] = field(default_factory=dict, repr=False, compare=False)

    def function(self, request: Request) -> Callable[..., Any]:
        """The kernel's own function for a request that was resolved; imported on first use.

        Raises:
            KeyError: if the request was not among those resolved.
        """
        if request not in self._functions:
            kernels = {choice.request: choice.kernel for choice in self.choices}
            self._functions[request] = kernels[request].load()
        return self._functions[request]

    def lines(self) -> list[str]:
        """One sorted line per choice; equal on two ranks exactly if they run the same kernels."""
        return sorted(
            f"{choice.request.op} [{choice.request}] -> {choice.kernel.provider} {choice.kernel.target}"
            for choice in self.choices
        )

    def digest(self) -> str:
        """Short hash of ``lines``."""
        return hashlib.sha256("\n".join(self.lines()).encode()).hexdigest()[:16]

    def table(self) -> list[dict[str, Any]]:
        """The choices as plain data, for ``kernels.json`` and the command line."""
        return [
            {
                "op": choice.request.op,
                "request": str(choice.request),
                "provider": choice.kernel.provider,
                "target": choice.kernel.target,
                "priority": choice.kernel.priority,
                "evidence": choice.kernel.evidence,
                "deterministic": choice.kernel.deterministic,
                "rejected": [
                    {"provider": kernel.provider, "devices": sorted(kernel.devices), "reason": reason}
                    for kernel, reason in choice.rejected
                ],
            }
            for choice in sorted(self.choices, key=lambda choice: (choice.request.op, str(choice.request)))
        ]


def forced_providers(config: Mapping[str, str], environment: str = "") -> dict[str, str]:
    """Merge ``kernels`` of the config with ``EVOCORE_KERNELS=op=provider,...``, which wins.

    Raises:
        UserError: if the variable has another form.
    """
    forced = dict(config)
    for word in filter(None, (word.strip() for word in environment.split(","))):
        op, equals, provider = word.partition("=")
        if not (op and equals and provider):
            raise UserError(
                f"{ENVIRONMENT} holds {word!r}",
                "op=provider pairs, separated by commas, e.g. attention=native,rms_norm=reference",
                f"correct or unset {ENVIRONMENT} (`evocore kernels` lists ops and providers)",
            )
        forced[op] = provider
    return forced


def resolve(
    requests: Iterable[Request],
    kernels: Iterable[Kernel],
    device: str,
    forced: Mapping[str, str] | None = None,
    *,
    deterministic: bool = False,
) -> Resolution:
    """Choose the kernel of highest priority that can serve each request.

    Args:
        requests: what the model's layers need.
        kernels: every offer of every plug-in.
        device: device type of the chosen backend.
        forced: op -> provider, from the config or ``EVOCORE_KERNELS``; such a kernel serves or it is an error.
        deterministic: leave out kernels that do not repeat themselves to the bit.

    Raises:
        UserError: if a request finds no kernel, a forced one cannot serve, a forced op or provider does not exist, or
            a plug-in offers a kernel for a contract that does not exist; all such problems are named at once.
    """
    offers, forced = list(kernels), forced or {}
    check_contracts(offers)
    problems = _unknown(forced, offers)
    choices = []
    for request in dict.fromkeys(requests):
        choice = _choose(request, offers, device, forced.get(request.op), deterministic)
        if isinstance(choice, str):
            problems.append(choice)
        else:
            choices.append(choice)
    if problems:
        raise UserError(
            "no kernel can serve: " + "\n    ".join(problems),
            f"for each op one provider that runs on {device} and serves what the model asks for",
            f"force another provider (`kernels` in the config, {ENVIRONMENT}), install what is missing, or change "
            "the model's dtype or backend",
        )
    return Resolution(device, tuple(choices))


def _choose(
    request: Request, offers: list[Kernel], device: str, forced: str | None, deterministic: bool
) -> Choice | str:
    usable: list[Kernel] = []
    rejected: list[tuple[Kernel, str]] = []
    candidates = [kernel for kernel in offers if kernel.op == request.op]
    for kernel in sorted(candidates, key=lambda kernel: (-kernel.priority, kernel.provider)):
        reason = kernel.why_not(request, device)
        if reason is None and deterministic and not kernel.deterministic:
            reason = "not deterministic, which the config asks for"
        if reason is None and forced is not None and kernel.provider != forced:
            reason = f"{forced} is forced"
        if reason is None:
            usable.append(kernel)
        else:
            rejected.append((kernel, reason))
    if not usable:
        told = [(kernel, reason) for kernel, reason in rejected if forced is None or kernel.provider == forced]
        listing = "; ".join(f"{kernel.provider}: {reason}" for kernel, reason in told) or "no provider at all"
        return f"{request.op} on {device} for [{request}]: {listing}"
    best, *others = usable
    rejected += [(kernel, f"priority {kernel.priority} < {best.priority}") for kernel in others]
    return Choice(request, best, tuple(rejected))


def _unknown(forced: Mapping[str, str], offers: list[Kernel]) -> list[str]:
    providers: dict[str, set[str]] = {}
    for kernel in offers:
        providers.setdefault(kernel.op, set()).add(kernel.provider)
    problems = []
    for op, provider in forced.items():
        if op not in providers:
            problems.append(f"{op}={provider} is forced, but there is no such op: {', '.join(sorted(providers))}")
        elif provider not in providers[op]:
            problems.append(f"{op}={provider} is forced, but its providers are {', '.join(sorted(providers[op]))}")
    return problems
