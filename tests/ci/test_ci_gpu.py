"""The job for a machine with an accelerator, as far as a machine without one can try it."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from evocore.backend import Backend
from evocore.ops.kernel import Kernel
from evocore.plugins.manager import PluginRegistry

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def scripts():
    """Let the scripts be imported as they import one another."""
    folders = [str(ROOT / "ci" / "bench"), str(ROOT / "ci" / "gpu")]
    sys.path[:0] = folders
    yield
    for folder in folders:
        sys.path.remove(folder)


def module(name):
    return importlib.import_module(name)


# --- the whole ----------------------------------------------------------------------------------------------


def test_a_dry_run_benchmarks_every_case_and_says_that_its_figures_mean_nothing(tmp_path):
    command = ["bash", str(ROOT / "ci/gpu/run.sh"), "--dry-run", "--only", "kernels", "--out", str(tmp_path)]
    command += ["--wheels", str(tmp_path / "none"), "--commit", "abc"]
    done = subprocess.run(command, capture_output=True, text=True, env=_environment(), timeout=110)
    assert done.returncode == 0, done.stderr
    report = Path(done.stdout.strip())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({report.name, report.stem + ".json"})
    results = json.loads(report.with_suffix(".json").read_text())
    assert results["dry_run"] is True and results["environment"]["commit"] == "abc"
    assert results["steps"][0]["outcome"] == "done"
    cases = results["kernels"]["cases"]
    assert set(cases) == {entry.title for entry in module("bench_kernels").ENTRIES}
    for title, case in cases.items():
        rows = {(row["provider"], row["phase"]): row for row in case["rows"]}
        assert (case["chosen"], "both") in rows or (case["chosen"], "forward") in rows, title
        ours = [row for row in case["rows"] if row["kind"] == "kernel"]
        assert not [row for row in ours if "error" in row], title
        assert all(row.get("difference", 0) < 1e-3 for row in ours), title
    assert "no figures to quote" in report.read_text()


def _environment():
    return {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}


def test_the_large_model_trains_through_the_command_line(tmp_path):
    training = module("bench_training")
    session = training.Session(tmp_path, seconds=100)
    plain = training.large(session, "cpu", tiny=True)
    assert plain.get("error") is None
    assert plain["steps"] == 4 and plain["micro_bsz"] == 4
    assert plain["last_loss"] == pytest.approx(4.85, abs=0.7)  # ln 128, as random tokens have it
    references = training.large_on_references(session, "cpu", tiny=True)
    assert {name.partition("=")[2] for name in references["kernels"]} == {"reference"}
    assert references["tokens_per_second"] > 0


def test_a_training_that_fails_is_recorded_with_its_last_words(tmp_path):
    training = module("bench_training")
    session = training.Session(tmp_path, seconds=100)
    config = tmp_path / "broken.py"
    config.write_text("model_type = 'NONE'\n")
    assert "exit code 2" in session.train(config, {}, "cpu")["error"]
    assert training.Session(tmp_path, seconds=-1).train(config, {}, "cpu") == {
        "error": "not started: the time was used up"
    }


# --- the job ------------------------------------------------------------------------------------------------


class Host(Backend):
    name = "cpu"
    device_type = "cpu"

    def why_unavailable(self):
        return None


class Absent(Backend):
    name = "chip"
    device_type = "privateuseone"

    def why_unavailable(self):
        return "no chip is present"


def test_without_an_accelerator_the_job_says_so_and_names_the_dry_run(monkeypatch, capsys):
    job = module("job")
    registry = PluginRegistry()
    monkeypatch.setattr(registry, "backends", lambda: [Host, Absent])
    monkeypatch.setattr(job, "load_plugins", lambda: registry)
    monkeypatch.setattr(sys, "argv", ["job.py"])
    assert job.main() == 2
    told = capsys.readouterr().err
    assert "no chip is present" in told and "--dry-run" in told
    assert job.find_backend(dry_run=True).name == "cpu"


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ("import sys; sys.exit(3)", "failed with exit code 3"),
        ("import time; time.sleep(60)", "stopped at its limit"),
        ("pass", "done"),
    ],
)
def test_what_becomes_of_a_step_is_recorded(monkeypatch, tmp_path, body, outcome):
    job = module("job")
    script = tmp_path / "step.py"
    script.write_text(
        "import sys; from pathlib import Path\n"
        "Path(sys.argv[sys.argv.index('--out') + 1]).write_text('{\"so far\": 1}')\n" + body + "\n"
    )
    monkeypatch.setitem(job.SCRIPTS, "training", str(script))
    monkeypatch.setitem(job.LIMITS, "training", job.Limits(3.0, 6.0))
    results = {"steps": []}
    start = time.monotonic()
    job.step("training", Host(), False, 100.0, tmp_path, results)
    assert time.monotonic() - start < 30
    assert results["steps"][0]["outcome"] == outcome
    assert results["training"] == {"so far": 1}, "what a step has written counts, however it ended"


def test_a_step_that_no_time_is_left_for_is_not_started(tmp_path):
    results = {"steps": []}
    module("job").step("kernels", Host(), False, 3.0, tmp_path, results)
    assert results["steps"][0]["outcome"].startswith("not started") and "kernels" not in results


def test_conformance_of_an_op_is_its_answer_or_its_problem():
    check = module("conformance").check
    answer = {"verdict": "1 conform", "kernels": [{"op": "adamw", "failed": 0}]}
    python = [sys.executable, "-c"]
    good = check([*python, f"print({json.dumps(answer)!r})"], {}, time.monotonic() + 50)
    assert good["problem"] is None and good["kernels"] == answer["kernels"]
    bad = check([*python, "raise SystemExit('illegal memory access')"], {}, time.monotonic() + 50)
    assert bad["problem"] == "exit code 1: illegal memory access"
    assert check([*python, "import time; time.sleep(50)"], {}, time.monotonic() + 0.5)["problem"].startswith(
        "stopped"
    )
    assert check(python, {}, time.monotonic() - 1)["problem"].startswith("not started")


# --- measuring ----------------------------------------------------------------------------------------------


def a_case(name="swiglu"):
    case = module("case")
    return module("kernel_cases").CASES[name](case.Maker(case.Shapes(tokens=4, ffn=8), torch.float32, CPU))


def test_a_candidate_that_fails_is_a_row_and_one_that_is_wrong_shows_its_distance():
    measuring, clocks = module("measuring"), module("clocks")
    case = a_case()

    def raises(gate, up):
        raise RuntimeError("no such luck\nsecond line")

    candidates = [
        module("peers").plain(case),
        measuring.Candidate("raises", raises, "kernel"),
        measuring.Candidate("twice", lambda gate, up: 2 * case.plain(gate, up), "kernel"),
        measuring.Candidate("same", lambda gate, up: 1.0 * case.plain(gate, up), "kernel"),
    ]
    rows = measuring.measure(case, candidates, CPU, clocks.HostClock(), seconds=0.01)
    found = {(row["provider"], row["phase"]): row for row in rows}
    assert found["raises", "all"]["error"] == "RuntimeError: no such luck"
    assert found["twice", "forward"]["difference"] == pytest.approx(1.0)
    assert found["same", "both"]["difference"] == 0.0
    both = found["same", "both"]
    assert both["bytes_per_second"] * both["seconds"] == pytest.approx(8 * 4 * 8 * 4)
    assert {phase for _, phase in found} == {"forward", "backward", "both", "all"}


def test_a_candidate_that_overwrites_its_inputs_harms_nobody():
    measuring, clocks = module("measuring"), module("clocks")
    case = a_case()
    before = [value.detach().clone() for value in case.inputs]

    def greedy(gate, up):
        out = case.plain(gate * 1.0, up * 1.0)
        gate.data.zero_()
        return out

    candidates = [module("peers").plain(case), measuring.Candidate("greedy", greedy, overwrites=True)]
    rows = measuring.measure(case, candidates, CPU, clocks.HostClock(), phases=["both"], seconds=0.01)
    assert all(torch.equal(now.detach(), then) for now, then in zip(case.inputs, before, strict=True))
    assert rows[1]["provider"] == "greedy" and rows[1]["difference"] < 1e-6


def test_a_provider_that_offers_an_op_twice_has_two_labels():
    offers = [
        Kernel("swiglu", "native", frozenset({"cpu"}), "a:b", frozenset({torch.float32}), priority=38),
        Kernel("swiglu", "native", frozenset({"cpu"}), "a:c", frozenset({torch.float32}), priority=40),
        Kernel("swiglu", "half", frozenset({"cpu"}), "a:d", frozenset({torch.float16})),
        Kernel("swiglu", "elsewhere", frozenset({"chip"}), "a:e", frozenset({torch.float32})),
    ]
    usable, refused = module("measuring").usable_kernels(a_case(), offers, "cpu")
    assert {label: kernel.target for label, kernel in usable.items()} == {
        "native": "a:c",
        "native, deterministic": "a:b",
    }
    assert next(iter(usable)) == "native" and refused == {"half": "no float32"}


def test_a_benchmark_goes_on_behind_what_broke_the_device(monkeypatch, tmp_path):
    bench, file = module("bench_kernels"), tmp_path / "kernels.json"
    argv = ["bench", "--out", str(file), "--tiny", "--only", "layer_norm", "--case-seconds", "0.01"]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(module("measuring"), "answers", lambda device: False)
    load = Kernel.load

    def load_or_break(kernel):
        return (lambda *_, **__: 1 / 0) if kernel.provider == "native" else load(kernel)

    monkeypatch.setattr(Kernel, "load", load_or_break)

    class StartedAgainError(Exception):
        pass

    def start_again():
        raise StartedAgainError

    monkeypatch.setattr(bench, "start_again", start_again)
    with pytest.raises(StartedAgainError):
        bench.main()
    monkeypatch.setattr(sys, "argv", [*argv, "--resume"])
    bench.main()
    found = json.loads(file.read_text())
    (case,) = found["cases"].values()
    assert case["missing"]["native"] == "ZeroDivisionError: division by zero"
    assert "reference" in {row["provider"] for row in case["rows"]}
    assert [item["provider"] for item in found["broken"]] == ["native"]


# --- targets and report -------------------------------------------------------------------------------------


def row(provider, phase, seconds, **more):
    return {
        "provider": provider,
        "phase": phase,
        "kind": "kernel",
        "seconds": seconds,
        "bytes_per_second": 1e9 / seconds,
        "flops_per_second": 1e12 / seconds,
        "peak_bytes": 2**20,
        **more,
    }


@pytest.fixture
def results():
    """A small job: one norm, attention, the loss with its memory, training, conformance."""

    def case(op, chosen, rows, flops=0.0):
        ideal = {phase: {"bytes": 1e9, "flops": flops} for phase in ("forward", "backward", "both")}
        facts = {"op": op, "request": "bfloat16", "shapes": {"tokens": 4}, "chosen": chosen, "ideal": ideal}
        return {**facts, "refused": {"half": "no bfloat16"}, "missing": {}, "rows": rows}

    norm = [row("plain", phase, 5.0) for phase in ("forward", "backward")]
    norm += [row("triton", "forward", 1.05, difference=0.001), row("triton", "backward", 1.5, difference=0.5)]
    norm += [row("liger", "forward", 1.1), row("liger", "backward", 1.2)]
    norm += [{"provider": "apex", "phase": "all", "kind": "kernel", "error": "RuntimeError: a | b"}]
    attention = [row("native", "both", 0.002), row("triton", "both", 0.004), row("sdpa-flash", "both", 0.003)]
    attention += [row("sdpa-cudnn", "both", 0.0019)]
    loss = [row("plain", "both", 1.0, peak_bytes=1000), row("chunked", "both", 1.0, peak_bytes=99)]
    return {
        "dry_run": False,
        "environment": {"device": "Chip 9000", "date": "2031-05-06", "driver": None},
        "steps": [{"name": "kernels", "limit": 10.0, "seconds": 9.0, "outcome": "done", "readings": ["cool", "hot"]}],
        "kernels": {
            "dtype": "bfloat16",
            "yardsticks": {
                "first": {"copy_bytes_per_second": 1e9, "product_flops_per_second": 800e12},
                "last": {"copy_bytes_per_second": 0.9e9, "product_flops_per_second": 700e12},
            },
            "cases": {
                "rms_norm 4096": case("rms_norm", "triton", norm),
                "attention 8K": case("attention", "native", attention, flops=1e12),
                "linear_cross_entropy 128K": case("linear_cross_entropy", "chunked", loss, flops=1e12),
                "geglu": {"left_out": "200 s were used up"},
            },
        },
        "training": {
            "backend": "chip",
            "1.8B": {
                "steps": 20, "step_seconds": 1.5, "tokens_per_second": 4e4, "model_flops_per_second": 480e12,
                "mfu": None, "peak_memory_bytes": 2**36, "first_loss": 11.5, "last_loss": 11.4,
                "kernels": ["attention=native"], "micro_bsz": 4, "seq_len": 4096,
            },
            "small, device against CPU": {"error": "chip: exit code 1: out of luck"},
        },
        "conformance": {
            "backend": "chip",
            "ops": {
                "adamw": {"problem": "stopped after 150 s", "kernels": []},
                "swiglu": {
                    "problem": None,
                    "kernels": [
                        {
                            "provider": "triton", "dtype": "bfloat16", "passed": 3, "refused": 0, "failed": 1,
                            "worst": 0.5, "failures": [{"case": "T=1", "what": "gate: 3.1 allowed"}],
                        }
                    ],
                },
            },
        },
    }  # fmt: skip


def test_targets_are_met_missed_or_unknown(results):
    found = {(target["name"], target["unit"]): target for target in module("targets").evaluate(results)}

    def verdict(name, unit):
        target = found[name, unit]
        return target["met"], target["found"]

    assert verdict("rms_norm 4096, forward", "of the copy") == (True, pytest.approx(1 / 1.05))
    assert verdict("rms_norm 4096, backward", "of the copy") == (False, pytest.approx(1 / 1.5))
    assert verdict("rms_norm 4096, forward", "x Liger") == (True, pytest.approx(1.1 / 1.05))
    assert verdict("rms_norm 4096, backward", "x Liger") == (False, pytest.approx(0.8))
    assert verdict("rms_norm 4096, forward", "x torch.compile") == (None, None)
    assert verdict("attention 8K, both", "x sdpa-cudnn") == (False, pytest.approx(0.95))
    assert verdict("attention 8K, both, triton", "of 308 TFLOP/s") == (True, pytest.approx(250 / 308))
    assert verdict("linear_cross_entropy 128K, peak memory", "of the plain one's") == (True, 0.099)
    assert verdict("1.8B step, MFU", "of the measured product") == (True, pytest.approx(0.6))
    assert verdict("small model, float32, device against CPU", "of loss") == (None, None)
    assert not [
        target for target in found.values() if target["name"].startswith("swiglu") and target["met"] is not None
    ]


def test_targets_of_a_job_without_results_are_none():
    assert module("targets").evaluate({}) == []


def test_the_report_tells_figures_failures_and_what_was_left_out(results):
    results["targets"] = module("targets").evaluate(results)
    text = module("report").render(results)
    assert text.startswith("# Chip 9000, 2031-05-06\n") and "dry run" not in text.lower()
    assert "| rms_norm 4096, backward | ≥ 80 % of the copy | 67 % of the copy | **missed** |" in text
    assert "| **triton** | 1050.000 | 95% | 1500.000 | 67% | 1 | 5.0e-01 (!) |" in text
    assert "- apex: RuntimeError: a | b" in text and "- half: no bfloat16" in text
    assert "Left out: 200 s were used up." in text
    assert "| **native** | 2.000 | 500 TFLOP/s (62%) |" in text
    assert (
        "| 1.8B | 4 x 4096 | 1500 | 40000 | 480.0 | unknown | 60.0% | 64.0 | 11.5000 → 11.4000 (20 steps) |" in text
    )
    assert "Small model against the CPU: chip: exit code 1: out of luck" in text
    assert "- adamw: stopped after 150 s" in text and "- swiglu triton bfloat16 T=1: gate: 3.1 allowed" in text
    assert "| kernels | 9 s of 10 | done | hot |" in text


def test_cells_cannot_break_a_table():
    assert module("report").table(["a"], [["x|y\nz"], [None]]).splitlines()[2:] == ["| x\\|y z |", "|  |"]


def test_a_dry_run_is_marked(results):
    assert "no figures to quote" in module("report").render({**results, "dry_run": True})


def test_files_are_named_by_device_and_date(results):
    environment = {"device": "NVIDIA H100 80GB HBM3", "date": "2031-05-06"}
    assert module("job").slug(environment) == "nvidia-h100-80gb-hbm3-2031-05-06"


def test_ragged_documents_and_uneven_groups_are_whole():
    shapes = module("case").Shapes(tokens=5000, document=700, experts=7)
    assert sum(shapes.lengths()) == 5000 and sum(shapes.lengths(ragged=True)) == 5000
    assert len(set(shapes.lengths(ragged=True))) > 5 and max(shapes.lengths(ragged=True)) <= 700
    assert sum(shapes.group_sizes()) == 5000 and len(set(shapes.group_sizes())) > 3
