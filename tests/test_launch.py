"""The set-up scripts, run in a copy of the tree where the only Python is a stand-in that writes down what it is asked.

Nothing is downloaded: that the pinned versions install and work is shown by running the tests with launch/test.sh.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
BASH = shutil.which("bash")
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / "launch" / "slurm.sbatch", ROOT / ".ci" / "run"]
PATIENCE = 180  # seconds until a test gives up; none of them needs ten on an idle machine
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


def hear_signals():
    """Tests that run in the background, or under nohup, ignore these, and so would what they start."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


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
    return subprocess.run(command, cwd=tree.parent, env=env, capture_output=True, text=True, timeout=PATIENCE)


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
        "-m pip install --disable-pip-version-check -c constraints.txt -e .[dev,deepspeed,quant,collect]",
        "-m pytest -n auto --dist loadfile --no-loadscope-reorder -k gae or whiten",
    ]


def test_the_quick_tests_are_those_that_are_not_marked_as_slow(tree):
    put_python(tree)
    launch(tree, "test.sh", "--quick", "-x")
    assert asked(tree, "-m pytest") == ["-m pytest -n auto --dist loadfile --no-loadscope-reorder -m not slow -x"]


def test_quick_leaves_out_whole_stages_though_their_tests_do_not_say_that_they_are_slow():
    command = [sys.executable, "-m", "pytest", "--collect-only", "-m", "not slow", "tests/stages/test_kill.py"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert " deselected" in ended.stdout and ended.returncode == pytest.ExitCode.NO_TESTS_COLLECTED


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
        preexec_fn=hear_signals,
    )
    while process.stdout.readline() != "running\n":
        assert process.poll() is None
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    rest, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75
    assert rest.splitlines() == ["saved", "==> Stopped. The same command again goes on from here."]


# ---- several processes. A stand-in takes the place of Python and so of DeepSpeed's launcher.

LAUNCHER = """#!/usr/bin/env bash
case "$*" in
  *find_spec*) exit {lacks_deepspeed} ;;
  *device_count*) echo {gpus} ;;
  *socket*) echo 23456 ;;
  *) printf '<%s>' "$@"; echo " accelerator=${{DS_ACCELERATOR:-}} visible=${{CUDA_VISIBLE_DEVICES-unset}}"; {run} ;;
esac
"""
RANK = """MASTER_PORT=23456 CROSS_RANK=0 bash -c '{does}' rank stages.ppo"""


