#!/usr/bin/env bash
# Proves the launch by Slurm on one machine: a throw-away cluster of one node runs `srun -n 2 ... evocore train`, whose
# losses must equal those of `evocore train --nproc 2`; then a rank is killed, and the other must end by itself.
#
#   bash ci/slurm.sh
#
# Needs root on Debian or a relative of it: slurm-wlm and munge are installed if they are missing. Nothing of the system's
# own Slurm is used or changed. Not part of .ci/run, which needs no root. Python with evocore must be on the PATH.
# Exit codes: 0 proven, 1 not, 2 cannot be tried here.
set -euo pipefail
cd "$(dirname "$0")/.."

missing() { echo "ci/slurm.sh: $1" >&2; exit 2; }

installed() { command -v munged slurmctld slurmd srun sinfo >/dev/null; }
[ "$(id -u)" = 0 ] || missing "needs root: slurmd and munged of a throw-away cluster run as root"
export PATH="$PATH:/usr/sbin:/sbin"
installed || { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y slurm-wlm munge; } >/dev/null 2>&1 || true
installed || missing "slurm-wlm and munge are neither installed nor can apt-get install them"
python -c "import evocore" 2>/dev/null || missing "python cannot import evocore: pip install -e ."

repository=$PWD
work=$(mktemp -d)
daemons=()
running=
stop() {
    local daemon
    [ -z "$running" ] || kill "$running" 2>/dev/null || true
    if scancel --full --user=root 2>/dev/null; then # what is left of a run that failed
        for _ in $(seq 50); do [ -z "$(squeue --noheader 2>/dev/null)" ] && break; sleep 0.2; done
    fi
    for daemon in "${daemons[@]}"; do kill "$daemon" 2>/dev/null || true; done
    for daemon in "${daemons[@]}"; do
        timeout 10 tail --pid="$daemon" -f /dev/null || kill -9 "$daemon" 2>/dev/null || true
    done
    rm -rf "$work"
}
trap stop EXIT
trap 'exit 1' INT TERM HUP

node=$(hostname -s)
chmod 755 "$work"
mkdir -m 700 "$work"/{key,state,spool}
(umask 077 && head -c 128 /dev/urandom >"$work/key/munge.key")
cat >"$work/slurm.conf" <<CONF
ClusterName=evocore
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=$((20000 + $$ % 5000))
SlurmdPort=$((25000 + $$ % 5000))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
NodeName=$node NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=$node Default=YES MaxTime=10 State=UP
CONF
version=$(srun --version | cut -d' ' -f2)
if [ "$(printf '%s\n' 23.11 "$version" | sort -V | head -n 1)" = 23.11 ]; then # older ones do not know the word
    echo "CgroupPlugin=disabled" >"$work/cgroup.conf"
fi
export SLURM_CONF=$work/slurm.conf
unset ${!SLURM_JOB@} ${!SLURM_STEP@} RANK WORLD_SIZE

start() { # start NAME COMMAND...: a daemon in the foreground of its own process, so that its id is known
    "${@:2}" >"$work/$1.log" 2>&1 </dev/null &
    daemons+=($!)
}
start munged munged --foreground --force --key-file="$work/key/munge.key" --socket="$work/munge.socket" \
    --pid-file="$work/munged.pid" --log-file="$work/munged.log" --seed-file="$work/munged.seed"
for _ in $(seq 50); do [ -S "$work/munge.socket" ] && break; sleep 0.2; done
start slurmctld slurmctld -D
start slurmd slurmd -D
for _ in $(seq 100); do
    [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ] && break
    sleep 0.2
done
if [ "$(sinfo --noheader --format=%T)" != idle ]; then
    tail -n 20 "$work"/*.log >&2
    echo "ci/slurm.sh: the node of the throw-away cluster did not become idle" >&2
    exit 1
fi

cd "$work"
export OMP_NUM_THREADS=1
config=$repository/ci/launch/tiny.py

run() { # run FILE COMMAND...: within 150 s and in the background, since only waiting is interrupted by a signal
    timeout 150 "${@:2}" >"$1" 2>&1 &
    running=$!
    local code=0
    wait "$running" || code=$?
    running=
    return "$code"
}

fail() { # fail WHY FILE...: tell it, with what the processes told
    [ $# -eq 1 ] || tail -n 40 "${@:2}" >&2
    echo "ci/slurm.sh: $1" >&2
    exit 1
}

run srun.out srun -n 2 python "$repository/train.py" --config "$config" --launcher slurm --set JOB_NAME=slurm ||
    fail "srun ended with $?" srun.out
run nproc.out python -m evocore train --config "$config" --nproc 2 --set JOB_NAME=nproc ||
    fail "--nproc 2 ended with $?" nproc.out
grep -q "2 process(es)" srun.out || fail "srun started no run of two processes" srun.out
steps=$(python - <<'PYTHON'
import json, math, sys
from pathlib import Path

def losses(job):
    (metrics,) = Path("runs", job).glob("*/metrics.jsonl")
    return [(row["step"], row["loss"]) for row in map(json.loads, metrics.open()) if "loss" in row]

slurm, nproc = losses("slurm"), losses("nproc")
alike = len(slurm) == len(nproc) == 8 and all(
    a == b and math.isclose(x, y, rel_tol=1e-6) for (a, x), (b, y) in zip(slurm, nproc)
)
if not alike:
    sys.exit(f"losses differ: srun {slurm}, --nproc {nproc}")
print(len(slurm))
PYTHON
) || fail "losses of srun and of --nproc 2 are not the same"

srun -n 2 python "$repository/train.py" --config "$config" --launcher slurm --set JOB_NAME=killed \
    --set data.total_steps=1000000 --set ckpt.enable_save_ckpt=False >killed.out 2>&1 &
running=$!
for _ in $(seq 300); do grep -qs '"loss"' runs/killed/*/metrics.jsonl && break; sleep 0.2; done
victim=$(scontrol listpids | awk '$5 == 1 {print $1}')  # the global rank
[ -n "$victim" ] || fail "no second task to kill" killed.out
kill -9 "$victim"
killed=$SECONDS
code=0
wait "$running" || code=$?
running=
[ "$code" -ne 0 ] || fail "srun ended with 0 though a task was killed" killed.out
[ $((SECONDS - killed)) -lt 30 ] || fail "the other rank went on for $((SECONDS - killed)) s" killed.out
grep -q "evocore (rank 0): rank 1 died" killed.out || fail "rank 0 did not say why it ended" killed.out

echo "ci/slurm.sh: proven on Slurm $version: $steps steps of two ranks equal --nproc 2;" \
    "rank 0 ended $((SECONDS - killed)) s after rank 1 was killed"
