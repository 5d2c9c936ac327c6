"""``evocore diff`` on real runs: equal ones, one with a wrong kernel, one with other data."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from evocore.cli.main import main

RUNS = Path(__file__).parents[1] / "training"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of short runs by name."""
    sys.path.insert(0, str(RUNS))
    try:
        import shadow_plugin
        from training_runs import Recorder, run, values, write_corpus
    finally:
        sys.path.remove(str(RUNS))
    tmp = tmp_path_factory.mktemp("runs")
    write_corpus(tmp / "train")
    write_corpus(tmp / "other", seed=7)
    check = dict(kernels_check=dict(every=2))

    def short(name, **blocks):
        data = dict(total_steps=4, micro_num=1) | blocks.pop("data", {})
        return values(tmp, JOB_NAME=name, data=data, **{**check, **blocks})

    return {
        "one": run(short("one"))[1],
        "two": run(short("two"))[1],
        "reference": run(short("reference", kernels=dict(swiglu="reference", attention="reference")))[1],
        "wrong": shadow_plugin.run_with_plugin(
            short("wrong", kernels=dict(swiglu="wrong")), shadow_plugin, Recorder()
        ),
        "data": run(short("data", data=dict(train_folder=str(tmp / "other"))))[1],
        "lr": run(short("lr", adam=dict(lr=1e-3)))[1],
        "three": run(short("three", kernels_check=dict(every=3, ops=["swiglu"]), data=dict(total_steps=3)))[1],
        "off": run(short("off", kernels_check=None))[1],
    }


def diff(capsys, *arguments):
    code = main(["diff", *map(str, arguments)])
    return code, capsys.readouterr().out


def facts(capsys, *arguments):
    code, out = diff(capsys, *arguments, "--json")
    return code, json.loads(out)


def test_equal_runs_agree_even_without_tolerance(runs, capsys):
    code, found = facts(capsys, runs["one"], runs["two"], "--tolerance", "0")

    assert code == 0 and found["agree"] and found["steps"] == [1, 2, 4]
    assert found["compared"] > 100 and found["partings"] == found["alone"] == found["differences"] == []
    assert {row["name"] for row in found["figures"]} == {"loss", "grad_norm"} and len(found["figures"]) == 6
    assert diff(capsys, runs["one"], runs["two"])[1].splitlines()[-1] == "the runs agree"


def test_other_sound_kernels_agree_within_the_tolerance_which_is_stated(runs, capsys):
    code, out = diff(capsys, runs["one"], runs["reference"])

    assert code == 0, out
    assert "tolerance 3.05e-05 (256 eps of float32)" in out
    rows = [line.split() for line in out.splitlines() if line.startswith("kernel.swiglu")]
    assert rows[0][-2:] == ["native", "reference"]


def test_the_wrong_kernel_is_the_first_thing_named(runs, capsys):
    code, found = facts(capsys, runs["one"], runs["wrong"])

    first = found["partings"][0]
    assert code == 1
    # Backward meets the last layer first, and its gradient of the gate is all that is wrong.
    assert {name: first[name] for name in ("step", "micro_batch", "op", "layer", "direction", "result")} == {
        "step": 1,
        "micro_batch": 0,
        "op": "swiglu",
        "layer": "layers.1.feed_forward",
        "direction": "backward",
        "result": "gradient of gate_TF",
    }
    assert first["providers"] == ["native", "wrong"] and first["difference"] == pytest.approx(0.01, rel=0.05)
    code, out = diff(capsys, runs["one"], runs["wrong"])
    assert code == 1
    assert (
        "the runs part, first at step 1, micro-batch 0, backward of swiglu (native against wrong) in layers.1" in out
    )
    assert diff(capsys, runs["one"], runs["wrong"], "--tolerance", "0.9")[0] == 0


def test_other_data_are_told_and_nothing_after_them_is_compared(runs, capsys):
    code, found = facts(capsys, runs["one"], runs["data"])

    assert code == 1 and found["different_data"] == {"step": 1, "micro_batch": 0}
    assert found["compared"] == 0 and found["partings"] == []
    assert {"config.data.train_folder"} <= {row["name"] for row in found["differences"]}
    assert "read different data from step 1, micro-batch 0" in diff(capsys, runs["one"], runs["data"])[1]


def test_another_learning_rate_parts_in_the_first_update(runs, capsys):
    code, found = facts(capsys, runs["one"], runs["lr"])

    first = found["partings"][0]
    assert code == 1 and (first["step"], first["op"], first["layer"]) == (1, "adamw", "optimizer")
    assert {"name": "config.adam.lr", "a": 3e-3, "b": 1e-3} in found["differences"]


def test_only_common_steps_count(runs, capsys):
    code, found = facts(capsys, runs["one"], runs["three"])
    assert code == 0 and found["steps"] == [1] and found["compared"] > 30


def user_error(capsys, *arguments):
    assert main(["diff", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_mistakes_say_what_to_do(runs, capsys, tmp_path):
    assert "is not the folder of a run: it has no config.json" in user_error(capsys, runs["one"], tmp_path)
    told = user_error(capsys, runs["off"], runs["one"])
    assert "holds no fingerprints: fingerprints.jsonl is missing" in told and "--set kernels_check.every=100" in told
    apart = tmp_path / "apart"
    shutil.copytree(runs["one"], apart, ignore=shutil.ignore_patterns("checkpoints"))
    kept = [line for line in (apart / "fingerprints.jsonl").read_text().splitlines() if '"step": 4' in line]
    (apart / "fingerprints.jsonl").write_text("\n".join(kept) + "\n")
    assert "recorded no step in common" in user_error(capsys, runs["three"], apart)
    (apart / "fingerprints.jsonl").write_text("{]\n")
    assert "fingerprints.jsonl is no JSON" in user_error(capsys, runs["one"], apart)
