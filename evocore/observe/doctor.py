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

from packaging.requirements import InvalidRequirement, Requirement

from evocore.backend import Backend, choose_backend, probe
from evocore.errors import UserError
from evocore.ops.contracts import check_contracts
from evocore.parallel.launch import detect_launch
from evocore.plugins.hookspecs import API_VERSION
from evocore.plugins.manager import UNKNOWN, PluginRegistry, PluginStatus, blocked_plugins

RELEVANT = re.compile(
    r"EVOCORE_|SLURM_(JOB_ID|PROCID|LOCALID|NTASKS|NPROCS|.*NODELIST|.*TASKS_PER_NODE)|TORCHELASTIC_|MASTER_"
    r"|(LOCAL_)?(RANK|WORLD_SIZE)$|OMP_|MKL_|TORCH_|PYTORCH_|GLOO_|LD_LIBRARY_PATH$|LD_PRELOAD$|PYTHONPATH$"
)
"""Variables that matter on every device; backends add those of their libraries."""
ABSENT = "not installed"


@dataclass(frozen=True)
class BackendStatus:
    """One backend on this machine.

    Attributes:
        problem: None if it can be used, otherwise why not.
        detail: the traceback, if it raised when it was asked.
        devices: their names; none if it cannot be used.
        versions: of its packages and drivers, also where it cannot be used.
        warnings: what does not fit together or is not as it should be, one line with its cure each.
        variables: names, or beginnings that end in ``_``, of the environment variables that its libraries read.
    """

    name: str
    device_type: str
    priority: int
    problem: str | None
    detail: str = ""
    devices: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    variables: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Problem:
    """What is wrong, and what to do."""

    what: str
    advice: str


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was found.

    Attributes:
        versions: of Python, of the interface to plug-ins, and of the packages that evocore, any plug-in or any kernel
            needs, by package.
        chosen: the backend that a run would use, None if there is none.
        environment: the variables that change what evocore or a device's libraries do.
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
    problems = [
        *_plugin_problems(registry.statuses),
        *_backend_problems(backends),
        *_needless_blocks(registry.statuses, environ),
    ]
    if _installed("evocore") == ABSENT:
        problems.append(Problem("evocore is not installed, so that its plug-ins are not found", "pip install -e ."))
    extending = {"evocore", *(status.distribution for status in registry.statuses)} - {UNKNOWN}
    named = {name for status in backends for name in status.versions}
    problems += _unmet(extending | {"torch"} | named)
    needed = {requirement.name for name in extending for requirement in _requirements(name)}
    optional = set()
    for kernel in kernels:
        for text in kernel.requires:
            try:
                optional.add(Requirement(text).name)
            except InvalidRequirement:
                what = f"kernel {kernel.provider} of {kernel.op} requires {text!r}, which names no package"
                problems.append(Problem(what, "correct the plug-in that brings it: requires is a PEP 508 text"))
    chosen = None
    try:
        check_contracts(kernels)
    except UserError as error:
        problems.append(_as_problem(error))
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
        versions=_versions(extending | needed | optional),
        plugins=registry.statuses,
        backends=backends,
        chosen=chosen,
        environment=_relevant(environ, backends),
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
    if asked.backend is None:
        return status
    backend, usable = asked.backend, asked.problem is None
    try:
        count = backend.device_count() if usable else 0
        return replace(
            status,
            devices=[backend.device_name(backend.device(number)) for number in range(count)],
            versions={str(name): str(found) for name, found in backend.versions().items()},
            warnings=[*map(str, backend.package_problems()), *map(str, backend.health_problems() if usable else ())],
            variables=[str(word) for word in backend.variables],
        )
    except Exception as error:  # noqa: BLE001 - a stranger's code that cannot tell about itself: a finding
        raised = f"raised {type(error).__name__}: {error}"
        problem = raised if usable else f"{asked.problem}; asked for more, it {raised}"
        return replace(status, problem=problem, detail=traceback.format_exc())


def _relevant(environ: Mapping[str, str], backends: Iterable[BackendStatus]) -> dict[str, str]:
    words = [word for status in backends for word in status.variables]
    beginnings = tuple(word for word in words if word.endswith("_"))
    return {
        name: environ[name]
        for name in sorted(environ)
        if RELEVANT.match(name) or name in words or name.startswith(beginnings)
    }


def _versions(packages: Iterable[str]) -> dict[str, str]:
    general = {
        "python": platform.python_version(),
        "evocore": _installed("evocore"),
        "evocore's plug-in API": str(API_VERSION),
    }
    return general | {name: _installed(name) for name in sorted(set(packages) - {"evocore"}, key=str.lower)}


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ABSENT


def _requirements(name: str) -> list[Requirement]:
    """What a distribution says that it needs on this machine, extras aside; nothing if there is no such one."""
    try:
        stated = [Requirement(text) for text in requires(name) or []]
    except (PackageNotFoundError, ValueError):  # not installed, no name of a package, or metadata of olden times
        return []
    return [requirement for requirement in stated if _applies(requirement)]


def _applies(requirement: Requirement) -> bool:
    """Whether it is needed on this machine, extras aside."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def _unmet(packages: Iterable[str]) -> Iterable[Problem]:
    """Pairs of installed packages that do not fit one another, as the first of each pair says."""
    for package in sorted(packages):
        for requirement in _requirements(package):
            found = _installed(requirement.name)
            if found == ABSENT or not requirement.specifier.contains(found, prereleases=True):
                wanted = f"{requirement.name}{requirement.specifier}"
                yield Problem(f"{package} {_installed(package)} needs {wanted}: {found}", f"pip install '{wanted}'")


def _plugin_problems(statuses: Iterable[PluginStatus]) -> Iterable[Problem]:
    for status in statuses:
        if status.detail:
            yield Problem(
                f"plug-in {status.name} ({status.distribution} {status.version}) failed: {status.problem}",
                f"mend or update {status.distribution}, or block the plug-in with EVOCORE_PLUGINS=no:{status.name}",
            )


def _needless_blocks(statuses: Iterable[PluginStatus], environ: Mapping[str, str]) -> Iterable[Problem]:
    installed = sorted({status.name for status in statuses})
    for name in sorted(blocked_plugins(environ) - set(installed)):
        yield Problem(
            f"EVOCORE_PLUGINS blocks {name}, which is not installed", f"name one of {', '.join(installed)}, or none"
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
