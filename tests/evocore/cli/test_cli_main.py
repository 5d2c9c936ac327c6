"""The command as a whole: help, version, verbs, mistakes and exit codes."""

import json
import os
import subprocess
import sys
import time

import pytest

from evocore import __version__
from evocore.cli.main import COMMANDS, GROUPS, main
from evocore.config.shipped import shipped_config
from evocore.errors import UserError


def evocore(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "evocore", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


@pytest.fixture(autouse=True)
def without_choices_of_the_caller(monkeypatch):
    for name in ("EVOCORE_BACKEND", "EVOCORE_TRACEBACK", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_help_names_every_verb_and_imports_neither_torch_nor_typer():
    code = (
        "import sys; from evocore.cli.main import main; code = main(['--help']);"
        "print(code, [name for name in ('torch', 'typer', 'rich', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    *text, last = done.stdout.splitlines()
    assert last == "0 []"
    for verb in [*COMMANDS, *GROUPS]:
        assert any(line.split()[:1] == [verb] for line in text)


def test_help_answers_at_once():
    def seconds():
        start = time.perf_counter()
        assert evocore("--help").returncode == 0
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.5


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr() == (f"evocore {__version__}\n", "")


@pytest.mark.parametrize("verb", [*COMMANDS, *GROUPS])
def test_every_verb_has_help(verb, capsys):
    assert main([verb, "--help"]) == 0
    assert f"evocore {verb}" in capsys.readouterr().out


def test_no_verb_imports_torch_for_its_help():
    code = (
        "import sys\nfrom evocore.cli.main import COMMANDS, GROUPS, main\n"
        "for verb in [*COMMANDS, *GROUPS]:\n    main([verb, '--help'])\n    assert 'torch' not in sys.modules, verb"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["trian"], ["evocore trian: there is no such verb", "one of demo, train,", "evocore train"]),
        (
            ["models", "--jsn"],
            ["evocore models: No such option", "evocore models [OPTIONS]", "evocore models --help"],
        ),
        (["train"], ["evocore train: Missing option", "evocore train [OPTIONS]", "evocore train --help"]),
        (["train", "--config", "x.py", "--nproc", "0"], ["evocore train: Invalid value", "[OPTIONS]", "--help"]),
        (["kernels", "--set", "a=1"], ["--set without --config", "together", "name the config"]),
    ],
)
def test_a_mistake_is_three_lines_on_standard_error(arguments, words, capsys):
    assert main(arguments) == 2

    out, err = capsys.readouterr()
    assert out == ""
    wrong, expected, fix = err.splitlines()
    assert wrong.startswith("evocore: ") and words[0] in wrong
    assert expected.startswith("  expected: ") and words[1] in expected
    assert fix.startswith("  to fix: ") and words[2] in fix


@pytest.mark.parametrize("arguments", [["--traceback", "trian"], ["trian", "--traceback"]])
def test_traceback_may_stand_anywhere(arguments, capsys, monkeypatch):
    monkeypatch.setenv("EVOCORE_TRACEBACK", "0")  # restored afterwards: the flag sets it for started ranks
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err and "there is no such verb" in err.splitlines()[-3]
    assert os.environ["EVOCORE_TRACEBACK"] == "1"


def test_traceback_by_variable(capsys, monkeypatch):
    monkeypatch.setenv("EVOCORE_TRACEBACK", "1")
    assert main(["trian"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["demo", "backends"])
def test_an_unknown_backend_in_the_environment(verb):
    done = evocore(verb, EVOCORE_BACKEND="nope")

    assert done.returncode == 2
    wrong, expected, fix = done.stderr.splitlines()
    assert wrong == "evocore: EVOCORE_BACKEND='nope' names no backend"
    assert "cpu (available)" in expected and "evocore doctor" in fix


def test_a_fault_of_ours_keeps_its_traceback_and_exits_with_1():
    code = (
        "import sys, evocore.plugins.manager as manager\n"
        "def broken(): raise RuntimeError('a fault')\n"
        "manager.load_plugins = broken\n"
        "from evocore.cli.main import main\n"
        "sys.exit(main(['models']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert "Traceback" in done.stderr and done.stderr.rstrip().endswith("RuntimeError: a fault")


def test_other_ranks_say_which_they_are(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr("evocore.cli.main.PATIENCE", 0.0)
    assert main(["trian"]) == 2
    assert capsys.readouterr().err.startswith("evocore (rank 3): evocore trian")


def test_models_lists_families_as_table_and_as_json(capsys):
    assert main(["models", "--json"]) == 0
    families = {family["name"]: family for family in json.loads(capsys.readouterr().out)}
    assert families["LLAMA2"]["aliases"] and families["INTERNLM2"]["description"]
    sizes = {size["name"]: size for family in families.values() for size in family["sizes"]}
    assert sizes["llama2-7b"]["parameters"] == sizes["llama2-7b"]["active"] == 6_738_415_616
    assert (sizes["mixtral-8x7b"]["parameters"], sizes["mixtral-8x7b"]["active"]) == (46_702_792_704, 12_879_925_248)

    assert main(["models"]) == 0
    table = capsys.readouterr().out
    for name, family in families.items():
        assert any(line.startswith(name) and family["description"] in line for line in table.splitlines())
    rows = [line.split() for line in table.splitlines()]
    assert ["mixtral-8x7b", "MIXTRALMOE", "46,702,792,704", "12,879,925,248"] in rows


def test_backends_says_what_is_available_and_who_chose(capsys):
    assert main(["backends", "--backend", "cpu", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["chosen"], facts["chosen_by"]) == ("cpu", "--backend")
    (cpu,) = [backend for backend in facts["backends"] if backend["name"] == "cpu"]
    assert cpu["problem"] is None and cpu["device_type"] == "cpu" and len(cpu["devices"]) == 1 and cpu["versions"]

    assert main(["backends"]) == 0
    assert any(line.startswith("cpu") and "available" in line for line in capsys.readouterr().out.splitlines())


def test_backends_shows_the_list_even_if_none_can_be_chosen(capsys):
    assert main(["backends", "--backend", "nope", "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["chosen"] is None and "--backend='nope' names no backend" in err


def test_configs_that_come_with_evocore_are_found_by_name():
    assert shipped_config("demo").read_text().startswith('"""')
    with pytest.raises(UserError, match="no config 'nope'") as told:
        shipped_config("nope")
    assert "demo" in told.value.expected


def test_kernels_lists_what_is_offered(capsys):
    assert main(["kernels", "--backend", "cpu", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"reference", "native"} <= {row["provider"] for row in rows if row["op"] == "rms_norm"}
    assert all("cpu" in row["devices"] and row["dtypes"] and ":" in row["target"] for row in rows)

    assert main(["kernels"]) == 0
    assert "rms_norm" in capsys.readouterr().out
