"""The laws of the house, read off the source: which room imports which, who names a vendor, where files lie."""

import ast
import re
from collections import Counter
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOTS = {
    "evocore": "evocore",
    "backends": "evocore.backends",
    "kernels": "evocore.kernels",
    "models": "evocore.models",
}
PLUGINS = {"backends", "kernels", "models"}

# Which rooms a room may import, besides errors, seeds and itself; "*" is every room above it.
ROOMS = {
    "errors": set(),
    "seeds": set(),
    "plugins": set(),
    "ops": {"plugins"},
    "backend": {"plugins", "ops"},
    "nn": {"ops"},
    "kernels": {"ops"},
    "backends": {"backend", "ops", "kernels"},
    "hugging_face_class": set(),
    "models": {"ops", "nn", "hugging_face_class"},
    "config": {"hugging_face_class"},
    "parallel": {"ops", "backend", "nn", "config"},
    "data": {"config"},
    "checkpoint": {"parallel", "config", "nn"},  # weight maps speak of the layers' parameters
    "training": "*",
    "conversion": "*",
    "generation": "*",
    "released": "*",
    "observe": "*",
    "planner": {"config", "parallel"},
    "testing": "*",
    "cli": "*",
    "__main__": {"cli"},
}

VENDORS = re.compile(
    r"\b(torch\.(cuda|npu|mps|xpu|mlu)|torch_npu|torch_mlu|nccl|hccl|flash_attn|triton)\b|^(cuda|npu)$"
)

NAMED_ALL_THE_SAME = {("evocore/config/schema_parallel.py", "cuda")}  # a value in InternEvo's configs, without effect


def sources(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def relative(path):
    return str(path.relative_to(ROOT))


def room_of(path):
    first, second = path.relative_to(ROOT).parts[:2]
    return second.removesuffix(".py") if first == "evocore" else first


def imported_modules(path):
    """Modules of evocore that a file imports when it runs, wherever in the file; not what only type checkers read."""
    package = [*ROOTS[path.relative_to(ROOT).parts[0]].split("."), *path.relative_to(ROOT).parent.parts[1:]]
    for node in _running(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [above, node.module]))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _running(tree):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        yield node
        yield from _running(node)


def code_words(path):
    """Dotted names, imports and texts of a file, without comments and docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and ast.get_docstring(node, clean=False) is not None
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value
        elif isinstance(node, ast.Attribute):
            yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield node.lineno, ast.unparse(node)


def test_there_is_something_to_read():
    assert {room_of(path) for path in sources("evocore", "backends", "kernels", "models")} > {"ops", "cli", "kernels"}


def test_every_room_is_in_the_table():
    rooms = {room_of(path) for path in sources("evocore")} - {"__init__"}
    assert rooms <= set(ROOMS), "a new room needs a place in the table"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_above_it(room):
    above = list(ROOMS)[: list(ROOMS).index(room)]
    allowed = (set(above) - PLUGINS if ROOMS[room] == "*" else ROOMS[room]) | {
        room,
        "errors",
        "seeds",
        "__version__",
        "hookimpl",
    }
    allowed |= {"API_VERSION"}
    wrong = [
        f"{relative(path)} imports {module}"
        for path in sources("evocore", *PLUGINS)
        if room_of(path) == room
        for module in imported_modules(path)
        if module.split(".")[0] == "evocore" and (module.split(".") + [""])[1] not in allowed | {""}
    ]
    assert not wrong, "\n".join(wrong)


def test_law_1_only_backends_and_kernels_name_a_vendor():
    named = [
        f"{relative(path)}:{line}: {word}"
        for path in [*sources("evocore", "models"), ROOT / "train.py"]
        for line, word in code_words(path)
        if VENDORS.search(word) and (relative(path), word) not in NAMED_ALL_THE_SAME
    ]
    assert not named, "\n".join(named)


def test_law_2_what_is_built_in_comes_through_the_hooks_like_a_strangers():
    for path in sources("evocore"):
        for module in imported_modules(path):
            assert module.split(".")[1:2] not in [[name] for name in PLUGINS], f"{relative(path)} imports {module}"
    built_in = {point.value for point in entry_points(group="evocore") if point.dist and point.dist.name == "evocore"}
    assert {value.split(".")[1] for value in built_in} == {"backends", "models"}


@pytest.mark.parametrize(
    "path", [Path("backends"), Path("kernels"), Path("models"), Path("configs"), Path("ci")], ids=str
)
def test_a_root_folder_is_no_package(path):
    assert not (ROOT / path / "__init__.py").exists(), "it would shadow other packages of that name"


def test_tests_are_found_by_unique_names_and_shadow_nothing():
    # A folder with a setup.py is a project of its own: tests install it, and pytest imports nothing of it.
    projects = {path.parent for path in (ROOT / "tests").rglob("setup.py")}
    tests = [
        path
        for path in (ROOT / "tests").rglob("*.py")
        if "__pycache__" not in path.parts and not projects & set(path.parents)
    ]
    collected = [path for project in projects for path in project.rglob("*.py") if "test" in path.stem]
    assert not collected, "pytest might collect it"
    assert not [relative(path) for path in tests if path.name == "__init__.py"]
    assert not (ROOT / "conftest.py").exists(), "it would put the root on sys.path"
    assert not list((ROOT / "tests").glob("*.py")), "it would put tests/ on sys.path, where tests/evocore is found"
    twice = [
        name for name, count in Counter(path.name for path in tests).items() if count > 1 and name != "conftest.py"
    ]
    assert not twice, "pytest imports a test file by its base name"


def test_every_folder_of_evocore_is_a_package():
    folders = {path.parent for path in sources("evocore")}
    for root in PLUGINS:
        folders |= {path.parent for path in sources(root)} - {ROOT / root}
    assert not [relative(folder) for folder in folders if not (folder / "__init__.py").is_file()]


def test_the_link_farm_for_type_checkers_is_complete():
    farm = ROOT / "ci" / "typeroot" / "evocore"
    wanted = {path.name: path for path in (ROOT / "evocore").iterdir() if path.name != "__pycache__"}
    wanted |= {name: ROOT / name for name in PLUGINS}
    assert {link.name for link in farm.iterdir()} == set(wanted), "ln -s ../../../evocore/NAME ci/typeroot/evocore/"
    assert not [name for name, path in wanted.items() if (farm / name).resolve() != path]
