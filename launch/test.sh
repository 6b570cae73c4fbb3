#!/usr/bin/env bash
# Installs the project with the extras that the tests need into .venv and runs the tests. `--help` says more.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
. launch/setup_venv.sh

usage() {
  cat <<'TEXT'
Usage: bash launch/test.sh [PYTEST ARGUMENT ...]

Makes .venv, installs the project with all that the tests need in pinned versions, and runs them: no GPU, no network
once installed. Run it again at any time: what is installed is left alone.

PYTEST ARGUMENT    passed on to pytest, e.g. tests/test_losses.py, -k gae, -x

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
esac
trap say_how_to_go_on INT
make_venv
install_project '.[dev,deepspeed,quant,collect]'
say "Running the tests: python -m pytest${*:+ $*}"
"$venv_python" -m pytest "$@"
