"""Small tokenised datasets, written by plain code that shares nothing with the code under test."""

import json
from pathlib import Path

import numpy as np


def write_bin(path: Path, documents, *, lines=None, dtype=np.int64) -> Path:
    """A ``.bin`` file of documents (lists of signed tokens) and its ``.bin.meta``; ``lines`` overrides the text."""
    lines = lines or [json.dumps({"tokens": document}) for document in documents]
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, offset = [], 0
    with path.open("wb") as file:
        for line, document in zip(lines, documents, strict=True):
            rows.append((offset, len(document)))
            offset += file.write(line.encode() + b"\n")
    with Path(f"{path}.meta").open("wb") as file:
        np.save(file, np.array(rows, dtype).reshape(-1, 2))
    return path
