"""Trains on one device through ``evocore train`` and reads what it logged; writes one JSON file.

    python ci/gpu/bench_training.py --out FILE --backend NAME [--seconds 170] [--tiny]

Four runs: InternLM2 1.8B with the kernels that resolution chooses, the same with every op's reference, and a small
model in float32 on the device and on the CPU, whose losses must agree.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from evocore.data.record_writer import Record, RecordWriter
from evocore.ops.contracts import CONTRACTS

ROOT = Path(__file__).resolve().parents[2]
PACKS = 16
"""Sequences per step, however many fit into one micro-batch."""
SETTLED = 3
"""Steps that warm up: compilation, the allocator, the clocks."""
LARGE: dict[str, Any] = {
    "data.seq_len": 4096,
    "data.total_steps": 20,
    "model.checkpoint": 0,
    "parallel.zero1.size": 1,
    "enable_tb": False,
}
TINY: dict[str, Any] = {
    "data.seq_len": 64,
    "data.total_steps": 4,
    "model.num_layers": 2,
    "model.hidden_size": 64,
    "model.num_attention_heads": 4,
    "model.num_kv_attention_heads": 2,
    "model.vocab_size": 128,
    "model.dtype": "torch.float32",
}
SMALL: dict[str, Any] = {
    "JOB_NAME": "agreement",
    "model_type": "INTERNLM2",
    "enable_tb": False,
    "data": dict(seq_len=256, micro_bsz=2, micro_num=2, total_steps=10),
    "model": dict(
        num_layers=6, hidden_size=384, num_attention_heads=6, num_kv_attention_heads=3, mlp_ratio=8 / 3,
        multiple_of=64, vocab_size=384, no_bias=True, dtype="torch.float32",
    ),
    "parallel": dict(zero1=dict(size=1)),
    "hybrid_zero_optimizer": dict(clip_grad_norm=1.0),
    "adam": dict(lr=3e-3, adam_beta2=0.95, weight_decay=0.1),
    "lr_scheduler": dict(warmup_ratio=0.1, eta_min=3e-4),
    "ckpt": dict(enable_save_ckpt=False),
}  # fmt: skip
"""The demo's model on documents that count upwards, so that its loss falls from the first steps on."""


