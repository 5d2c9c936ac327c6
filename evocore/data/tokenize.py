"""From text to a tokenised dataset on disk.

All goes into temporary folders that are renamed at the end, the training data last: what is there is complete.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

from evocore.data.chat.conversation import BadRecordError
from evocore.data.chat.templates import NamedTemplate, special_tokens
from evocore.data.encoding import Recipe, encode, make_units
from evocore.data.record_writer import RecordWriter
from evocore.data.sentencepiece_model import train_tokenizer
from evocore.data.sources import SourceFile, SourceSet, hashed, read_records
from evocore.data.tokenized import is_type
from evocore.data.tokenizer import Tokenizer
from evocore.data.tokenizer_config import CONFIG, TEMPLATE
from evocore.errors import UserError

_BYTES_PER_WORKER = 4 << 20  # with less text a further process costs more than it helps
_TRAINING_BYTES = 16 << 20  # text that a tokenizer is trained on


@dataclass(frozen=True)
class Destination:
    """Where a dataset goes; without ``valid`` nothing is held out.

    ``tokenizer`` is the file of its model; what lies beside a given one comes along under its own name.
    """

    train: Path
    valid: Path | None
    tokenizer: Path


@dataclass(frozen=True)
class Written:
    """What was written: documents and tokens, and what was not.

    Attributes:
        unreadable_files: passed over, as they are no UTF-8.
        bad_records: left out, as the recipe says.
        lost_targets: see :class:`evocore.data.encoding.Encoded`.
    """

    train_samples: int
    train_tokens: int
    valid_samples: int
    valid_tokens: int
    unreadable_files: int
    vocab_size: int
    bad_records: int = 0
    lost_targets: int = 0


def tokenize(
    sets: list[SourceSet],
    recipe: Recipe,
    destination: Destination,
    *,
    tokenizer: Path | None,
    vocab_size: int,
    workers: int,
    advance: Callable[[int], None] = lambda size: None,
) -> Written:
    """Write ``train/<set>/part-0000N.bin``, the same below ``valid``, and the tokenizer.

    Args:
        tokenizer: the model to use, which is copied to its destination; None trains one of ``vocab_size`` pieces.
        workers: processes at most; fewer are used for little text. The output is the same for any number.
        advance: told the bytes of each unit of work that is done.

    Raises:
        UserError: for bad text, a bad tokenizer, or a destination that is taken.
    """
    refuse_to_overwrite(sets, destination, tokenizer)
    if destination.valid is None:
        recipe = replace(recipe, valid_fraction=0.0)
    folders = [folder for folder in (destination.valid, destination.train) if folder is not None]
    targets = _tokenizer_files(destination, tokenizer)
    try:
        for path in (*folders, *targets):
            _remove(_prepared(path))
            path.parent.mkdir(parents=True, exist_ok=True)
        held_out = _held_out_files(sets, recipe)
        if tokenizer is None:
            model = _prepared(destination.tokenizer)
            special = [] if recipe.template is None else special_tokens(recipe.template)
            train_tokenizer(_training_texts(sets, recipe, held_out), model, vocab_size, special)
        else:
            given = Tokenizer.load(tokenizer)
            model = given.files[0]
            if recipe.template is not None:
                NamedTemplate(recipe.template, given)  # complains before work begins
            for path, source in targets.items():
                shutil.copyfile(source, _prepared(path))
        total = sum(file.size for one in sets for file in one.files)
        workers = max(1, min(workers, total // _BYTES_PER_WORKER))
        written = _write(sets, recipe, destination, model, held_out, workers, advance)
        for path in targets:
            os.replace(_prepared(path), path)
        for folder in folders:
            _publish(folder)
    finally:
        for path in (*folders, *targets):
            _remove(_prepared(path))
    return written


def refuse_to_overwrite(sets: list[SourceSet], destination: Destination, tokenizer: Path | None) -> None:
    """Raise a UserError if :func:`tokenize` with these arguments would replace something; or for a bad tokenizer."""
    taken = [
        folder / one.name
        for folder in (destination.train, destination.valid)
        for one in sets
        if folder is not None and (folder / one.name).exists()
    ]
    files = _tokenizer_files(destination, tokenizer)
    if tokenizer is None:  # nothing may look as if it belonged to the new one
        taken += [
            path for path in (*files, *map(destination.tokenizer.with_name, (CONFIG, TEMPLATE))) if path.exists()
        ]
    else:
        taken += [old for old, new in files.items() if old.exists() and old.read_bytes() != new.read_bytes()]
    if taken:
        raise UserError(
            f"{', '.join(map(str, taken))} exists already",
            "a destination without a dataset of this name and without another tokenizer",
            "choose another destination, use the tokenizer that is there, or delete what is old",
        )


def _tokenizer_files(destination: Destination, tokenizer: Path | None) -> dict[Path, Path]:
    """Files of the tokenizer: where they go, and what they are copies of."""
    if tokenizer is None:
        return {destination.tokenizer: _prepared(destination.tokenizer)}
    model, *beside = Tokenizer.load(tokenizer).files
    return {destination.tokenizer: model} | {destination.tokenizer.with_name(file.name): file for file in beside}


def default_workers() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _prepared(path: Path) -> Path:
    """Where ``path`` is prepared: beside it, so that a rename can move it."""
    return path.with_name(f".{path.name}.partial")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _publish(folder: Path) -> None:
    if _prepared(folder).is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        for one in sorted(_prepared(folder).iterdir()):
            os.rename(one, folder / one.name)


def _held_out_files(sets: list[SourceSet], recipe: Recipe) -> set[SourceFile]:
    """Text files for validation: those that the hash says, but at least one of several."""
    files = [file for one in sets for file in one.files if not file.is_json]
    chosen = {file for file in files if recipe.holds_out(file.key)}
    if not chosen and recipe.valid_fraction > 0 and len(files) > 1:
        chosen = {min(files, key=lambda file: hashed(file.key, "valid"))}
    return chosen


def _training_texts(sets: list[SourceSet], recipe: Recipe, held_out: set[SourceFile]) -> Iterator[str]:
    """Text that the tokenizer is trained on: a fixed choice of what is not held out."""
    files = [file for one in sets for file in one.files if file not in held_out]
    left = _TRAINING_BYTES
    for file in sorted(files, key=lambda file: hashed(file.key, "tokenizer")):
        for text in _texts(file, recipe):
            yield text[:left]
            left -= len(text)
            if left <= 0:
                return


def _texts(file: SourceFile, recipe: Recipe) -> Iterator[str]:
    """What of a file is trained on, each message of a conversation by itself."""
    for record in read_records(file):
        if file.is_json and recipe.holds_out(record.key):
            continue
        try:
            document = recipe.read(file, record)
        except BadRecordError:
            if not recipe.skip_bad:
                raise
            continue
        yield from [document] if isinstance(document, str) else (message.text for message in document.messages)


def _write(
    sets: list[SourceSet],
    recipe: Recipe,
    destination: Destination,
    model: Path,
    held_out: set[SourceFile],
    workers: int,
    advance: Callable[[int], None],
) -> Written:
    units = (unit for one in sets for unit in make_units(one, held_out))
    unreadable = bad = lost = 0
    with ExitStack() as stack:

        def writers(folder: Path | None) -> dict[str, RecordWriter]:
            if folder is None:
                return {}
            places = {one.name: _prepared(folder) / _folder_of(one.name, recipe) for one in sets}
            return {name: stack.enter_context(RecordWriter(place)) for name, place in places.items()}

        train, valid = writers(destination.train), writers(destination.valid)
        for encoded in stack.enter_context(closing(encode(units, model, recipe, workers))):
            for record in encoded.train:
                train[encoded.unit.set_name].append(record)
            for record in encoded.valid:
                valid[encoded.unit.set_name].append(record)
            unreadable += encoded.unreadable_files
            bad += encoded.bad_records
            lost += encoded.lost_targets
            advance(sum(file.size for file in encoded.unit.files))
    written = Written(
        sum(writer.samples for writer in train.values()),
        sum(writer.tokens for writer in train.values()),
        sum(writer.samples for writer in valid.values()),
        sum(writer.tokens for writer in valid.values()),
        unreadable,
        Tokenizer.load(model).vocab_size,
        bad,
        lost,
    )
    if bad and not written.train_samples + written.valid_samples:
        raise UserError(f"all {bad} records were left out", "some that can be used", "look why, without --skip-bad")
    return written


def _folder_of(set_name: str, recipe: Recipe) -> str:
    """InternEvo wants one of its types in each path."""
    return set_name if not recipe.internevo or is_type(set_name) else f"{set_name}/en"
