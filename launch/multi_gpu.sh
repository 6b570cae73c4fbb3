#!/usr/bin/env bash
# One stage on several processes, with DeepSpeed's launcher. `--help` says more.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'TEXT'
Usage: bash launch/multi_gpu.sh STAGE [KEY=VALUE ...]

Runs `python -m stages.STAGE` (sft, reward, ppo, or pipeline for all of them and the evaluation) with one process (rank)
per GPU; without a GPU, with CPU processes.
Uses the active environment, else .venv; it needs the deepspeed extra:
    pip install -c constraints.txt -e ".[deepspeed]"

KEY=VALUE        passed on to the stage; deepspeed=zero2 is added where no deepspeed=... is given

Ctrl-C or SIGTERM saves a checkpoint after the step at hand and ends with 75; the same command goes on from there.
Exit codes are the stage's own: 0 done, 2 user input, 3 artifact refused, 4 numerics, 75 stopped, 1 a bug; and 5 where a
process was killed or hangs. No process is left behind, however it ends.

Environment:
NUM_PROCESSES      ranks on this machine; default: the visible GPUs, or 2 where there are none
CUDA_VISIBLE_DEVICES   the GPUs to use, by number; '' means none
OMP_NUM_THREADS    CPU threads of each rank; default: cores / ranks
MASTER_PORT        port on which the ranks meet; default: a free one
DEEPSPEED_TIMEOUT  minutes after which a rank that does not answer ends the run; default 30

Several machines, either from the first of them, through ssh without a password and pdsh:
    HOSTFILE=hostfile bash launch/multi_gpu.sh STAGE ...
or, without ssh, the same command on each of them, with its own NODE_RANK (0, 1, ...):
    HOSTFILE=hostfile NODE_RANK=0 MASTER_ADDR=the-first-machine MASTER_PORT=29500 bash launch/multi_gpu.sh STAGE ...
HOSTFILE           machines and their GPUs, see launch/hostfile.example; with it NUM_PROCESSES trims each machine
Under SLURM: launch/slurm.sbatch. Any launcher that sets RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_SIZE, MASTER_ADDR and
MASTER_PORT works as well: python -m stages.STAGE deepspeed=zero2 ...
TEXT
}

fail() {
  printf 'error: %s\n' "$1" >&2
  exit "${2:-2}"
}

find_python() {
  python=python
  [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] || [ ! -x .venv/bin/python ] || python=.venv/bin/python
  "$python" -c 'import importlib.util as util, sys; sys.exit(util.find_spec("deepspeed") is None)' 2>/dev/null ||
    fail "$python has no deepspeed. Activate the environment that has it, or: pip install -c constraints.txt -e '.[deepspeed]'"
}

count_gpus() {
  if [ "${DS_ACCELERATOR:-}" = cpu ]; then
    echo 0
  elif [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
    printf '%s' "$CUDA_VISIBLE_DEVICES" | tr ',' '\n' | grep -c . || true
  else
    "$python" -c 'import torch; print(torch.cuda.device_count())'
  fi
}

# Sets `where`, the launcher's arguments that say which ranks run on which device.
choose_devices() {
  local gpus ranks=${NUM_PROCESSES:-}
  [[ "$ranks" =~ ^([1-9][0-9]*)?$ ]] || fail "NUM_PROCESSES=$ranks must be a whole number of at least 1"
  gpus=$(count_gpus)
  if [ "$gpus" = 0 ]; then
    export DS_ACCELERATOR=cpu
    [ -n "${HOSTFILE:-}" ] || export GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-lo}"
  fi
  # Otherwise the launcher reads it in its own way: it forgets the choice, or takes CPU ranks for GPUs.
  local visible=${CUDA_VISIBLE_DEVICES:-}
  unset CUDA_VISIBLE_DEVICES
  if [ -n "${HOSTFILE:-}" ]; then
    choose_machines "$ranks"
  elif [ "$gpus" = 0 ]; then
    where=(--num_accelerators "${ranks:-2}")
  elif [ "${ranks:-1}" -gt "$gpus" ]; then
    fail "NUM_PROCESSES=$ranks is more than the $gpus visible GPUs"
  elif [ -z "$visible" ]; then
    where=(--num_gpus "${ranks:-$gpus}")
  else
    [[ "$visible" =~ ^[0-9,]+$ ]] || fail "CUDA_VISIBLE_DEVICES=$visible must name GPUs by number, as in 0,1"
    where=(--include "localhost:$(printf '%s' "$visible" | cut -d, -f"1-${ranks:-$gpus}")")
  fi
  [ -n "${HOSTFILE:-}" ] || set_threads "${ranks:-$([ "$gpus" = 0 ] && echo 2 || echo "$gpus")}"
}

