#!/usr/bin/env bash
# From a fresh clone to an aligned toy policy and its report. `--help` says more.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
. launch/setup_venv.sh

usage() {
  cat <<'TEXT'
Usage: bash launch/quickstart.sh [KEY=VALUE ...]

Makes .venv, installs the project with pinned versions, and runs all three stages and their evaluation on the toy data
that ships with the project: a few minutes on a laptop without a GPU. Run it again at any time: what is installed
and up to date is left alone.

KEY=VALUE      passed on to `python -m stages.pipeline`, e.g. seed=1 run.dir=outputs/seed1

Environment:
PYTHON             the Python (3.11 to 3.13) that makes .venv; default: the newest of these on the PATH
TORCH_INDEX_URL    where torch comes from when it is installed, e.g. PyTorch's index of CPU builds,
                   which are much smaller
TEXT
}

next_steps() {
  cat <<'TEXT'

What to do next:
  - Open the report named above (report.html) in a browser.
  - docs/report.md says how to read it, and README.md how to run the stages on your own model and data.
  - Try one thing differently:  bash launch/quickstart.sh run.dir=outputs/more_kl ppo.kl_coef=0.2
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
install_project .
say "Running the three stages and the evaluation: python -m stages.pipeline${*:+ $*}"
"$venv_python" -m stages.pipeline "$@"
next_steps
