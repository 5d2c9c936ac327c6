"""Packages of strangers, written and installed as docs/plugin-guide.md says, word by word, with evocore as it is.

The guide's blocks are the files of the packages beside this test. Its commands run in an empty folder; pip's options
that only a test needs (a folder of its own, no network) come by environment variables.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch.utils import backend_registration

from evocore.ops.contracts import CONTRACTS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GUIDE = (ROOT / "docs" / "plugin-guide.md").read_text(encoding="utf-8")
BLOCKS = re.compile(r"(?:^`([\w./-]+)`\n\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WALKS = {
    name: BLOCKS.findall(GUIDE[GUIDE.index(f"\n## {start}\n") : GUIDE.index(f"\n## {end}\n")])
    for name, start, end in (
        ("device", "A device, its collectives and a kernel", "Only a kernel"),
        ("kernel", "Only a kernel", "Versions"),
    )
}
"""By the name of a walk: (file or "", language, text) of its blocks."""
FILES = {file: text for blocks in WALKS.values() for file, _, text in blocks if file}
SMALL = re.search(r"evocore demo ((?:--set|\\\n|[\w.=]+| )+)", GUIDE)[1].replace("\\\n", "")
"""The options with which the guide makes the demo small."""
END = "=== end of block ==="
LONGEST = 500
"""Seconds; ten times what it takes on two cores."""

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="before PyTorch 2.11 no device can be made in Python",
)


def start(command, folder, site, **variables):
    """Start a shell in a folder, in which pip installs into ``site`` and Python finds what is there."""
    folder.mkdir(exist_ok=True)
    environment = {name: text for name, text in os.environ.items() if not name.startswith("EVOCORE_")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(site),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PIP_TARGET": str(site),
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # as pip reads it: without isolation, which would need the network
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    output = open(folder / "output.txt", "w+", encoding="utf-8")  # noqa: SIM115 - finish() closes it
    process = subprocess.Popen(
        ["bash", "-e", "-c", command],
        cwd=folder,
        env=environment,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # so that what it has started can be ended with it
    )
    return process, output


def finish(started):
    """What it wrote; it must have succeeded."""
    process, output = started
    with output:
        code = process.wait(timeout=LONGEST)
        output.seek(0)
        text = output.read()
    assert code == 0, text
    return text


def end(started):
    """Leave nothing running."""
    with suppress(ProcessLookupError):
        os.killpg(started[0].pid, signal.SIGKILL)


@dataclass
class Walk:
    """The outputs of a walk's shell blocks, and the folder where it was walked."""

    outputs: list[str]
    folder: Path


def start_walk(name, folder, checkout):
    """Write the files of a walk into an empty folder and start its commands."""
    for file, _, text in WALKS[name]:
        if file:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text, encoding="utf-8")
    commands = [f"{text}\necho '{END}'" for _, language, text in WALKS[name] if language == "sh"]
    return start("\n".join(commands), folder, folder.with_name(f"site_{name}"), CHECKOUT=str(checkout))


def copy_checkout(folder):
    """What the commands need of a checkout: each has its own, as pip builds beside a setup.py."""
    for path in ("tests/downstream/torch_toydevice", "tests/downstream/evocore_toydevice", "configs"):
        shutil.copytree(ROOT / path, folder / path)
    return folder


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """Both walks, the demo's same steps on the CPU, and the references on the device: at once, as much is waiting."""
    folder = tmp_path_factory.mktemp("downstream")
    site = folder / "site"
    references = "--sizes small --draws 0 --part kernels --provider reference --json"
    install = "pip install -q $CHECKOUT/tests/downstream/{torch,evocore}_toydevice > install.txt 2>&1"
    started = {
        **{name: start_walk(name, folder / name, copy_checkout(folder / f"checkout_{name}")) for name in WALKS},
        "cpu": start(f"evocore demo --backend cpu --set model.dtype=torch.float32 {SMALL}", folder / "cpu", site),
        "references": start(
            f"{install}\nevocore conform --backend toydevice {references}",
            folder / "references",
            site,
            CHECKOUT=str(copy_checkout(folder / "checkout_references")),
        ),
    }
    try:
        return {name: Walk(finish(one).split(END), folder / name) for name, one in started.items()}
    finally:
        for one in started.values():
            end(one)


