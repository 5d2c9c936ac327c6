"""Examines an installation: plug-ins, backends, versions, environment, and what is wrong among them.

Nothing here may fail because what it looks at is broken: that is when it is asked.
"""

from __future__ import annotations

import os
import platform
import re
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from evocore.backend import Backend, choose_backend, probe
from evocore.errors import UserError
from evocore.parallel.launch import detect_launch
from evocore.plugins.manager import PluginRegistry, PluginStatus

RELEVANT = re.compile(
    r"EVOCORE_|SLURM_(JOB_ID|PROCID|LOCALID|NTASKS|NPROCS|.*NODELIST|.*TASKS_PER_NODE)|TORCHELASTIC_|MASTER_|OMP_NUM_THREADS$"
    r"|(LOCAL_)?RANK$|(LOCAL_)?WORLD_SIZE$"
)
ABSENT = "not installed"


@dataclass(frozen=True)
class BackendStatus:
    """One backend on this machine.

    ``problem`` is None if it can be used; ``detail`` is the traceback if it raised when it was asked.
    """

    name: str
    device_type: str
    priority: int
    problem: str | None
    detail: str = ""
    devices: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Problem:
    """What is wrong, and what to do."""

    what: str
    advice: str


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was found.

    Attributes:
        versions: of Python, of what evocore needs and of what any kernel needs, by package.
        chosen: the backend that a run would use, None if there is none.
        environment: the variables that change what evocore does.
    """

    versions: dict[str, str]
    plugins: list[PluginStatus]
    backends: list[BackendStatus]
    chosen: str | None
    environment: dict[str, str]
    problems: list[Problem]


def examine(registry: PluginRegistry, environ: Mapping[str, str] = os.environ) -> Diagnosis:
    """Look at everything that a run depends on, without starting one."""
    offers, kernels = registry.backends(), registry.kernels()
    registry.models()  # asked like the others, so that a hook that raises is on record
    backends = survey_backends(offers)
    problems = [*_plugin_problems(registry.statuses), *_backend_problems(backends)]
    needed: list[Requirement] = []
    if _installed("evocore") == ABSENT:
        problems.append(Problem("evocore is not installed, so that its plug-ins are not found", "pip install -e ."))
    else:
        stated = [Requirement(text) for text in requires("evocore") or []]
        needed = [requirement for requirement in stated if _applies(requirement)]
        problems += _unmet(needed)
    optional = [Requirement(text) for kernel in kernels for text in kernel.requires]
    chosen = None
    try:
        chosen = choose_backend(offers)[0].name
    except UserError as error:
        problems.append(_as_problem(error))
    try:
        launch = detect_launch(environ=environ)
        if launch.local_world_size > 1 and "OMP_NUM_THREADS" not in environ:
            problems.append(
                Problem(
                    f"{launch.local_world_size} processes on this machine would each use all of its cores",
                    f"set OMP_NUM_THREADS to about {max(1, (os.cpu_count() or 1) // launch.local_world_size)}",
                )
            )
    except UserError as error:
        problems.append(_as_problem(error))
    return Diagnosis(
        versions=_versions([*needed, *optional]),
        plugins=registry.statuses,
        backends=backends,
        chosen=chosen,
        environment={name: environ[name] for name in sorted(environ) if RELEVANT.match(name)},
        problems=problems,
    )


def survey_backends(offers: Iterable[type[Backend]]) -> list[BackendStatus]:
    """What each backend says of itself on this machine, the preferred one first."""
    return sorted((_survey(offer) for offer in offers), key=lambda status: (-status.priority, status.name))


def _survey(offer: type[Backend]) -> BackendStatus:
    asked = probe(offer)
    status = BackendStatus(
        asked.name, getattr(offer, "device_type", "?"), getattr(offer, "priority", 0), asked.problem, asked.detail
    )
    if asked.backend is None or asked.problem is not None:
        return status
    backend = asked.backend
    try:
        return replace(
            status,
            devices=[backend.device_name(backend.device(number)) for number in range(backend.device_count())],
            versions=backend.versions(),
            warnings=backend.health_problems(),
        )
    except Exception as error:  # noqa: BLE001 - it can be used, but cannot tell about itself: a finding
        return replace(status, problem=f"raised {type(error).__name__}: {error}", detail=traceback.format_exc())


def _versions(requirements: Iterable[Requirement]) -> dict[str, str]:
    names = sorted({requirement.name for requirement in requirements}, key=str.lower)
    return {"python": platform.python_version(), "evocore": _installed("evocore")} | {
        name: _installed(name) for name in names
    }


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ABSENT


def _applies(requirement: Requirement) -> bool:
    """Whether it is needed on this machine, extras aside."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def _unmet(requirements: Iterable[Requirement]) -> Iterable[Problem]:
    for requirement in requirements:
        found = _installed(requirement.name)
        if found == ABSENT or not requirement.specifier.contains(found, prereleases=True):
            wanted = f"{requirement.name}{requirement.specifier}"
            yield Problem(f"evocore needs {wanted}: {found}", f"pip install '{wanted}'")


def _plugin_problems(statuses: Iterable[PluginStatus]) -> Iterable[Problem]:
    for status in statuses:
        if status.detail:
            yield Problem(
                f"plug-in {status.name} ({status.distribution} {status.version}) failed: {status.problem}",
                f"mend or update {status.distribution}, or block the plug-in with EVOCORE_PLUGINS=no:{status.name}",
            )


def _backend_problems(backends: list[BackendStatus]) -> Iterable[Problem]:
    names = [status.name for status in backends]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Problem(f"{names.count(name)} backends are called {name}", "block all but one plug-in that brings it")
    for status in backends:
        if status.detail:
            advice = "mend or block the plug-in that brings it: until then every choice of a backend raises"
            yield Problem(f"backend {status.name} {status.problem}", advice)
        for line in status.warnings:
            yield Problem(f"backend {status.name}: {line}", "see there: the line names its cure")


def _as_problem(error: UserError) -> Problem:
    return Problem(error.wrong, error.fix)