@pytest.fixture
def job(tree):
    """job("ppo", run="exit 3") is the running multi_gpu.sh, around a launcher that does what `run` says."""
    shutil.copy(ROOT / "launch" / "hostfile.example", tree / "launch")
    started = []

    def start(*words, run=":", gpus=0, lacks_deepspeed=0, **environment):
        python = tree.parent / "bin" / "python"
        python.write_text(LAUNCHER.format(run=run, gpus=gpus, lacks_deepspeed=lacks_deepspeed))
        python.chmod(0o755)
        env = {"PATH": f"{tree.parent / 'bin'}{os.pathsep}{os.environ['PATH']}", "VIRTUAL_ENV": "active", **environment}
        command = [BASH, str(tree / "launch" / "multi_gpu.sh"), *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, cwd=tree.parent, env=env, preexec_fn=hear_signals, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ended(process):
    """(exit code, stdout, stderr) of a job that ends by itself."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def is_alive(number):
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{number}/stat").read_text().split()[2] != "Z"


def test_without_a_gpu_the_launcher_starts_two_cpu_ranks_with_zero2(job):
    code, out, err = ended(job("ppo", "run.dir=two words"))
    assert (code, err) == (0, "")
    assert out == (
        "<-m><deepspeed.launcher.runner><--hostfile></dev/null><--num_accelerators><2><--master_port><23456>"
        "<--log_level><critical><--no_local_rank><--module><stages.ppo><deepspeed=zero2><run.dir=two words>"
        " accelerator=cpu visible=unset\n"
    )


@pytest.mark.parametrize(
    ("environment", "devices"),
    [
        ({}, "<--num_gpus><4>"),
        ({"NUM_PROCESSES": "3"}, "<--num_gpus><3>"),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, "<--include><localhost:2,3>"),
        ({"CUDA_VISIBLE_DEVICES": "2,3", "NUM_PROCESSES": "1"}, "<--include><localhost:2>"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "<--num_accelerators><2>"),
        ({"DS_ACCELERATOR": "cpu", "NUM_PROCESSES": "3"}, "<--num_accelerators><3>"),
    ],
)
def test_ranks_use_the_visible_gpus_or_as_many_as_were_asked_for(job, environment, devices):
    code, out, _ = ended(job("sft", "deepspeed=zero3", gpus=4, **environment))
    assert code == 0 and f"{devices}<--master_port>" in out
    assert "<stages.sft><deepspeed=zero3>" in out


@pytest.mark.parametrize(
    ("words", "environment", "line"),
    [
        (["evaluate"], {}, "'evaluate' is not a stage that runs on several processes: sft, reward, ppo or pipeline"),
        ([], {}, "'' is not a stage that runs on several processes: sft, reward, ppo or pipeline"),
        (["ppo"], {"NUM_PROCESSES": "0"}, "NUM_PROCESSES=0 must be a whole number of at least 1"),
        (["ppo"], {"NUM_PROCESSES": "5"}, "NUM_PROCESSES=5 is more than the 4 visible GPUs"),
        (
            ["ppo"],
            {"CUDA_VISIBLE_DEVICES": "GPU-1f"},
            "CUDA_VISIBLE_DEVICES=GPU-1f must name GPUs by number, as in 0,1",
        ),
        (["ppo"], {"HOSTFILE": "absent"}, "HOSTFILE=absent is not a file; launch/hostfile.example shows one"),
    ],
)
def test_a_launch_that_cannot_work_is_refused_in_one_line(job, words, environment, line):
    code, out, err = ended(job(*words, gpus=4, **environment))
    assert (code, out) == (2, "") and err.startswith(f"error: {line}") and err.count("\n") == 1


def test_an_environment_without_deepspeed_is_told_what_to_install(job):
    code, _, err = ended(job("ppo", lacks_deepspeed=1))
    assert code == 2 and "pip install -c constraints.txt -e '.[deepspeed]'" in err


def test_the_example_hostfile_is_one_that_deepspeed_reads():
    runner = pytest.importorskip("deepspeed.launcher.runner", reason="deepspeed is not installed")
    machines = runner.fetch_hostfile(str(ROOT / "launch" / "hostfile.example"))
    assert dict(machines) == {"gpu-01": 8, "gpu-02": 8}


@pytest.mark.parametrize("node", [{}, {"NODE_RANK": "1", "MASTER_ADDR": "gpu-01", "MASTER_PORT": "29500"}])
def test_several_machines_are_started_through_ssh_or_each_by_itself(job, node):
    code, out, _ = ended(job("ppo", HOSTFILE="launch/hostfile.example", **node))
    alone = "<--master_addr><gpu-01><--no_ssh><--node_rank><1><--master_port><29500>"
    assert code == 0 and f"<--hostfile><launch/hostfile.example>{alone if node else '<--master_port>'}" in out


def test_a_machine_started_by_itself_has_to_be_told_where_to_meet(job):
    code, _, err = ended(job("ppo", HOSTFILE="launch/hostfile.example", NODE_RANK="1"))
    assert code == 2 and err == "error: NODE_RANK=1 needs MASTER_ADDR and MASTER_PORT, the same on every machine\n"


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 75, 130])
def test_the_exit_code_of_the_rank_that_failed_first_is_the_scripts(job, code):
    assert ended(job("ppo", run=f"exit {code}"))[::2] == (code, "")


@pytest.mark.parametrize(
    ("run", "cause"),
    [
        ("exit 247", "a rank was ended by SIGKILL, perhaps for lack of memory"),
        ("exit 250", "a rank was ended by SIGABRT"),
        ("kill -KILL $$", "DeepSpeed's launcher was ended from outside (code 137)"),
        (f"{RANK.format(does='sleep 60; :')} & sleep 0.5", "DeepSpeed's launcher was ended from outside (code 0)"),
    ],
)
def test_a_killed_rank_or_launcher_ends_with_5_and_the_cause(job, run, cause):
    rest = "The other processes were ended; the same command goes on from the last checkpoint"
    code, _, err = ended(job("ppo", run=run))
    assert (code, err) == (5, f"error: {cause}. {rest}\n")


def test_who_began_anew_is_told_to_leave_that_out_when_a_rank_is_killed(job):
    code, _, err = ended(job("ppo", "run.resume=never", "run.force=true", run="exit 247"))
    assert code == 5
    assert err.endswith(
        "the same command without run.resume=never and run.force=true goes on from the last checkpoint\n"
    )


def test_no_rank_outlives_a_launcher_that_was_killed(job):
    process = job("ppo", run=f"{RANK.format(does='sleep 60; :')} >/dev/null & echo $!; sleep 0.5; kill -KILL $$")
    code, out, _ = ended(process)
    assert code == 5 and not is_alive(int(out.split()[-1]))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_goes_once_to_the_ranks_and_their_75_comes_back(job, number):
    rank = RANK.format(
        does='trap "echo asked; asked=yes" TERM; echo ready; until [ "$asked" ]; do sleep 0.1; done; sleep 1; exit 75'
    )
    process = job("ppo", run=f"trap 'echo launcher' TERM INT; {rank} & wait $!")
    while process.stdout.readline() != "ready\n":
        assert process.poll() is None
    process.send_signal(number)
    time.sleep(0.1)
    process.send_signal(number)
    code, out, err = ended(process)
    assert (code, out) == (75, "asked\n")
    assert err == f"==> {number.name}: stopping after this step, with a checkpoint\n"


def test_a_signal_before_there_are_ranks_ends_the_launcher_with_75(job):
    process = job("ppo", run="echo ready; exec sleep 60")
    while not process.stdout.readline().endswith("ready\n"):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    code, _, err = ended(process)
    assert code == 75 and err.startswith("==> Stopped before training began; the same command goes on from the last")


def test_nothing_outlives_a_script_that_was_killed(job):
    process = job("ppo", run="echo; echo $$; exec sleep 60")
    process.stdout.readline()
    process.stdout.readline()
    launcher = int(process.stdout.readline())
    assert is_alive(launcher)
    process.kill()
    give_up = time.monotonic() + PATIENCE
    while is_alive(launcher):
        assert time.monotonic() < give_up
        time.sleep(0.1)


# ---- SLURM, whose two commands are stand-ins

SRUN = """#!/usr/bin/env bash
# Runs the command as two tasks. A signal goes to both.
[ "$1" = --kill-on-bad-exit=1 ] || exit 9
shift
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & tasks="$tasks $!"; done
trap 'kill -TERM $tasks' TERM
code=0
for task in $tasks; do wait $task; wait $task || code=$?; done
exit $code
"""
SCONTROL = """#!/usr/bin/env bash
case "$1" in show) printf 'node-7\\nnode-8\\n' ;; *) echo "scontrol $*" ;; esac
"""
TASK = """#!/usr/bin/env bash
trap 'exit 75' TERM
echo "$* rank=$RANK/$WORLD_SIZE local=$LOCAL_RANK/$LOCAL_SIZE $MASTER_ADDR:$MASTER_PORT"
{does}
"""


@pytest.fixture
def slurm_job(tree):
    """slurm_job("exit 3") is the running slurm.sbatch, whose tasks do that."""
    shutil.copy(ROOT / "launch" / "slurm.sbatch", tree / "launch")
    started = []

    def start(does):
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", TASK.format(does=does))):
            (tree.parent / "bin" / name).write_text(text)
            (tree.parent / "bin" / name).chmod(0o755)
        own = {"SLURM_JOB_ID": "41234", "SLURM_JOB_NODELIST": "node-[7-8]", "SLURM_NTASKS": "2"}
        env = {"PATH": f"{tree.parent / 'bin'}{os.pathsep}{os.environ['PATH']}", "VIRTUAL_ENV": "active", **own}
        command = [BASH, str(tree / "launch" / "slurm.sbatch"), "ppo", "run.dir=two words"]
        started.append(subprocess.Popen(command, cwd=tree, env=env, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_slurm_tasks_become_ranks_that_meet_on_the_first_machine(slurm_job):
    out, _ = slurm_job("exit 0").communicate(timeout=PATIENCE)
    command = "-u -m stages.ppo deepspeed=zero2 run.dir=two words"
    assert sorted(out.splitlines()) == [f"{command} rank={n}/2 local={n}/2 node-7:21234" for n in (0, 1)]


def test_slurm_ends_the_job_with_the_code_of_a_rank_that_fails(slurm_job):
    process = slurm_job("exit 3")
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 3 and "requeue" not in out


def test_slurm_queues_a_job_again_that_sigterm_stopped(slurm_job):
    process = slurm_job("while :; do sleep 0.1; done")
    for _ in range(2):
        assert "rank=" in process.stdout.readline()
    process.terminate()
    time.sleep(0.1)
    process.terminate()
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75
    assert out.splitlines() == [
        "==> SIGTERM: stopping after this step, with a checkpoint",
        "==> Stopped. The job queues again and goes on from there.",
        "scontrol requeue 41234",
    ]


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
