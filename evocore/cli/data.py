"""``evocore data tokenize`` and ``evocore data inspect``: making and checking tokenised datasets."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evocore.errors import UserError

if TYPE_CHECKING:
    from evocore.data.inspection import FileReport
    from evocore.data.tokenizer import Tokenizer

app = typer.Typer(help="Make and check tokenised datasets.", no_args_is_help=True)


class Shape(StrEnum):
    """As ``evocore.data.chat.conversation.Shape``, without importing the data room."""

    auto = "auto"
    text = "text"
    alpaca = "alpaca"
    sharegpt = "sharegpt"
    messages = "messages"


class Format(StrEnum):
    """How files are spelled."""

    evocore = "evocore"
    internevo = "internevo"


_COLUMNS = ("file", "type", "samples", "tokens", "min", "mean", "max", "largest id", "masked", "problems")


@app.command()
def tokenize(
    sources: Annotated[list[Path], typer.Argument(help="Text, JSON and JSON-lines files, or folders with such.")],
    out: Annotated[Path, typer.Option(help="Folder that gets train/, valid/ and the tokenizer.")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="SentencePiece model or tokenizer.json to use, or a folder with one.")
    ] = None,
    train_tokenizer: Annotated[bool, typer.Option("--train-tokenizer", help="Train a model on the text.")] = False,
    vocab_size: Annotated[int, typer.Option(help="Pieces of the model that is trained.")] = 8192,
    suffix: Annotated[
        list[str] | None,
        typer.Option(help="Ending of the files to take from folders; repeatable. [default: .txt .json .jsonl]"),
    ] = None,
    shape: Annotated[
        Shape,
        typer.Option(
            help="Of JSON records: text (under --field); alpaca (instruction, input, output); sharegpt "
            "(conversations, from human and gpt); messages (role, content). [default: by its keys]",
            show_default=False,
        ),
    ] = Shape.auto,
    field: Annotated[str, typer.Option(help="Where a JSON object of shape text holds it.")] = "text",
    chat_template: Annotated[
        str | None,
        typer.Option(
            help="For conversations: chatml, llama2, llama3, internlm, internlm2, alpaca. [default: the tokenizer's]"
        ),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out records of no known shape, with empty answers and so on.")
    ] = False,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Pattern of names to leave out of folders, such as tests; repeatable.")
    ] = None,
    valid_fraction: Annotated[float, typer.Option(min=0, max=0.99, help="Share that is held out.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of what is held out: by hash, whatever the order of the records.")] = 0,
    append_bos: Annotated[bool, typer.Option(help="Begin plain text with the begin id.")] = True,
    append_eos: Annotated[bool, typer.Option(help="End plain text with the end id.")] = True,
    format: Annotated[
        Format, typer.Option(help="internevo spells files as InternEvo does: masked ids are negative.")
    ] = Format.evocore,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. [default: one per core]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Turn text and conversations into a dataset to train on; of conversations, answers alone are targets.

    The result does not depend on the number of workers.
    """
    if train_tokenizer == (tokenizer is not None):
        raise UserError(
            "--tokenizer and --train-tokenizer are both given" if train_tokenizer else "there is no tokenizer to use",
            "one of --tokenizer MODEL and --train-tokenizer",
            "add --train-tokenizer to train one on the text" if tokenizer is None else "leave one out",
        )
    from dataclasses import asdict

    from evocore.cli.output import print_json
    from evocore.data.chat.templates import template_named
    from evocore.data.encoding import Recipe
    from evocore.data.sources import DEFAULT_SUFFIXES, find_sources
    from evocore.data.tokenize import Destination, default_workers
    from evocore.data.tokenize import tokenize as run
    from evocore.data.tokenizer import Tokenizer
    from evocore.data.tokenizer_json import JsonTokenizer

    if chat_template is not None:
        template_named(chat_template)  # complains
    from_json = tokenizer is not None and isinstance(Tokenizer.load(tokenizer), JsonTokenizer)
    model = "tokenizer.json" if from_json else "tokenizer.model"
    sets = find_sources(sources, suffix or DEFAULT_SUFFIXES, exclude or ())
    recipe = Recipe(
        field=field,
        append_bos=append_bos,
        append_eos=append_eos,
        valid_fraction=valid_fraction,
        seed=seed,
        shape=shape.value,
        template=chat_template,
        skip_bad=skip_bad,
        internevo=format is Format.internevo,
    )
    with _progress(sum(file.size for one in sets for file in one.files)) as advance:
        written = run(
            sets,
            recipe,
            Destination(out / "train", out / "valid", out / model),
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            workers=workers or default_workers(),
            advance=advance,
        )
    if as_json:
        print_json({"out": out, **asdict(written)})
        return
    print(f"{out}: {written.vocab_size} pieces in {model}")
    print(f"train: {written.train_tokens:,} tokens in {written.train_samples:,} documents")
    print(f"valid: {written.valid_tokens:,} tokens in {written.valid_samples:,} documents")
    if written.unreadable_files:
        print(f"{written.unreadable_files} files are not UTF-8 and were left out")
    if written.bad_records:
        print(f"{written.bad_records} records were left out (--skip-bad)")
    if written.lost_targets:
        print(f"{written.lost_targets} tokens with id 0 are no targets: InternEvo's files cannot say it")


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="A folder with .bin files.")],
    tokenizer: Annotated[Path | None, typer.Option(help="Show the first sample of each file as text.")] = None,
    vocab_size: Annotated[
        int | None, typer.Option(help="Complain about ids from this on. [default: that of --tokenizer]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Read a whole dataset: lengths, ids, masks, types, and what is wrong. Exit code 2 if something is."""
    from evocore.cli.output import print_json, print_table
    from evocore.data.inspection import inspect_folder
    from evocore.data.tokenizer import Tokenizer

    model = Tokenizer.load(tokenizer) if tokenizer else None
    if model is not None and vocab_size is None:
        vocab_size = model.vocab_size
    reports = list(inspect_folder(folder, vocab_size))
    if as_json:
        print_json([_facts(report, model) for report in reports])
    else:
        print_table(_COLUMNS, [_row(report, folder) for report in reports])
        if model is not None:
            for report in reports:
                print(f"\n{report.path}, first sample:\n{_text(report, model)}")
    if any(report.problems for report in reports):
        raise typer.Exit(2)


def _text(report: FileReport, model: Tokenizer) -> str:
    return model.decode([token for token in report.first if token < model.vocab_size])


def _facts(report: FileReport, model: Tokenizer | None) -> dict[str, object]:
    from dataclasses import asdict

    facts = asdict(report)
    del facts["first"]
    return facts if model is None else {**facts, "first_sample": _text(report, model)}


def _row(report: FileReport, folder: Path) -> list[str]:
    return [
        str(report.path.relative_to(folder)),
        report.type,
        f"{report.samples:,}",
        f"{report.tokens:,}",
        f"{report.min_length:,}",
        f"{report.mean_length:,.1f}",
        f"{report.max_length:,}",
        f"{report.largest_id:,}",
        f"{report.masked:.1%}",
        "\n".join(report.problems),
    ]


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error if that is a terminal, otherwise nothing."""
    if not sys.stderr.isatty():
        yield lambda size: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("tokenising", total=total)
        yield lambda size: bar.advance(task, size)
