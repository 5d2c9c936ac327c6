"""How fast one process on one core turns a tokenised dataset into batches, and how soon a resumed run has its first.

    python ci/bench/data.py [--tokens 4000000] [--runs 7] [--json]

Two datasets of the same documents are made on the spot: log-normal lengths (median 550 tokens), ids of five digits,
``json.loads`` over InternEvo's lines is timed in turn with it, so that the ratio holds on any machine. A pack costs a
fixed time besides that of its tokens, hence the shapes: seq_len x micro_bsz.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from evocore.data.loader import TrainLoader
from evocore.data.record_writer import Record, RecordWriter
from evocore.data.sampler import Sampler
from evocore.data.stream_packing import DocumentPacking, WindowPacking
from evocore.data.tokenized import TokenizedDocuments, find_bins

TARGET = 20e6  # tokens per second
VOCAB_SIZE = 100_000
SHAPES = [
    (DocumentPacking, 4096, 4),
    (WindowPacking, 4096, 4),
    (DocumentPacking, 4096, 1),
    (DocumentPacking, 2048, 1),
]
MICRO_NUM = 4


def write_dataset(folder: Path, tokens: int, plain: bool = False) -> None:
    """About ``tokens`` tokens in two types, four files each; ``plain`` spells them as InternEvo's tools do."""
    rng = np.random.default_rng(0)
    for part in range(8):
        with RecordWriter(folder / ("en", "code")[part % 2] / f"{part}") as writer:
            while writer.tokens < tokens // 8:
                length = int(np.clip(rng.lognormal(6.3, 1.0), 10, 60_000))
                ids = rng.integers(10_000, VOCAB_SIZE, length).tolist()
                writer.append(Record(b'{"tokens": %s}\n' % str(ids).encode(), length) if plain else Record.of(ids))


def make_loader(folder: Path, kind: type, seq_len: int, micro_bsz: int, consumed: float = 0.0) -> TrainLoader:
    documents = TokenizedDocuments(find_bins(folder), folder)
    packing = kind(documents, seq_len=seq_len, micro_bsz=micro_bsz, seed=1024, vocab_size=VOCAB_SIZE)
    sampler = Sampler(len(packing), packing.fingerprint(), MICRO_NUM, 0, 1, 1024)
    batches = int(consumed * len(packing)) // MICRO_NUM
    sampler.load_state_dict({**sampler.state_dict(), "consumed": batches * MICRO_NUM, "batch_count": batches})
    return TrainLoader(packing, sampler, prefetch=0)


def rate(work: Callable[[], int]) -> float:
    """Tokens per second of CPU time of ``work``, which returns how many it handled: all of it runs in this thread."""
    start = time.thread_time()
    return work() / (time.thread_time() - start)


def load(loader: TrainLoader, tokens: int) -> int:
    done = 0
    while done < tokens:
        done += sum(len(batch.tokens_T) for batch in next(loader).micro_batches)
    return done


def parse_json(lines: list[bytes]) -> int:
    return sum(len(np.array(json.loads(line)["tokens"])) for line in lines)


def first_batch(folder: Path, consumed: float) -> float:
    """Seconds from nothing to the first batch."""
    start = time.perf_counter()
    with make_loader(folder, DocumentPacking, 4096, 4, consumed) as loader:
        next(loader)
    return time.perf_counter() - start


def measure(ours: Path, internevo: Path, tokens: int, runs: int) -> dict[str, object]:
    lines = [line for path in find_bins(internevo)[:2] for line in path.read_bytes().splitlines()]
    loaders = {
        f"{kind.__name__} {seq_len} x {bsz}{label}": make_loader(folder, kind, seq_len, bsz)
        for folder, label in ((ours, ""), (internevo, ", InternEvo's file"))
        for kind, seq_len, bsz in SHAPES
    }
    rates: dict[str, list[float]] = {name: [] for name in (*loaders, "json.loads")}
    for _ in range(runs):
        for name, loader in loaders.items():
            rates[name].append(rate(lambda loader=loader: load(loader, tokens // 4)))  # type: ignore[misc]
        rates["json.loads"].append(rate(lambda: parse_json(lines)))
    starts = {part: statistics.median(first_batch(ours, part) for _ in range(runs)) for part in (0.0, 0.5, 0.99)}
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(values, rates["json.loads"], strict=True))
        for name, values in rates.items()
    }
    return {"tokens_per_second": medians, "ratio_to_json": ratios, "seconds_to_first_batch": starts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4_000_000)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        ours, internevo = Path(name) / "evocore", Path(name) / "internevo"
        write_dataset(ours, arguments.tokens)
        write_dataset(internevo, arguments.tokens, plain=True)
        result = measure(ours, internevo, arguments.tokens, arguments.runs)
    if arguments.json:
        print(json.dumps(result))
        return
    medians, ratios, starts = result.values()
    for name in medians:  # type: ignore[attr-defined]
        print(f"{name:44} {medians[name] / 1e6:6.1f} M tokens/s   {ratios[name]:5.2f} x json.loads")  # type: ignore[index]
    print(f"{'target':44} {TARGET / 1e6:6.1f} M tokens/s")
    for part, seconds in starts.items():  # type: ignore[attr-defined]
        print(f"first batch with {part:4.0%} consumed: {seconds * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
