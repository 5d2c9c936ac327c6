"""How fast a checkpoint is converted from Hugging Face and back, against copying its files on the same disk.

    python ci/bench/convert.py [--gigabytes 1] [--runs 5] [--folder DIR] [--json]

A model of random weights in Llama's shape is made on the spot, once in float32 and once in bfloat16; evocore's
checkpoints are float32, so that of the second is twice as large. Copies and conversions take turns, each ends when
its bytes are on the disk, and the ratio is that of neighbours, so that it holds on any machine. Everything is read
from the page cache. A rate counts the larger of what is read and what is written.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from evocore.conversion.hugging_face import evocore_to_hugging_face, hugging_face_to_evocore
from evocore.plugins.manager import load_plugins

TARGET = 0.5  # of the rate of copying
HIDDEN, WIDTH, VOCAB = 2048, 5632, 32000
SHARD = 400 << 20  # bytes


def write_model(folder: Path, total: int, dtype: torch.dtype) -> None:
    """About ``total`` bytes of a Llama, in several files with an index, as ``save_pretrained`` makes them."""
    folder.mkdir()
    square, tall = (HIDDEN, HIDDEN), (WIDTH, HIDDEN)
    layer = {f"self_attn.{name}_proj": square for name in "qkvo"} | {
        f"mlp.{name}_proj": tall for name in ("gate", "up")
    }
    layer |= {"mlp.down_proj": (HIDDEN, WIDTH), "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,)}
    ends = {"model.embed_tokens": (VOCAB, HIDDEN), "lm_head": (VOCAB, HIDDEN), "model.norm": (HIDDEN,)}
    size = {
        key: sum(torch.Size(shape).numel() for shape in part.values()) for key, part in (("l", layer), ("e", ends))
    }
    layers = max(1, round((total / dtype.itemsize - size["e"]) / size["l"]))
    shapes = ends | {f"model.layers.{n}.{name}": shape for n in range(layers) for name, shape in layer.items()}
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, shape in shapes.items():
        if sum(tensor.nbytes for tensor in shards[-1].values()) > SHARD:
            shards.append({})
        shards[-1][f"{name}.weight"] = torch.randn(shape).to(dtype)
    where = {}
    for number, shard in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, {"format": "pt"})
        where |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    config = dict(model_type="llama", dtype=str(dtype).removeprefix("torch."), hidden_size=HIDDEN, vocab_size=VOCAB)
    config |= dict(intermediate_size=WIDTH, num_hidden_layers=layers, num_attention_heads=16)
    (folder / "config.json").write_text(json.dumps(config))


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def copy(source: Path, target: Path) -> None:
    """File by file, with what the operating system offers for it, until all is on the disk."""
    target.mkdir()
    for file in source.iterdir():
        shutil.copyfile(file, target / file.name)
    for file in target.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def timed(work: Callable[[Path], object], target: Path) -> float:
    start = time.perf_counter()
    work(target)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def measure(folder: Path, gigabytes: float, runs: int) -> dict[str, dict[str, float]]:
    registry, found = load_plugins(), {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        theirs, ours, target = folder / name, folder / f"{name}-evocore", folder / "target"
        write_model(theirs, int(gigabytes * 1e9), dtype)
        hugging_face_to_evocore(theirs, ours, registry)
        larger = max(size_of(theirs), size_of(ours))
        works: dict[str, tuple[Path, Callable[[Path], object]]] = {
            f"{name}: hf-to-evocore": (theirs, lambda to, at=theirs: hugging_face_to_evocore(at, to, registry)),
            f"{name}: evocore-to-hf": (ours, lambda to, at=ours: evocore_to_hugging_face(at, to, registry)),
        }
        rates: dict[str, list[tuple[float, float]]] = {key: [] for key in works}
        for _ in range(runs):
            for key, (source, work) in works.items():
                copied = size_of(source) / timed(lambda to, source=source: copy(source, to), target)  # type: ignore[misc]
                rates[key].append((larger / timed(work, target), copied))
        for key, pairs in rates.items():
            found[key] = {
                "gigabytes_per_second": statistics.median(ours for ours, _ in pairs) / 1e9,
                "copy_gigabytes_per_second": statistics.median(copied for _, copied in pairs) / 1e9,
                "ratio": statistics.median(ours / copied for ours, copied in pairs),
            }
        shutil.rmtree(theirs)
        shutil.rmtree(ours)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; by default that of temporary files")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        result = measure(Path(name), arguments.gigabytes, arguments.runs)
    if arguments.json:
        print(json.dumps(result))
        return
    for key, row in result.items():
        ours, copied, ratio = row.values()
        print(f"{key:26} {ours:6.2f} GB/s   copying {copied:6.2f} GB/s   ratio {ratio:5.2f} (target {TARGET})")


if __name__ == "__main__":
    main()
