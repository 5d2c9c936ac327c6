"""What the demo shows at its end: did it learn, how fast was it, where is everything - and a function it wrote."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from evocore.generation import Sampling, generate, load_model
from evocore.plugins.manager import PluginRegistry

PROMPT = "def read(self, "
"""A beginning that the standard library has in a hundred variants."""


@dataclass(frozen=True)
class DemoReport:
    """Rows of the closing table, the prompt, and the generated text with the prompt in front."""

    rows: list[tuple[str, str]]
    prompt: str
    text: str


def report(folder: Path, registry: PluginRegistry, *, backend: str | None = None) -> DemoReport:
    """Read a finished run's folder and let its model write.

    Args:
        folder: of the run.
        registry: the plug-ins, to build the model again.
        backend: where to generate.
    """
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "loss" in record]
    validations = [record for record in records if any(name.startswith("valid/") for name in record)]
    first, last = (
        next(value for name, value in record.items() if name.startswith("valid/"))
        for record in (validations[0], validations[-1])
    )
    end = steps[-1]
    rows = [
        ("validation loss, untrained", f"{first:.3f}"),
        (f"validation loss, step {end['step']}", f"{last:.3f}  ({last / first:.0%} of the start)"),
        ("tokens trained on", f"{end['num_consumed_tokens']:,}"),
        ("tokens per second", f"{end['tgs/tgs_all']:,.0f} per process"),
        ("MFU", "unknown peak" if end["mfu"] is None else f"{_mean(steps, 'mfu'):.1%} of the measured peak"),
        ("run folder", str(folder)),
        ("metrics", str(folder / "metrics.jsonl")),
        ("checkpoints", str(folder / "checkpoints")),
    ]
    loaded = load_model(folder, registry, backend=backend)
    tokenizer = loaded.tokenizer
    prompt = [tokenizer.bos_id, *tokenizer.encode(PROMPT)]
    sampling = Sampling(max_new_tokens=120, temperature=0.6, top_p=0.95)
    (new,) = generate(loaded.model, [prompt], sampling, loaded.device, stop_ids=loaded.stop_ids)
    return DemoReport(rows, PROMPT, _first_function(PROMPT + tokenizer.decode(new)))


def _mean(records: list[dict[str, float]], name: str) -> float:
    values = [record[name] for record in records[1:] or records]  # the first step pays for warming up
    return sum(values) / len(values)


def _first_function(text: str) -> str:
    """Up to where a line that follows the body is no longer indented."""
    lines = text.splitlines()
    kept = lines[:1]
    for line in lines[1:]:
        if line and not line[0].isspace():
            break
        kept.append(line)
    return "\n".join(kept).rstrip()
