"""Tokenises files in several processes and gives the results back in the order of the files.

The files are cut into units of work that do not depend on the number of processes, so neither does the result.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

from evocore.data.chat.conversation import BadRecordError, Conversation, Shape, read_record
from evocore.data.chat.segments import ChatTemplate, encode_segments
from evocore.data.chat.templates import chat_template
from evocore.data.record_writer import Record
from evocore.data.sources import SourceFile, SourceRecord, SourceSet, hashed, read_records
from evocore.data.tokenizer import Tokenizer

_UNIT_BYTES = 1 << 20
_AHEAD = 4  # units under way for each process


@dataclass(frozen=True)
class Recipe:
    """How text and conversations become token ids.

    Args:
        field: where an object in a JSON file holds its text.
        append_bos, append_eos: put the tokenizer's begin and end around each document that is plain text.
        valid_fraction: share of the documents that is held out for validation.
        seed: of the choice of those.
        shape: of the records in JSON files.
        template: name of the chat template; None for the tokenizer's own.
        skip_bad: leave out records that are not what they should be.
        internevo: write files as InternEvo writes them.
    """

    field: str = "text"
    append_bos: bool = True
    append_eos: bool = True
    valid_fraction: float = 0.0
    seed: int = 0
    shape: Shape = "text"
    template: str | None = None
    skip_bad: bool = False
    internevo: bool = False

    def holds_out(self, key: str) -> bool:
        """Whether the file or document ``key`` goes to validation."""
        return hashed(key, f"valid:{self.seed}") < self.valid_fraction

    def read(self, file: SourceFile, record: SourceRecord) -> str | Conversation:
        """The document that a record is; as ``evocore.data.chat.conversation.read_record``."""
        if not file.is_json:
            return str(record.content)
        return read_record(record.content, self.shape, self.field, record.place)


@dataclass(frozen=True)
class Unit:
    """Work for one process at a time.

    Args:
        set_name: the source set that the files are from.
        held_out: whether all of it goes to validation; None if that is decided document by document.
    """

    set_name: str
    files: tuple[SourceFile, ...]
    held_out: bool | None


@dataclass(frozen=True)
class Encoded:
    """The records of one unit, and what was noticed on the way.

    Attributes:
        unreadable_files: that are no UTF-8.
        bad_records: that were left out.
        lost_targets: tokens with id 0 that should be targets, which InternEvo's files cannot say.
    """

    unit: Unit
    train: list[Record]
    valid: list[Record]
    unreadable_files: int = 0
    bad_records: int = 0
    lost_targets: int = 0


def make_units(one: SourceSet, held_out: set[SourceFile]) -> Iterator[Unit]:
    """Cut a set into units: small text files together, large ``.jsonl`` files in parts."""
    for kind in (False, True):
        group: list[SourceFile] = []
        size = 0
        for file in one.files:
            if file.is_json or (file in held_out) is not kind:
                continue
            group.append(file)
            size += file.size
            if size >= _UNIT_BYTES:
                yield Unit(one.name, tuple(group), kind)
                group, size = [], 0
        if group:
            yield Unit(one.name, tuple(group), kind)
    for file in one.files:
        if file.path.suffix == ".jsonl":
            for start in range(file.start, file.stop, _UNIT_BYTES):
                part = replace(file, start=start, stop=min(start + _UNIT_BYTES, file.stop))
                yield Unit(one.name, (part,), None)
        elif file.is_json:
            yield Unit(one.name, (file,), None)


class Encoder:
    """Tokenises units, one after another."""

    def __init__(self, tokenizer: Tokenizer, recipe: Recipe) -> None:
        self._tokenizer, self._recipe = tokenizer, recipe
        self._before = [tokenizer.bos_id] if recipe.append_bos and tokenizer.bos_id >= 0 else []
        self._after = [tokenizer.eos_id] if recipe.append_eos and tokenizer.eos_id >= 0 else []

    def __call__(self, unit: Unit) -> Encoded:
        train: list[Record] = []
        valid: list[Record] = []
        unreadable = bad = lost = 0
        for file in unit.files:
            readable = file.is_json
            for record in read_records(file):
                readable = True
                found = self._encode(file, record)
                bad += found is None
                if not found or not found[0]:
                    continue
                held_out = self._recipe.holds_out(record.key) if unit.held_out is None else unit.held_out
                ids, trained = found
                if self._recipe.internevo:
                    lost += sum(trained[place] for place, token in enumerate(ids) if token == 0)
                made = Record.of(ids, trained, internevo=self._recipe.internevo)
                (valid if held_out else train).append(made)
            unreadable += not readable
        return Encoded(unit, train, valid, unreadable, bad, lost)

    def _encode(self, file: SourceFile, record: SourceRecord) -> tuple[list[int], list[bool]] | None:
        """Ids and whether each is a target; None for what is left out."""
        try:
            document = self._recipe.read(file, record)
            if isinstance(document, str):
                ids = [*self._before, *self._tokenizer.encode(document), *self._after] if document else []
                return ids, [True] * len(ids)
            segments = self._template(document, record.place)
        except BadRecordError:
            if self._recipe.skip_bad:
                return None
            raise
        return encode_segments(segments, self._tokenizer)

    @cached_property
    def _template(self) -> ChatTemplate:
        return chat_template(self._recipe.template, self._tokenizer)


def encode(units: Iterable[Unit], model: Path, recipe: Recipe, workers: int) -> Generator[Encoded]:
    """Tokenise ``units`` with the tokenizer in ``model``; the results come in the order of the units.

    Args:
        workers: processes; 1 works in this one.

    Raises:
        UserError: if a unit holds bad text.
    """
    if workers == 1:
        yield from map(Encoder(Tokenizer.load(model), recipe), units)
        return
    waiting: deque[Future[Encoded]] = deque()
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that threads of torch may hold
    pool = ProcessPoolExecutor(workers, context)
    try:
        for unit in units:
            waiting.append(pool.submit(_encode_in_worker, unit, model, recipe))
            if len(waiting) >= workers * _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _encode_in_worker(unit: Unit, model: Path, recipe: Recipe) -> Encoded:
    return _worker_encoder(model, recipe)(unit)


@lru_cache(maxsize=1)  # a worker lives for one call of encode, so the model behind the path stays the same
def _worker_encoder(model: Path, recipe: Recipe) -> Encoder:
    return Encoder(Tokenizer.load(model), recipe)
