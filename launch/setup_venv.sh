# Makes .venv and installs this project into it. Sourced by quickstart.sh and test.sh, with the repository root as
# the current folder. Ends the script with exit code 2 and one line that says what to do where it cannot go on.

venv_python=.venv/bin/python

say() { printf '==> %s\n' "$*"; }

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# On Ctrl-C bash waits for the running command (a stage saves its checkpoint first) and then comes here.
say_how_to_go_on() {
  local status=$?
  [ "$status" -ne 0 ] || status=130
  say "Stopped. The same command again goes on from here."
  exit "$status"
}

version_of() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }

is_supported() {
  case "$1" in
    3.11.* | 3.12.* | 3.13.*) true ;;
    *) false ;;
  esac
}

# Sets `python` to the first supported interpreter that can make virtual environments.
find_python() {
  if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- python3.13 python3.12 python3.11 python3 python; fi
  local candidate version found="" without_venv=""
  for candidate in "$@"; do
    # Asking for the version finds out what is not there, and pyenv's stand-ins for a Python that is not switched on.
    version=$(version_of "$candidate") || continue
    found="$found${found:+, }$candidate is $version"
    is_supported "$version" || continue
    if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
      python=$candidate
      say "Using $candidate (Python $version, $(command -v "$candidate"))."
      return
    fi
    without_venv=${version%.*}
  done
  local remedy="or name another: PYTHON=/path/to/python3.12 bash $0"
  if [ -n "$without_venv" ]; then
    fail "Python $without_venv lacks its venv or ensurepip module, which make virtual environments." \
      "On Debian and Ubuntu: sudo apt install python$without_venv-venv; $remedy"
  fi
  fail "Python 3.11, 3.12 or 3.13 is needed (${found:-none of $* was found}). Install one, with its venv module" \
    "(https://www.python.org/downloads, or your system's packages), $remedy"
}

make_venv() {
  local version
  if version=$(version_of "$venv_python"); then
    is_supported "$version" ||
      fail ".venv holds Python $version; 3.11, 3.12 or 3.13 is needed. Remove it (rm -r .venv) and run this again."
    say "Reusing .venv (Python $version). Remove it (rm -r .venv) to change Python or the build of torch."
  else
    find_python
    if [ -e .venv ]; then say "The Python in .venv does not start: making .venv again."; else say "Making .venv."; fi
    "$python" -m venv --clear .venv || fail "could not make .venv in $PWD; the lines above say why."
  fi
  # Missing where making .venv was interrupted, or where another tool made it.
  "$venv_python" -m pip --version >/dev/null 2>&1 || "$venv_python" -m ensurepip ||
    fail ".venv has no pip and could not be given one. Remove it (rm -r .venv) and run this again."
}

pip_install() {
  "$venv_python" -m pip install --disable-pip-version-check "$@" ||
    fail "the installation failed; pip's lines above say why. It needs the network (behind a proxy: set https_proxy)" \
      "and some GB of disk. What is installed stays: run this again to go on."
}

# install_project SPEC: installs "." or ".[dev,...]", unless done and nothing that decides on versions changed.
install_project() {
  local stamp=".venv/installed-$1" wanted torch_pin
  wanted=$(printf '%s\n' "$PWD" && cat pyproject.toml constraints.txt)
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    say "Already installed, and nothing changed since."
    return
  fi
  if [ -n "${TORCH_INDEX_URL:-}" ]; then
    torch_pin=$(grep '^torch==' constraints.txt)
    say "Installing $torch_pin from $TORCH_INDEX_URL."
    # --no-deps: what torch needs comes below, in the pinned versions, which that index may not have.
    pip_install --no-deps --index-url "$TORCH_INDEX_URL" "$torch_pin"
  fi
  say "Installing $1 in the versions of constraints.txt (first time: a few hundred MB to download, some GB with CUDA)."
  pip_install -c constraints.txt -e "$1"
  printf '%s\n' "$wanted" >".venv/installed-." # an extra includes the plain project
  printf '%s\n' "$wanted" >"$stamp"
}
