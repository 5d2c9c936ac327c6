"""The command ``evocore``: finds the verb, and turns what goes wrong into a message and an exit code.

The verbs stand in one table with their help, so that ``evocore --help`` imports none of them and answers at once.

Exit codes: 0 done, 2 the user's mistake, 75 stopped on request with everything saved, 1 a fault of ours.
"""

from __future__ import annotations

import difflib
import os
import sys
import time
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from evocore import __version__
from evocore.errors import TRACEBACK_VARIABLE, UserError, traceback_wanted

COMMANDS = {
    "demo": "train a small model on this machine and show what a run leaves behind",
    "train": "train the model of a config",
    "generate": "continue a text with a trained model",
    "backends": "list devices, whether each can be used, and which would be",
    "kernels": "list kernels; with a config, which would be chosen and why",
    "models": "list the model families that a config can name",
    "topology": "show how a config divides ranks into groups",
    "conform": "check kernels of a device against their contracts",
    "diff": "find the first op, layer and step at which two runs part",
    "doctor": "look for what is wrong with this installation",
}
"""Verbs that are one command: the function of the verb's name in ``evocore.cli.<verb>``."""

GROUPS = {
    "config": "show a config with every value and its source (show)",
    "data": "turn text into training data, and look into it (tokenize, inspect)",
    "checkpoint": "list, check and compare checkpoints (ls, verify, diff)",
    "convert": "convert models from and to Hugging Face and InternEvo (hf-to-evocore, evocore-to-hf, ...)",
}
"""Verbs with verbs of their own: ``app`` in ``evocore.cli.<verb>``."""

TRACEBACK = "--traceback"
PATIENCE = 5.0
"""Seconds that other ranks wait before they tell of a mistake: their launcher ends them if rank 0 made it too."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; ``argv`` is without the program's name.

    Returns:
        The exit code. A fault of ours is no code but an exception.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if TRACEBACK in arguments:
        os.environ[TRACEBACK_VARIABLE] = "1"  # in the environment, so that started ranks know
    try:
        return _run([argument for argument in arguments if argument != TRACEBACK])
    except UserError as error:
        _tell(error)
        return 2


def _run(arguments: list[str]) -> int:
    verb, *rest = arguments or ["--help"]
    if verb in ("--help", "-h", "help"):
        print(_help())
        return 0
    if verb == "--version":
        print(f"evocore {__version__}")
        return 0
    if verb not in COMMANDS and verb not in GROUPS:
        verbs = [*COMMANDS, *GROUPS]
        close = difflib.get_close_matches(verb, verbs, n=1)
        raise UserError(
            f"evocore {verb}: there is no such verb",
            f"one of {', '.join(verbs)}",
            f"evocore {close[0]}" if close else "`evocore --help` tells what each does",
        )
    return _invoke(verb, rest)


def _invoke(verb: str, arguments: list[str]) -> int:
    import typer

    module = import_module(f"evocore.cli.{verb}")
    app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
    if verb in GROUPS:
        app.add_typer(module.app, name=verb, help=GROUPS[verb], no_args_is_help=True)
        name, arguments = "evocore", [verb, *arguments]
    else:
        app.command(verb, epilog=f"{TRACEBACK} shows where an error comes from.")(getattr(module, verb))
        name = f"evocore {verb}"
    # Newer versions of typer have their own copy of click: this reaches the base of its errors in either.
    usage_error: Any = typer.BadParameter.__base__
    try:
        result = typer.main.get_command(app).main(arguments, prog_name=name, standalone_mode=False)
    except usage_error as error:
        command = error.ctx.command_path if error.ctx else name
        raise UserError(
            f"{command}: {error.format_message()}",
            error.ctx.get_usage().removeprefix("Usage: ") if error.ctx else "what the verb's help says",
            f"`{command} --help` tells what each option does",
        ) from error
    return result if isinstance(result, int) else 0


def _help() -> str:
    width = max(map(len, [*COMMANDS, *GROUPS]))
    lines = [f"  {verb:{width}}  {text}" for verb, text in [*COMMANDS.items(), *GROUPS.items()]]
    return "\n".join(
        [
            f"evocore {__version__}: train large language models on any accelerator",
            "",
            "usage: evocore VERB ...   (`evocore VERB --help` tells more)",
            "",
            *lines,
            "",
            f"  {TRACEBACK}, anywhere, or {TRACEBACK_VARIABLE}=1 shows where an error comes from; --version",
        ]
    )


def _tell(error: UserError) -> None:
    rank = os.environ.get("RANK", "0") if os.environ.get("WORLD_SIZE", "1") != "1" else "0"
    if rank != "0":
        time.sleep(PATIENCE)
    if traceback_wanted():
        traceback.print_exception(error)
    print(f"evocore{f' (rank {rank})' if rank != '0' else ''}: {error}", file=sys.stderr)
