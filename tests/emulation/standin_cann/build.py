"""Builds the stand-in libraries with a C compiler, in a second or two.

``python build.py --site SITE --cann CANN``: SITE is the folder into which pip put torch-npu (its headers are compiled
against), CANN becomes what the home of a CANN installation looks like to torch_npu.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import opapi_table

SOURCES = Path(__file__).parent / "c"
LIBRARIES = {
    "ascendcl": ["runtime.c", "streams.c", "absent.c"],
    "hccl": ["hccl.c", "transport.c", "reduce.c"],
    "opapi": ["aclnn_types.c"],
    # linked by the wheel, but of no use to it here: what it looks for in them is in libascendcl
    "acl_op_compiler": [],
    "acl_tdt_channel": [],
    "ge_runner": [],
    "graph": [],
}
FLAGS = ["-std=gnu11", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]

ENTRY_POINT = "[torch.backends]\nstandin_cann = standin_cann.activate:activate\n"
"""PyTorch calls this at the end of ``import torch``, in every process that inherits the environment."""


def build(site: Path, cann: Path) -> None:
    """Compile every library into ``cann/lib64`` and put beside them what makes PyTorch load the Python side."""
    include = site / "torch_npu" / "include"
    if not include.is_dir():
        raise SystemExit(f"{site} holds no torch_npu: pip install --no-deps --target {site} torch-npu==2.13.0")
    libraries, metadata = cann / "lib64", cann / "python" / "standin_cann-0.dist-info"
    for folder in (libraries, metadata, cann / "opp", cann / "runtime", cann / "compiler"):
        folder.mkdir(parents=True, exist_ok=True)
    generated = cann / "opapi.c"
    generated.write_text(opapi_table.c_source())
    for name, sources in LIBRARIES.items():
        files = [str(SOURCES / file) for file in sources] or ["/dev/null"]
        command = ["gcc", *FLAGS, "-x", "c", *files, *([str(generated)] if name == "opapi" else [])]
        command += [f"-I{SOURCES}", f"-I{include}", f"-I{include / 'third_party/acl/inc'}"]
        command += ["-o", str(libraries / f"lib{name}.so"), f"-Wl,-soname,lib{name}.so"]
        if name != "ascendcl":  # a lookup in a library goes on in those that it needs
            command += ["-Wl,--no-as-needed", f"-L{libraries}", "-lascendcl"]
        subprocess.run(command, check=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: standin-cann\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINT)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--site", type=Path, required=True)
    parser.add_argument("--cann", type=Path, required=True)
    arguments = parser.parse_args()
    build(arguments.site, arguments.cann)
