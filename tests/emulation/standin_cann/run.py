"""Runs a command in which the real torch_npu finds the stand-in where it expects CANN.

``python run.py --site SITE --cann CANN COMMAND...``: SITE as for build.py, CANN what build.py made. The processes
that the command starts inherit everything through the environment, so launchers and spawned ranks work as they do on
a server.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent


def environment(site: Path, cann: Path) -> dict[str, str]:
    """The environment of a process on the stand-in: what CANN's set_env.sh sets, and where Python finds things."""
    site, cann = site.resolve(), cann.resolve()
    variables = dict(os.environ)
    for name, folders in {
        "LD_LIBRARY_PATH": [cann / "lib64"],
        "PYTHONPATH": [cann / "python", TESTS, site],
    }.items():
        present = [variables[name]] if variables.get(name) else []
        variables[name] = os.pathsep.join([*map(str, folders), *present])
    variables["ASCEND_HOME_PATH"] = str(cann)
    variables["ASCEND_OPP_PATH"] = str(cann / "opp")
    variables["TASK_QUEUE_ENABLE"] = "0"  # operators must run where they are called: ours run on the host, at once
    return variables


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--site", type=Path, required=True)
    parser.add_argument("--cann", type=Path, required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    os.execvpe(arguments.command[0], arguments.command, environment(arguments.site, arguments.cann))
