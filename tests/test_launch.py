"""The set-up scripts, run in a copy of the tree where the only Python is a stand-in that writes down what it is asked.

Nothing is downloaded: that the pinned versions install and work is shown by running the tests with launch/test.sh.
"""

import os
import shutil
import signal
import subprocess
import time
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
BASH = shutil.which("bash")
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / ".ci" / "run"]
TOOLS = ("sh", "bash", "cat", "cp", "dirname", "grep", "mkdir", "rm", "sleep")

STAND_IN = """#!/bin/sh
echo "$*" >> "{log}"
case "$*" in
  *version_info*) echo {version} ;;
  *"ensurepip, venv"*) exit {no_venv} ;;
  "-m venv"*) rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
  "-m stages.pipeline"*|"-m pytest"*) {run} ;;
  "-m pip install"*) test ! -e "{log}.offline" ;;
esac
"""


@pytest.fixture
def tree(tmp_path):
    """A copy of what the scripts read, in a folder whose name has a space, and a PATH without any Python."""
    root = tmp_path / "a clone"
    (root / "launch").mkdir(parents=True)
    for file in (*ROOT.glob("launch/*.sh"), ROOT / "pyproject.toml", ROOT / "constraints.txt"):
        shutil.copy(file, root / file.relative_to(ROOT))
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    return root


def put_python(tree, name="python3", version="3.12.1", no_venv=0, run=":"):
    text = STAND_IN.format(log=tree.parent / "log", version=version, no_venv=no_venv, run=run)
    python = tree.parent / "bin" / name
    python.write_text(text)
    python.chmod(0o755)


def launch(tree, script="quickstart.sh", *args, **environment):
    """Starts a script from another folder than the tree's."""
    env = {"PATH": str(tree.parent / "bin"), **environment}
    command = [BASH, str(tree / "launch" / script), *args]
    return subprocess.run(command, cwd=tree.parent, env=env, capture_output=True, text=True, timeout=60)


