"""The configs that come with evocore, found wherever it is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from evocore.errors import UserError


def shipped_config(name: str) -> Path:
    """The file ``configs/<name>.py`` of the source tree, which installs into ``evocore.configs``.

    Raises:
        UserError: if there is none of that name.
    """
    spec = find_spec("evocore.configs")
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or []]
    for folder in folders:
        if (folder / f"{name}.py").is_file():
            return folder / f"{name}.py"
    names = sorted(file.stem for folder in folders for file in folder.glob("*.py"))
    raise UserError(
        f"no config {name!r} comes with evocore", f"one of {', '.join(names)}", "name one, or the path of your own"
    )
