"""Finds plug-ins, and remembers what became of each.

One that fails to import must neither take the others down nor hide its cause: its traceback is kept for
``evocore doctor``.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import pluggy

from evocore.errors import UserError
from evocore.plugins import hookspecs

if TYPE_CHECKING:
    from evocore.backend import Backend
    from evocore.nn.family import ModelFamily
    from evocore.ops.kernel import Kernel

BUILT_IN = "evocore"
"""Distribution whose plug-ins stay when ``EVOCORE_DISABLE_PLUGIN_AUTOLOAD=1`` blocks those of others."""
OFFERS = {
    "evocore_backends": ("classes derived from Backend, with name and device_type", ("name", "device_type")),
    "evocore_kernels": ("Kernel records", ("op", "provider", "target")),
    "evocore_models": ("ModelFamily records", ("name", "target")),
}
"""Hook -> what each of its offers must be, and texts that such a thing has."""
UNKNOWN = "?"
"""Distribution and version of a plug-in that no distribution brought."""


@dataclass(frozen=True)
class PluginStatus:
    """What became of one plug-in.

    ``problem`` is None for a loaded plug-in, otherwise one line; ``detail`` holds the traceback if there was one.
    """

    name: str
    distribution: str
    version: str
    target: str
    problem: str | None = None
    detail: str = ""


class PluginRegistry:
    """All plug-ins of this process and everything that they offer."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self.statuses: list[PluginStatus] = []

    @property
    def hook(self) -> pluggy.HookRelay:
        return self._manager.hook

    def backends(self) -> list[type[Backend]]:
        """Every backend of every plug-in, in order of plug-in name."""
        return self._collect("evocore_backends")

    def kernels(self) -> list[Kernel]:
        """Every kernel of every plug-in."""
        return self._collect("evocore_kernels")

    def models(self) -> list[ModelFamily]:
        """Every model family of every plug-in."""
        return self._collect("evocore_models")

    def load_entry_points(self) -> None:
        """Load the entry points of the group ``evocore``.

        ``EVOCORE_PLUGINS=no:NAME,...`` blocks plug-ins by name, ``EVOCORE_DISABLE_PLUGIN_AUTOLOAD=1`` all but the
        built-in ones.

        Raises:
            UserError: if ``EVOCORE_PLUGINS`` says anything else.
        """
        blocked = blocked_plugins(os.environ)
        built_in_only = os.environ.get("EVOCORE_DISABLE_PLUGIN_AUTOLOAD", "") not in ("", "0")
        for point in _unique(entry_points(group=hookspecs.PROJECT)):
            if point.name in blocked:
                self._remember(point, "blocked by EVOCORE_PLUGINS")
            elif built_in_only and not (point.dist and point.dist.name == BUILT_IN):
                self._remember(point, "blocked by EVOCORE_DISABLE_PLUGIN_AUTOLOAD")
            else:
                self._load(point)

    def register(self, plugin: object, name: str) -> None:
        """Add a plug-in at hand, as the tests and notebooks do.

        Raises:
            ValueError: if it is written for another API version.
            pluggy.PluginValidationError: if it implements a hook that does not exist.
        """
        wanted = getattr(plugin, "EVOCORE_API", hookspecs.API_VERSION)
        if wanted != hookspecs.API_VERSION:
            raise ValueError(
                f"plug-in {name!r} is written for plug-in API {wanted}, this evocore offers {hookspecs.API_VERSION}: "
                "install a matching version of one of them"
            )
        self._manager.register(plugin, name=name)
        try:
            self._manager.check_pending()  # a misspelt hook would otherwise vanish in silence
        except pluggy.PluginValidationError:
            self._manager.unregister(plugin)
            raise

    def _collect(self, hook: str) -> list[Any]:
        """Ask one plug-in after the other, so that a failure can be put down to its plug-in and leaves the others."""
        found: list[Any] = []
        for name, plugin in sorted(self._manager.list_name_plugin()):
            others = [other for _, other in self._manager.list_name_plugin() if other is not plugin]
            caller = self._manager.subset_hook_caller(hook, others)
            try:
                offers = [item for offer in caller() for item in offer]
                for item in offers:
                    _check_offer(hook, item)
                found += offers
            except Exception as error:  # noqa: BLE001 - a stranger's hook can raise anything; it is kept and shown
                self._note_failure(name, f"{hook} raised {type(error).__name__}: {error}", traceback.format_exc())
        return found

    def _note_failure(self, name: str, problem: str, detail: str) -> None:
        loaded = [status for status in self.statuses if status.name == name and not status.problem]
        if not loaded:
            loaded = [PluginStatus(name, UNKNOWN, UNKNOWN, "registered by hand")]
            self.statuses += loaded
        place = self.statuses.index(loaded[0])
        self.statuses[place] = replace(loaded[0], problem=problem, detail=detail)

    def _load(self, point: EntryPoint) -> None:
        try:
            self.register(point.load(), point.name)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's import can raise anything; it is kept and shown
            self._remember(point, f"{type(error).__name__}: {error}", traceback.format_exc())
        else:
            self._remember(point, None)

    def _remember(self, point: EntryPoint, problem: str | None, detail: str = "") -> None:
        name, version = (point.dist.name, point.dist.version) if point.dist else (UNKNOWN, UNKNOWN)
        self.statuses.append(PluginStatus(point.name, name, version, point.value, problem, detail))


def blocked_plugins(environ: Mapping[str, str]) -> set[str]:
    """The names that ``EVOCORE_PLUGINS`` blocks.

    Raises:
        UserError: if it holds anything but ``no:NAME``.
    """
    words = [word.strip() for word in environ.get("EVOCORE_PLUGINS", "").split(",")]
    for word in filter(None, words):
        if not word.startswith("no:") or word == "no:":
            raise UserError(
                f"EVOCORE_PLUGINS holds {word!r}",
                "no:NAME of each plug-in to block, with commas between them: all others are loaded",
                f"write no:{word} to block it, or unset EVOCORE_PLUGINS",
            )
    return {word.removeprefix("no:") for word in words if word}


def _check_offer(hook: str, offer: object) -> None:
    """Refuse what a hook does not ask for, which would stop whoever chooses among the offers of all.

    Goes by attributes: the classes belong to other rooms, and PyTorch is not imported to list plug-ins.
    """
    kind, names = OFFERS[hook]
    of_kind = isinstance(offer, type) == (hook == "evocore_backends")
    if not of_kind or not all(isinstance(getattr(offer, name, None), str) for name in names):
        raise TypeError(f"{offer!r} is among the offers, which must be {kind}")


def _unique(points: Iterable[EntryPoint]) -> list[EntryPoint]:
    """Entry points by name; an editable install seen twice on ``sys.path`` counts once."""
    seen = {(point.name, point.value): point for point in points}
    return sorted(seen.values(), key=lambda point: (point.name, point.value))


def load_plugins() -> PluginRegistry:
    """The registry with every installed plug-in."""
    registry = PluginRegistry()
    registry.load_entry_points()
    return registry