def asked(tree, word):
    """The lines of what the stand-in was asked that hold the word; forgets them all."""
    log = tree.parent / "log"
    lines = [line for line in log.read_text().splitlines() if word in line]
    log.write_text("")
    return lines


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_parses_the_script(script):
    assert subprocess.run([BASH, "-n", script]).returncode == 0


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    command = ["shellcheck", "--shell=bash", "--external-sources", script]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh"])
def test_help_prints_the_usage_and_touches_nothing(tree, script):
    done = launch(tree, script, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: bash launch/{script}")
    assert "TORCH_INDEX_URL" in done.stdout
    assert not (tree / ".venv").exists()


@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh"])
def test_a_too_old_python_is_refused_by_its_version_with_the_remedy(tree, script):
    put_python(tree, version="3.8.10")
    done = launch(tree, script)
    assert done.returncode == 2
    assert "Python 3.11, 3.12 or 3.13 is needed (python3 is 3.8.10)" in done.stderr
    assert "PYTHON=/path/to/python3.12" in done.stderr
    assert not (tree / ".venv").exists()


def test_a_too_new_python_is_refused(tree):
    put_python(tree, version="3.14.0")
    assert "python3 is 3.14.0" in launch(tree).stderr


def test_without_any_python_the_names_that_were_tried_are_said(tree):
    done = launch(tree)
    assert done.returncode == 2
    assert "none of python3.13 python3.12 python3.11 python3 python was found" in done.stderr


def test_a_python_without_its_venv_module_is_refused_with_the_package_to_install(tree):
    put_python(tree, version="3.12.1", no_venv=1)
    done = launch(tree)
    assert done.returncode == 2
    assert "sudo apt install python3.12-venv" in done.stderr


def test_the_newest_python_that_works_is_used(tree):
    put_python(tree, "python3.13", version="3.13.0", no_venv=1)
    pyenv_shim = tree.parent / "bin" / "python3.12"
    pyenv_shim.write_text("#!/bin/sh\necho 'pyenv: python3.12: command not found' >&2\nexit 127\n")
    pyenv_shim.chmod(0o755)
    put_python(tree, "python3.11", version="3.11.9")
    put_python(tree, "python3", version="3.8.10")
    assert "Using python3.11 (Python 3.11.9, " in launch(tree).stdout


def test_the_python_named_by_the_user_is_the_only_one_tried(tree):
    put_python(tree)
    put_python(tree, "mine", version="3.10.2")
    done = launch(tree, PYTHON=str(tree.parent / "bin" / "mine"))
    assert done.returncode == 2
    assert "bin/mine is 3.10.2" in done.stderr


def test_quickstart_installs_pinned_versions_and_runs_the_pipeline_with_its_arguments(tree):
    put_python(tree, run="printf '<%s>' \"$@\"")
    done = launch(tree, "quickstart.sh", "seed=1", "run.dir=outputs/two words")
    assert done.returncode == 0, done.stderr
    assert "<-m><stages.pipeline><seed=1><run.dir=outputs/two words>" in done.stdout
    assert asked(tree, "-m ") == [
        "-m venv --clear .venv",
        "-m pip --version",
        "-m pip install --disable-pip-version-check -c constraints.txt -e .",
        "-m stages.pipeline seed=1 run.dir=outputs/two words",
    ]
    assert "report.html" in done.stdout.split("What to do next:")[1]


def test_test_script_installs_the_dev_extra_and_passes_its_arguments_to_pytest(tree):
    put_python(tree)
    done = launch(tree, "test.sh", "-k", "gae or whiten")
    assert done.returncode == 0, done.stderr
    assert asked(tree, "-m p")[1:] == [
        "-m pip install --disable-pip-version-check -c constraints.txt -e .[dev]",
        "-m pytest -k gae or whiten",
    ]


@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh"])
def test_a_second_run_reuses_the_environment_and_installs_nothing(tree, script):
    put_python(tree)
    launch(tree, script)
    asked(tree, "")
    done = launch(tree, script)
    assert "Reusing .venv (Python 3.12.1)" in done.stdout
    assert asked(tree, "install") == asked(tree, "venv") == []


def test_quickstart_has_nothing_to_install_after_the_tests_but_the_tests_have_after_quickstart(tree):
    put_python(tree)
    launch(tree, "test.sh")
    asked(tree, "")
    launch(tree, "quickstart.sh")
    assert asked(tree, "install") == []
    shutil.rmtree(tree / ".venv")
    launch(tree, "quickstart.sh")
    asked(tree, "")
    launch(tree, "test.sh")
    assert len(asked(tree, "install")) == 1


@pytest.mark.parametrize("changed", ["constraints.txt", "pyproject.toml"])
def test_changed_versions_are_installed_again(tree, changed):
    put_python(tree)
    launch(tree)
    asked(tree, "")
    with (tree / changed).open("a") as file:
        file.write("# another version\n")
    launch(tree)
    assert len(asked(tree, "pip install")) == 1


def test_a_moved_clone_is_installed_again(tree):
    put_python(tree)
    launch(tree)
    moved = tree.rename(tree.parent / "moved")
    asked(moved, "")
    assert launch(moved).returncode == 0
    assert len(asked(moved, "pip install")) == 1


def test_torch_comes_from_its_own_index_when_one_is_named(tree):
    put_python(tree)
    launch(tree, TORCH_INDEX_URL="https://example.org/cpu")
    torch, rest = asked(tree, "pip install")
    assert torch.endswith("--no-deps --index-url https://example.org/cpu torch==2.13.0")
    assert rest.endswith("-c constraints.txt -e .")


def test_a_failed_installation_says_what_to_do_and_is_tried_again(tree):
    put_python(tree)
    offline = tree.parent / "log.offline"
    offline.touch()
    done = launch(tree)
    assert done.returncode == 2
    assert "error: the installation failed" in done.stderr and "run this again" in done.stderr
    assert asked(tree, "pipeline") == []
    offline.unlink()
    assert launch(tree).returncode == 0
    assert len(asked(tree, "pip install")) == 1


def test_an_environment_of_another_python_is_refused_and_kept(tree):
    put_python(tree)
    launch(tree)
    put_python(tree, version="3.10.2")
    shutil.copy(tree.parent / "bin" / "python3", tree / ".venv" / "bin" / "python")
    done = launch(tree)
    assert done.returncode == 2
    assert ".venv holds Python 3.10.2" in done.stderr and "rm -r .venv" in done.stderr
    assert (tree / ".venv" / "bin" / "python").exists()


def test_an_environment_whose_python_is_gone_is_made_again(tree):
    put_python(tree)
    launch(tree)
    (tree / ".venv" / "bin" / "python").unlink()
    (tree / ".venv" / "bin" / "python").symlink_to("/nowhere/python3.12")
    asked(tree, "")
    done = launch(tree)
    assert done.returncode == 0, done.stderr
    assert "making .venv again" in done.stdout
    assert len(asked(tree, "pip install")) == 1


def test_the_exit_code_of_the_pipeline_is_the_scripts(tree):
    put_python(tree, run="exit 3")
    done = launch(tree)
    assert done.returncode == 3
    assert "What to do next" not in done.stdout


def test_ctrl_c_lets_the_stage_save_and_says_how_to_go_on(tree):
    put_python(tree, run="trap 'echo saved; exit 75' INT; echo running; while :; do sleep 0.1; done")
    command = [BASH, str(tree / "launch" / "quickstart.sh")]
    env = {"PATH": str(tree.parent / "bin")}
    process = subprocess.Popen(
        command,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore Ctrl-C
    )
    while process.stdout.readline() != "running\n":
        assert process.poll() is None
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    rest, _ = process.communicate(timeout=10)
    assert process.returncode == 75
    assert rest.splitlines() == ["saved", "==> Stopped. The same command again goes on from here."]


def constraint_pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def declared_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"]["dev"]]


def test_constraints_are_exact_public_versions():
    for pin in constraint_pins():
        (version,) = pin.specifier
        assert version.operator == "==" and "*" not in version.version and "+" not in version.version, pin
        assert pin.url is None, pin


def test_every_declared_dependency_is_pinned_within_what_pyproject_allows():
    pins = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in constraint_pins()}
    for need in declared_dependencies():
        assert canonicalize_name(need.name) in pins, need
        assert pins[canonicalize_name(need.name)] in need.specifier, need
