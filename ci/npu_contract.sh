#!/usr/bin/env bash
# Proves the NPU backend on a machine without an NPU: the real torch_npu runs on stand-in CANN libraries
# (tests/emulation/standin_cann), so that every call into it is judged by the code that judges it on hardware.
# What this cannot show: speed, real asynchrony, and limits that only CANN knows.
#
#   bash ci/npu_contract.sh
#
# Needs gcc, Python 3.11 and PyPI. Runs in the active virtual environment if evocore is installed there, otherwise in
# one of its own. Nothing is installed into that environment: torch-npu would break "import torch" in it.
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH_NPU=torch-npu==2.13.0
TRITON_ASCEND=triton-ascend==3.2.0
MUST_LOWER=(rms_norm add_rms_norm rotary swiglu geglu cross_entropy)

root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH PYTHONHOME TORCH_DEVICE_BACKEND_AUTOLOAD ${!EVOCORE_@} ${!ASCEND_@}
export CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

stage() { # stage SECONDS TITLE COMMAND...: run within a time limit; the first that fails ends the job
    local limit=$1 title=$2 start=$SECONDS code=0
    shift 2
    echo "--- $title"
    timeout --kill-after=10 "$limit" "$@" </dev/null || code=$?
    if [ "$code" -ne 0 ]; then
        [ "$code" -ne 124 ] || echo "took longer than $limit s"
        echo "FAILED ($code): $title" >&2
        exit 1
    fi
    echo "    $((SECONDS - start)) s"
}

if ! python -c "import evocore" 2>/dev/null; then
    stage 60 "a virtual environment" python3 -m venv "$work/venv"
    export PATH="$work/venv/bin:$PATH"
    stage 900 "evocore" pip install --quiet -e '.[cuda]' -c ci/constraints.txt
fi
python - <<'PYTHON'
import sys
from importlib.metadata import version
if not version("torch").startswith("2.13."):
    sys.exit(f"torch-npu 2.13.0 works with PyTorch 2.13.*, found {version('torch')}: use ci/constraints.txt")
if sys.version_info[:2] != (3, 11):
    sys.exit(f"triton-ascend 3.2.0 has no wheel for Python {sys.version.split()[0]}: use 3.11")
PYTHON

standin=tests/emulation/standin_cann
stage 300 "torch_npu, beside the environment" pip install --quiet --no-deps --target "$work/site" "$TORCH_NPU"
stage 60 "stand-in CANN libraries" python "$standin/build.py" --site "$work/site" --cann "$work/cann"
run=(python "$root/$standin/run.py" --site "$work/site" --cann "$work/cann")
checks=$root/ci/npu_contract
train=(evocore train --config "$checks/tiny.py")
cd "$work"

# Keep what a command prints in a file, and what it tells beside that for the case that it fails.
kept='file=$1; shift; "$@" >"$file" 2>"$file.log" || { code=$?; cat "$file.log" >&2; exit "$code"; }'

# 1. Nothing is judged by a stand-in that computes wrong values.
stage 120 "1. the stand-in computes what PyTorch does" "${run[@]}" python "$checks/self_checks.py"

# 2. Every kernel that is offered for the NPU, against its contract; streams, memory, random numbers and the like.
conform=(evocore conform --backend npu)
stage 480 "2. kernels keep their contracts" "${run[@]}" "${conform[@]}" --part kernels --sizes small --draws 2
stage 120 "   and so does the device" "${run[@]}" "${conform[@]}" --part device

# 3. A whole run.
stage 60 "3. a run on the CPU" bash -c "$kept" - cpu.txt "${train[@]}" --backend cpu
stage 90 "   the same on the NPU" bash -c "$kept" - npu.txt "${run[@]}" "${train[@]}" --backend npu
stage 10 "   losses" python "$checks/compare.py" npu.txt cpu.txt

# 4. Several processes over the real ProcessGroupHCCL.
stage 120 "4. collectives" "${run[@]}" python "$checks/collectives.py"
# The stand-in's HCCL works where it is called, so that a call waits for all ranks.
stage 120 "   keep their contracts" "${run[@]}" "${conform[@]}" --part collectives --skip at_once
stage 120 "   two processes, data parallel" bash -c "$kept" - two.txt \
    "${run[@]}" "${train[@]}" --backend npu --nproc 2 --set data.micro_num=1
stage 10 "   losses" python "$checks/compare.py" two.txt npu.txt
layout() { # layout NAME KEY=VALUE...: two processes in this layout make the losses of one
    local name=$1 sets=()
    shift
    for one; do sets+=(--set "$one"); done
    stage 120 "   two processes, $name" bash -c "$kept" - "$name.txt" \
        "${run[@]}" "${train[@]}" --backend npu --nproc 2 "${sets[@]}"
    stage 10 "   losses" python "$checks/compare.py" "$name.txt" npu.txt
}
layout zero data.micro_num=1 parallel.zero1.size=2 hybrid_zero_optimizer.overlap_sync_grad=True \
    hybrid_zero_optimizer.overlap_sync_param=True hybrid_zero_optimizer.reduce_bucket_size=20000
layout msp parallel.tensor.size=2 parallel.tensor.mode=msp
layout isp parallel.tensor.size=2 parallel.tensor.mode=isp parallel.weight.size=2 parallel.weight.overlap=True

# 5. torch_npu's search for missing waits between streams; first that it finds one that is there.
export TORCH_NPU_SANITIZER=1
stage 60 "5. the sanitizer finds a race" bash -c '! "$@" >race.txt 2>&1 && grep -q "possible data race" race.txt' - \
    "${run[@]}" python "$checks/race.py"
stage 120 "   and none in two processes' training" bash -c "$kept" - clean.txt \
    "${run[@]}" "${train[@]}" --backend npu --nproc 2 --set data.micro_num=1
unset TORCH_NPU_SANITIZER

# 6. The vendor's compiler takes our Triton kernels. Its package is another "triton", hence an environment of its own.
stage 120 "6. launches of our Triton kernels" \
    env TRITON_INTERPRET=1 python "$checks/record_launches.py" launches.jsonl
stage 60 "   an environment for triton-ascend" python -m venv "$work/ascend"
stage 300 "   triton-ascend" "$work/ascend/bin/pip" install --quiet "$TRITON_ASCEND" numpy pybind11
stage 180 "   lowered for the 910B" "$work/ascend/bin/python" "$checks/lower_triton.py" \
    launches.jsonl "$root/kernels" "${MUST_LOWER[@]}"

echo "the NPU backend keeps its contract ($SECONDS s)"