class Session:
    """Runs ``evocore train`` in a folder of its own until the time is used up."""

    def __init__(self, work: Path, seconds: float) -> None:
        self.work, self.deadline = work, time.monotonic() + seconds

    def train(
        self, config: Path, sets: dict[str, Any], backend: str, kernels: str = "", at_most: float = 600.0
    ) -> dict[str, Any]:
        """Train; ``{"steps": [...]}`` as logged, or ``{"error": ...}``; both with the seconds from start to end."""
        sets = {**sets, "run_folder": self.work / "runs"}
        command = [sys.executable, "-m", "evocore", "train", "--config", str(config), "--backend", backend]
        command += [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
        environment = {**os.environ, "EVOCORE_KERNELS": kernels}
        start = time.monotonic()
        limit = min(at_most, self.deadline - start)
        if limit <= 0:
            return {"error": "not started: the time was used up"}
        try:
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return {"error": f"stopped after {limit:.0f} s"}
        seconds = round(time.monotonic() - start, 1)
        if done.returncode != 0:
            tail = " | ".join(done.stderr.strip().splitlines()[-6:])
            return {"error": f"exit code {done.returncode}: {tail}", "wall_seconds": seconds}
        folder = Path(done.stdout.strip().splitlines()[-1])
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        table = json.loads((folder / "kernels.json").read_text())
        chosen = sorted({f"{row['op']}={row['provider']}" for row in table["choices"]})
        return {
            "steps": [record for record in records if "loss" in record],
            "kernels": chosen,
            "wall_seconds": seconds,
        }


def large(session: Session, backend: str, tiny: bool) -> dict[str, Any]:
    """The 1.8B model with as many sequences per micro-batch as fit."""
    config = ROOT / "configs" / "1.8B_internlm2.py"
    error: dict[str, Any] = {}
    for micro_bsz in (4, 2, 1):
        sets = LARGE | (TINY if tiny else {}) | {"data.micro_bsz": micro_bsz, "data.micro_num": PACKS // micro_bsz}
        result = session.train(config, sets, backend)
        if "steps" in result:
            return summary(result) | {"micro_bsz": micro_bsz, "seq_len": sets["data.seq_len"]} | error
        if "out of memory" not in result["error"].lower() and "OutOfMemoryError" not in result["error"]:
            return result
        error = {"did_not_fit": micro_bsz}
    return result


def large_on_references(session: Session, backend: str, tiny: bool) -> dict[str, Any]:
    """The same model with every op's reference: few steps, everything recomputed, for its scores take the memory."""
    sets = LARGE | {"data.total_steps": SETTLED + 2, "model.checkpoint": 1, "data.micro_bsz": 1, "data.micro_num": 4}
    if tiny:
        sets |= TINY
    forced = ",".join(f"{op}=reference" for op in sorted(CONTRACTS))
    result = session.train(ROOT / "configs" / "1.8B_internlm2.py", sets, backend, forced)
    return summary(result) | {"micro_bsz": 1, "seq_len": sets["data.seq_len"]} if "steps" in result else result


def agreement(session: Session, backend: str, tiny: bool) -> dict[str, Any]:
    """Losses of the small model on the device and on the CPU, step by step."""
    corpus = session.work / "corpus"
    with RecordWriter(corpus / "part") as writer:
        for number in range(400):
            start, step, length = number * 37 % 383, 1 + number % 3, 40 + number * 53 % 200
            writer.append(Record.of([(start + step * place) % 383 + 1 for place in range(length)]))
    values = {**SMALL, "data": {**SMALL["data"], "train_folder": str(corpus)}}
    if tiny:
        values["model"] = {**SMALL["model"], "num_layers": 2, "hidden_size": 96}
    config = session.work / "agreement.py"
    config.write_text("".join(f"{name} = {value!r}\n" for name, value in values.items()))
    runs = {name: session.train(config, {}, name, at_most=60.0) for name in dict.fromkeys((backend, "cpu"))}
    failed = {name: run["error"] for name, run in runs.items() if "error" in run}
    if failed:
        return {"error": "; ".join(f"{name}: {text}" for name, text in failed.items())}
    device, host = (runs[name]["steps"] for name in (backend, "cpu"))
    return {
        "backends": [backend, "cpu"],
        "losses": [[one["loss"], other["loss"]] for one, other in zip(device, host, strict=True)],
        "largest_difference": max(abs(one["loss"] - other["loss"]) for one, other in zip(device, host, strict=True)),
        "largest_grad_norm_difference": max(
            abs(one["grad_norm"] / other["grad_norm"] - 1) for one, other in zip(device, host, strict=True)
        ),
        "kernels": runs[backend]["kernels"],
    }


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """What the report needs of a run; rates are medians over the steps after the first few."""
    steps = result["steps"]
    settled = steps[SETTLED:] or steps

    def median(name: str) -> float | None:
        values = [step[name] for step in settled]
        return None if None in values else statistics.median(values)

    mfu, hfu = median("mfu"), median("hfu")
    hardware = median("tflops")
    recomputed = 1.0 if not (mfu and hfu) else hfu / mfu
    assert hardware is not None
    return {
        "steps": len(steps),
        "step_seconds": median("fwd_bwd_time"),
        "tokens_per_second": median("tgs"),
        "model_flops_per_second": hardware * 1e12 / recomputed,
        "mfu": mfu,
        "peak_memory_bytes": max(step["memory_peak"] for step in steps),
        "first_loss": steps[0]["loss"],
        "last_loss": steps[-1]["loss"],
        "kernels": result["kernels"],
        "wall_seconds": result["wall_seconds"],
    }


def main() -> None:
    options = parse()
    found: dict[str, Any] = {"backend": options.backend}
    runs = {"1.8B": large, "small, device against CPU": agreement, "1.8B on references": large_on_references}
    with tempfile.TemporaryDirectory() as work:
        session = Session(Path(work), options.seconds)
        for name, run in runs.items():
            found[name] = run(session, options.backend, options.tiny)
            options.out.write_text(json.dumps(found, indent=1) + "\n")
            print(f"training: {name}: {found[name].get('error', 'done')}", file=sys.stderr, flush=True)
    sys.exit(1 if any("error" in found[name] for name in runs) else 0)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    parser.add_argument("--backend", required=True, help="evocore's name of the device")
    parser.add_argument("--seconds", type=float, default=170.0, help="stop whatever is not done by then")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try the program")
    return parser.parse_args()


if __name__ == "__main__":
    main()
