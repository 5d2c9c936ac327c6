#!/usr/bin/env bash
# Collects what a machine without network may lack, for ci/gpu/run.sh: Python 3.12 on x86-64 Linux.
#
#     ci/gpu/wheels.sh [--dest .whl]
#
# PyTorch, Triton, NumPy, typer, rich, sentencepiece, safetensors and the like are taken for granted: a machine with an
# accelerator has them, built for its driver. Versions are those of ci/constraints.txt, except of peers that only the
# benchmarks know.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
dest=$root/.whl
while (($#)); do
    case $1 in
        --dest) dest=${2:?--dest needs a folder}; shift ;;
        *) echo "usage: ci/gpu/wheels.sh [--dest DIR]" >&2; exit 2 ;;
    esac
    shift
done

mapfile -t pinned < <(grep -iE '^(pydantic|pydantic_core|annotated-types|typing-inspection|typing_extensions|pluggy)==' \
    "$root/ci/constraints.txt")
peers=(liger-kernel==0.8.5)

mkdir -p "$dest"
rm -f "$dest"/*.whl  # two versions of one package would stop the installation
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
    --platform manylinux2014_x86_64 --dest "$dest" "${pinned[@]}" "${peers[@]}"

# Complete? A target of its own takes the set as the other machine will.
check=$(mktemp -d)
trap 'rm -rf "$check"' EXIT
"$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --target "$check" \
    --python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
    --platform manylinux2014_x86_64 --only-binary=:all: "$dest"/*.whl
"$python" - "$check" <<'PYTHON'
"""Every requirement of what was collected is collected too, in a version that fits, or taken for granted."""
import sys
from importlib.metadata import distributions

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

GRANTED = {"torch", "triton"}
found = {canonicalize_name(item.metadata["Name"]): item for item in distributions(path=[sys.argv[1]])}
problems = []
for name, item in found.items():
    for requirement in map(Requirement, item.requires or []):
        wanted = canonicalize_name(requirement.name)
        if wanted in GRANTED or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        if wanted not in found or not requirement.specifier.contains(found[wanted].version, prereleases=True):
            problems.append(f"{name} needs {requirement}")
sys.exit("\n".join(problems) or None)
PYTHON
printf '%s: %s wheels, %s\n' "$dest" "$(ls "$dest" | wc -l)" "$(du -sh "$dest" | cut -f1)"