# --- the text -----------------------------------------------------------------------------------------------------


def test_the_guide_shows_the_packages_beside_this_test():
    packages = [HERE / "evocore_toydevice", HERE / "evocore_kernelpack"]
    kept = {str(path.relative_to(HERE)): path for package in packages for path in package.rglob("*.py")}
    assert set(FILES) == set(kept)
    for file, path in kept.items():
        assert FILES[file] == path.read_text(encoding="utf-8"), f"docs/plugin-guide.md shows another {file}"


def test_the_device_has_at_most_150_lines():
    texts = [text for file, text in FILES.items() if file.startswith("evocore_toydevice/")]
    lines = [line for text in texts for line in text.splitlines()]
    assert 100 < len(lines) <= 150 and max(map(len, lines)) <= 118


# --- a device, its collectives and a kernel -----------------------------------------------------------------------


def words(text):
    """Tables are as wide as what is in them."""
    return " ".join(text.split())


@pytest.mark.parametrize("name", WALKS)
def test_every_command_says_what_the_guide_shows(walked, name):
    *outputs, rest = walked[name].outputs
    shell = [place for place, (_, language, _) in enumerate(WALKS[name]) if language == "sh"]
    assert len(outputs) == len(shell) and not rest.strip()
    shown = [(place, text) for place, (_, language, text) in enumerate(WALKS[name]) if language == "text"]
    assert shown
    for place, text in shown:
        said = outputs[sum(before < place for before in shell) - 1]
        assert not [line for line in text.splitlines() if words(line) not in words(said)], said


def test_the_kit_passes_as_tests_of_the_plugins_repository(walked):
    (said,) = [output for output in walked["device"].outputs if re.search(r"^=* *\d+ passed", output, re.MULTILINE)]
    assert " failed" not in said and " error" not in said


def test_references_conform_on_the_device(walked):
    answer = json.loads(walked["references"].outputs[0])
    assert answer["conforms"] and {row["op"] for row in answer["kernels"]} == set(CONTRACTS)
    assert {row["verdict"] for row in answer["kernels"]} == {"passed"}


def run_of(walk):
    (folder,) = (walk.folder / "runs" / "demo").iterdir()
    return folder


def test_the_demos_first_steps_are_those_of_the_processor(walked):
    def steps(walk, backend):
        folder = run_of(walk)
        assert json.loads((folder / "environment.json").read_text())["backend"] == backend
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [(line["loss"], line["grad_norm"]) for line in lines if "loss" in line]

    on_device, on_cpu = steps(walked["device"], "toydevice"), steps(walked["cpu"], "cpu")
    assert len(on_device) == 3 and on_device[2][0] < on_device[0][0] - 0.5
    for ours, theirs in zip(on_device, on_cpu, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5)


def test_it_trained_with_its_own_kernel_and_references(walked):
    choices = json.loads((run_of(walked["device"]) / "kernels.json").read_text())["choices"]
    providers = {choice["op"]: choice["provider"] for choice in choices}
    assert providers.pop("swiglu") == "toydevice" and set(providers.values()) == {"reference"}


# --- only a kernel ------------------------------------------------------------------------------------------------


def test_a_kernel_for_somebody_elses_device_is_chosen(walked):
    table, *_ = [line.split() for line in walked["kernel"].outputs[0].splitlines() if line.startswith("swiglu ")]
    assert table[:4] == ["swiglu", "float32", "width=1024", "blocks"]


def test_the_trees_of_the_packages_are_left_as_they_were(walked):
    left = [path for path in HERE.rglob("*") if path.name == "build" or path.suffix == ".egg-info"]
    assert not left
