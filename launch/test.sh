#!/usr/bin/env bash
# Installs the project with the extras that the tests need into .venv and runs the tests. `--help` says more.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
. launch/setup_venv.sh

usage() {
  cat <<'TEXT'
Usage: bash launch/test.sh [--quick] [PYTEST ARGUMENT ...]

Makes .venv, installs the project with all that the tests need in pinned versions, and runs them: no GPU, no network
once installed. Run it again at any time: what is installed is left alone. As many tests run at once as there are cores.

--quick            only those that take no long time: no whole stages, no browser, no database server. About three
                   minutes on two cores, where all take about 25

PYTEST ARGUMENT    passed on to pytest, e.g. tests/rlhf/test_losses.py, -k gae, -x, -n 0 (one at a time)

Environment:
PYTHON             the Python (3.11 to 3.13) that makes .venv; default: the newest of these on the PATH
TORCH_INDEX_URL    where torch comes from when it is installed, e.g. PyTorch's index of CPU builds,
                   which are much smaller
TEXT
}

case "${1:-}" in
  -h | --help)
    usage
    exit 0
    ;;
  --quick)
    shift
    set -- -m 'not slow' "$@"
    ;;
esac
trap say_how_to_go_on INT
make_venv
install_project '.[dev,deepspeed,quant,collect]'
# A file's tests stay together, since they share what is dear to make; tests/conftest.py says which files come first.
set -- -n auto --dist loadfile --no-loadscope-reorder "$@"
say "Running the tests: python -m pytest $*"
"$venv_python" -m pytest "$@"
