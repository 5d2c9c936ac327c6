"""Runs a config file and says which file each value came from.

InternEvo's configs are plain Python; they are trusted code and are executed as they are. Inheritance is its
``with read_base(): from configs._base_.models.x import *``: inside that block an import is looked up beside the file,
so that a config works from any folder and nothing is left on ``sys.path``.
"""

from __future__ import annotations

import ast
import builtins
import difflib
import linecache
import traceback
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evocore.config.settings import Settings, flatten
from evocore.errors import UserError


@contextmanager
def read_base() -> Iterator[None]:
    """Marks the imports of a config file that name other config files.

    ``load_config`` puts its own in the place of this one, which exists so that editors and linters find the name.
    """
    yield


def run_file(path: Path) -> Settings:
    """Every public value of a config file, with the file that set it: this one or one of its bases.

    Raises:
        UserError: if there is no such file, or it or a base of it does not run; names the file and the line.
    """
    return _ConfigFile(path, ()).run()


def shown_path(path: Path) -> str:
    """Relative to the working folder where it lies in it."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(path)


class _ConfigFile:
    """One execution of one file. ``includers`` are the files whose ``read_base`` led here, outermost first."""

    def __init__(self, path: Path, includers: tuple[Path, ...]) -> None:
        self._path = path.absolute()
        self._name = shown_path(path)
        self._includers = includers
        self._reading_base = False
        self._inherited: Settings = {}
        self._namespace: dict[str, Any] = {}

    def run(self) -> Settings:
        text = self._read()
        linecache.checkcache(str(self._path))
        self._namespace.update(
            __name__=self._path.stem,
            __file__=str(self._path),
            __builtins__={**vars(builtins), "__import__": self._import},
            read_base=self._read_base,
        )
        try:
            tree = ast.parse(text, str(self._path))
            exec(compile(tree, str(self._path), "exec"), self._namespace)
        except UserError:
            raise  # of a base file, which it names
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a config is code and can raise anything
            raise self._explained(error) from error
        return self._settings(_rebuilt_names(tree))

    def public(self) -> dict[str, Any]:
        return {name: value for name, value in self._namespace.items() if _is_value(name, value)}

    def _read(self) -> str:
        if self._path in self._includers:
            chain = " -> ".join(shown_path(path) for path in (*self._includers, self._path))
            raise UserError(
                f"{self._name} inherits from itself: {chain}", "bases without a circle", "drop one import"
            )
        try:
            return self._path.read_text(encoding="utf-8")
        except OSError as error:
            known = [path.name for path in sorted(self._path.parent.glob("*.py"))]
            near = difflib.get_close_matches(self._path.name, known, n=1)
            fix = f"did you mean {Path(self._name).parent / near[0]}?" if near else "check the path"
            raise UserError(f"cannot read {self._name}: {error.strerror}", "a Python config file", fix) from error
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self._name} is no text: {error}", "a Python file in UTF-8", "check the path"
            ) from error

    @contextmanager
    def _read_base(self) -> Iterator[None]:
        self._reading_base = True
        try:
            yield
        finally:
            self._reading_base = False

    def _import(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> types.ModuleType:
        """``__import__`` of the file: it finds bases, and ``read_base`` whatever package it is imported from."""
        if fromlist and "read_base" in fromlist:
            return _module(name, {"read_base": self._read_base})
        if not (self._reading_base and fromlist):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        base = _ConfigFile(self._find_base(name, level), (*self._includers, self._path))
        self._inherited.update(base.run())
        return _module(name, base.public())

    def _find_base(self, name: str, level: int) -> Path:
        below = Path(*name.split(".")).with_suffix(".py") if name else Path("__init__.py")
        folders = self._path.parents
        for folder in folders if level == 0 else folders[level - 1 : level]:
            if (folder / below).is_file():
                return folder / below
        raise UserError(
            f"{self._name} inherits from {'.' * level}{name}, which does not exist",
            f"a file {below} beside {self._name} or in a folder above it",
            "correct the import inside `with read_base():`",
        )

    def _settings(self, rebuilt: set[str]) -> Settings:
        """Values of this file, except those which a base set and this file left alone."""
        settings = flatten(self.public(), self._name)
        for key, setting in settings.items():
            inherited = self._inherited.get(key)
            if inherited and key.partition(".")[0] not in rebuilt and _same(inherited.value, setting.value):
                settings[key] = inherited
        return settings

    def _explained(self, error: BaseException) -> UserError:
        if isinstance(error, SyntaxError) and error.filename == str(self._path):
            line, what = error.lineno or 0, f"{type(error).__name__}: {error.msg}"
        else:
            frames = [
                frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(self._path)
            ]
            line = (frames[-1].lineno or 0) if frames else 0
            what = "".join(traceback.format_exception_only(error)).strip()
        code = linecache.getline(str(self._path), line).strip()
        return UserError(f"{self._name}:{line}: {what}", "a config file that runs", f"mend line {line}: {code}")


def _module(name: str, values: Mapping[str, Any]) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(values)
    return module


def _is_value(name: str, value: Any) -> bool:
    """InternEvo's rule for what becomes a key, and functions and private names left out."""
    return not name.startswith("_") and not isinstance(value, types.ModuleType) and not callable(value)


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def _rebuilt_names(tree: ast.Module) -> set[str]:
    """Names that the file assigns without looking at what they held: ``model = dict(...)``, not ``dict(**model)``."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            read = {part.id for part in ast.walk(node.value) if isinstance(part, ast.Name)}
            targets = {target.id for target in node.targets if isinstance(target, ast.Name)}
            names |= targets - read
    return names
