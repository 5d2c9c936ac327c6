#!/usr/bin/env bash
# One call on a machine with an accelerator: conformance, kernel benchmarks and training, in less than nine minutes.
#
#     ci/gpu/run.sh [--out DIR] [--dry-run] [--only STEP,STEP] [--wheels DIR] [--commit NAME]
#
# It needs no network and installs nothing into the machine's Python: the wheels of a folder (ci/gpu/wheels.sh fills
# .whl) and this source tree go into a temporary folder that comes first on the path.
# Exit codes: 0 all steps done, 1 a step failed (the report tells which), 2 there is no accelerator or a wrong option.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}

wheels=$root/.whl
arguments=("$@")
while (($#)); do
    case $1 in
        --wheels) wheels=${2:?--wheels needs a folder}; shift ;;
        --wheels=*) wheels=${1#--wheels=} ;;
    esac
    shift
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
site=$work/site
mkdir "$site"
if compgen -G "$wheels/*.whl" >/dev/null; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
        --root-user-action=ignore --target "$site" "$wheels"/*.whl
fi

# The package as a link, and beside it what tells importlib its name, version and entry points. evocore finds
# backends/, kernels/ and models/ beside itself.
ln -s "$root/evocore" "$site/evocore"
(cd "$root" && "$python" setup.py --quiet egg_info --egg-base "$site" 2>"$work/egg_info.log") || {
    cat "$work/egg_info.log" >&2
    echo "ci/gpu/run.sh: could not describe the package; it needs setuptools" >&2
    exit 1
}
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
cd "$root"
"$python" "$root/ci/gpu/job.py" ${arguments[@]+"${arguments[@]}"}
