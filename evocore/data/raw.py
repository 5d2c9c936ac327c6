"""Prepares the dataset of a run that is given plain text (``data.raw``), once.

A record beside the training data says with which settings it was made and what belongs to it. Data without a record
is the user's own and is never touched.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evocore.data.encoding import Recipe
from evocore.data.sources import find_sources
from evocore.data.tokenize import Destination, Written, default_workers, refuse_to_overwrite, tokenize
from evocore.data.tokenized import find_bins
from evocore.errors import UserError

if TYPE_CHECKING:
    from evocore.config import Config

_RECORD = "evocore-raw.json"


@dataclass(frozen=True)
class _Record:
    """What was made, and from what.

    Attributes:
        settings: ``data.raw`` and where its output went.
        sets: folders that were made in the training and validation folders.
        trained_tokenizer: whether the tokenizer was made as well.
        written: counts, see :class:`evocore.data.tokenize.Written`; None until everything is there.
    """

    settings: dict[str, Any]
    sets: list[str]
    trained_tokenizer: bool
    written: dict[str, int] | None


def prepare_raw(config: Config) -> list[str]:
    """Tokenise ``data.raw`` into ``data.train_folder``, ``data.valid_folder`` and ``data.tokenizer_path``.

    Nothing is done if that has happened with the same settings, or if the folder holds a dataset of the user's. What
    a killed call left behind is made anew, and so is everything if a setting has changed. The tokenizer is trained
    if there is none at its path. Call it on one rank, while the others wait.

    Returns:
        Lines for the launch report.

    Raises:
        UserError: if a folder is not given, or the text cannot be tokenised.
    """
    raw = config.data.raw
    if raw is None:
        return []
    destination = _destination(config)
    record_path = destination.train / _RECORD
    old = _read(record_path)
    if old is None and destination.train.is_dir() and find_bins(destination.train):
        return [f"data.raw is not used: {destination.train} holds a dataset already"]
    settings = raw.model_dump(mode="json", exclude={"num_workers"})
    settings |= {"valid_folder": config.data.valid_folder, "tokenizer_path": config.data.tokenizer_path}
    notes = []
    if old is not None:
        if old.settings == settings and old.written is not None and _is_there(old, destination):
            return [_summary(destination, old.written)]
        notes.append(f"data.raw: {destination.train} is made anew, {_why(old, settings)}")
        _write(record_path, replace(old, written=None))  # or a call that is killed in the next line looks complete
        _delete(old, destination)
    tokenizer = destination.tokenizer if destination.tokenizer.exists() else None
    sets = find_sources(raw.sources, raw.suffixes, raw.exclude, raw.max_bytes)
    refuse_to_overwrite(sets, destination, tokenizer)  # before the record claims it
    begun = _Record(settings, [one.name for one in sets], tokenizer is None, None)
    destination.train.mkdir(parents=True, exist_ok=True)
    _write(record_path, begun)
    written = tokenize(
        sets,
        Recipe(valid_fraction=raw.valid_fraction),
        destination,
        tokenizer=tokenizer,
        vocab_size=raw.vocab_size,
        workers=raw.num_workers or default_workers(),
    )
    _write(record_path, replace(begun, written=asdict(written)))
    return [*notes, _summary(destination, asdict(written))]


def _destination(config: Config) -> Destination:
    data = config.data
    for key, value in (("train_folder", data.train_folder), ("tokenizer_path", data.tokenizer_path)):
        if value is None:
            raise UserError(
                f"data.raw is given, but data.{key} is not",
                "a place for what is made from the text",
                f'set data.{key}, for example "data/{"train" if key == "train_folder" else "tokenizer.model"}"',
            )
    train = Path(data.train_folder or "")
    valid = None if data.valid_folder is None else Path(data.valid_folder)
    if valid is not None and valid.absolute().is_relative_to(train.absolute()):
        raise UserError(
            f"data.valid_folder {valid} lies in data.train_folder {train}: what is held out would be trained on",
            "two folders beside each other",
            'set for example data.train_folder="data/train" and data.valid_folder="data/valid"',
        )
    return Destination(train, valid, Path(data.tokenizer_path or ""))


def _is_there(record: _Record, destination: Destination) -> bool:
    return destination.tokenizer.exists() and all((destination.train / name).is_dir() for name in record.sets)


def _delete(record: _Record, destination: Destination) -> None:
    """Delete what ``record`` says was made, as far as it lies where the config says now."""
    for folder in (destination.train, destination.valid):
        for name in record.sets:
            if folder is not None and (folder / name).is_dir():
                shutil.rmtree(folder / name)
    if record.trained_tokenizer and Path(record.settings["tokenizer_path"]) == destination.tokenizer:
        destination.tokenizer.unlink(missing_ok=True)


def _why(old: _Record, settings: Mapping[str, Any]) -> str:
    changed = [key for key in settings if old.settings.get(key) != settings[key]]
    if changed:
        return f"as {', '.join(changed)} changed"
    return "as the last preparation was not completed" if old.written is None else "as a part of it is missing"


def _summary(destination: Destination, written: Mapping[str, int]) -> str:
    unreadable = written["unreadable_files"]
    return (
        f"data.raw: {written['train_tokens']:,} tokens in {written['train_samples']:,} documents to train on, "
        f"{written['valid_tokens']:,} in {written['valid_samples']:,} held out, {written['vocab_size']} pieces in "
        f"{destination.tokenizer}" + (f"; {unreadable} files are not UTF-8 and were left out" if unreadable else "")
    )


def _read(path: Path) -> _Record | None:
    if not path.exists():
        return None
    try:
        record = _Record(**json.loads(path.read_text(encoding="utf-8")))
        if any(not name or name == ".." or Path(name).name != name for name in record.sets):  # to be deleted one day
            raise ValueError(f"folders {record.sets}")
        Path(record.settings["tokenizer_path"])
        if record.written is not None:
            Written(**record.written)
        return record
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} is damaged ({error})",
            "the record that evocore left beside the data it made from data.raw",
            f"delete the folder {path.parent}",
        ) from None


def _write(path: Path, record: _Record) -> None:
    prepared = path.with_suffix(".partial")
    prepared.write_text(json.dumps(asdict(record), indent=1), encoding="utf-8")
    os.replace(prepared, path)