choose_machines() {
  [ -f "$HOSTFILE" ] || fail "HOSTFILE=$HOSTFILE is not a file; launch/hostfile.example shows one"
  where=(--hostfile "$HOSTFILE" ${1:+--num_gpus "$1"})
  [ -z "${MASTER_ADDR:-}" ] || where+=(--master_addr "$MASTER_ADDR")
  [ -n "${NODE_RANK:-}" ] || return 0
  [ -n "${MASTER_ADDR:-}" ] && [ -n "${MASTER_PORT:-}" ] ||
    fail "NODE_RANK=$NODE_RANK needs MASTER_ADDR and MASTER_PORT, the same on every machine"
  where+=(--no_ssh --node_rank "$NODE_RANK")
}

# More threads than cores make all ranks many times slower.
set_threads() {
  local threads=$(($(env -u OMP_NUM_THREADS nproc) / $1))
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}"
}

free_port() { "$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }

# The processes of this stage that meet on our port, as this machine (CROSS_RANK). The launcher does not know the port.
ranks() {
  local folder
  for folder in /proc/[0-9]*; do
    if grep -qzx "stages\.$stage" "$folder/cmdline" && grep -qzx "MASTER_PORT=$port" "$folder/environ" &&
      grep -qzx "CROSS_RANK=${NODE_RANK:-0}" "$folder/environ"; then
      echo "${folder#/proc/}"
    fi
  done 2>/dev/null
}

# The launcher would pass a signal on to one rank after the other, and its first process to none.
stop() {
  [ -z "$stopping" ] || return 0
  stopping=$1
  local found
  found=$(ranks)
  if [ -n "$found" ]; then
    printf '==> %s: stopping after this step, with a checkpoint\n' "$1" >&2
    # shellcheck disable=SC2086 # one word per process
    kill -TERM $found 2>/dev/null || true
  else
    kill -TERM -- "-$launcher" 2>/dev/null || true
  fi
}

# In a session of its own, so that Ctrl-C reaches the ranks through `stop` alone.
start() {
  setsid "$python" -m deepspeed.launcher.runner --hostfile /dev/null "${where[@]}" --master_port "$port" \
    --log_level critical --no_local_rank --module "stages.$stage" "$@" &
  launcher=$!
  # Reads the end of this pipe when the script ends in any way, SIGKILL too, and ends what is left.
  # shellcheck disable=SC2016 # for the other shell to expand
  exec {alive}> >(exec setsid bash -c 'read -r; kill -KILL -- "-$1"' watch "$launcher" &>/dev/null)
}

# Sets `status`. `wait` also returns when a signal has been handled.
wait_for_launcher() {
  until
    wait "$launcher" 2>/dev/null || true # bash would report a killed launcher, with its whole command
    ! kill -0 "$launcher" 2>/dev/null
  do :; done
  status=0
  wait "$launcher" 2>/dev/null || status=$?
}

# Ends whatever is left and the script, with the code of the rank that failed first.
finish() {
  local left
  left=$(ranks)
  kill -KILL -- "-$launcher" 2>/dev/null || true
  # shellcheck disable=SC2086 # one word per process
  [ -z "$left" ] || kill -KILL $left 2>/dev/null || true
  case "$status${left:+ with ranks left}" in
    [0-5] | 75 | 130) exit "$status" ;;
  esac
  # SIGTERM ended the launcher, or a rank, before the stage began to listen to it.
  if [ -n "$stopping" ] && [[ "$status" == @(143|241) ]]; then
    printf '==> Stopped before training began; %s from the last checkpoint, if there is one.\n' "$going_on" >&2
    exit 75
  fi
  fail "$(cause). The other processes were ended; $going_on from the last checkpoint" 5
}

# The launcher returns 256 - N for a rank that signal N ended, and 0 when its own second process was killed.
cause() {
  if [ "$status" -gt 191 ]; then
    echo "a rank was ended by SIG$(kill -l $((256 - status)))$([ "$status" != 247 ] || echo ', perhaps for lack of memory')"
  else
    echo "DeepSpeed's launcher was ended from outside (code $status)"
  fi
}

# Which command goes on from a checkpoint: with these options the same one would begin anew.
say_what_goes_on() {
  local word anew=''
  for word in "$@"; do
    [[ "$word" != @(run.resume=never|run.force=true) ]] || anew+="${anew:+ and }$word"
  done
  echo "the same command${anew:+ without $anew} goes on"
}

case "${1:-}" in
  -h | --help)
    usage
    exit 0
    ;;
  sft | reward | ppo | pipeline)
    stage=$1
    shift
    ;;
  *) fail "'${1:-}' is not a stage that runs on several processes: sft, reward, ppo or pipeline; --help says more" ;;
esac
[[ " $*" == *" deepspeed="* ]] || set -- deepspeed=zero2 "$@"
find_python
choose_devices
port=${MASTER_PORT:-$(free_port)}
unset MASTER_PORT RANK # the launcher's to set, and how `ranks` knows them
stopping=''
going_on=$(say_what_goes_on "$@")
start "$@"
trap 'stop SIGTERM' TERM
trap 'stop SIGINT' INT
trap 'stop SIGHUP' HUP
wait_for_launcher
finish
