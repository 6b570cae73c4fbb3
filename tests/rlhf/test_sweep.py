"""-m: which jobs a sweep has, where each of them writes, and what it takes from outside."""

import pytest

from rlhf.errors import NumericsError, UserError
from rlhf.run.sweep import plan_jobs, run_sweep


def planned(*overrides, makes_inputs=False):
    return [(job.name, job.config) for job in plan_jobs(overrides, None, makes_inputs)]


def test_each_combination_is_a_job_in_a_folder_of_its_own_below_run_dir():
    jobs = planned("seed=1,2", "ppo.kl_coef=0.1,0.2", "ppo.num_steps=9", "run.dir=out")
    names = [f"seed={seed},ppo.kl_coef={coef}" for seed in (1, 2) for coef in (0.1, 0.2)]
    assert [name for name, _ in jobs] == names
    assert [cfg.run.dir for _, cfg in jobs] == [f"out/{name}" for name in names]
    assert [(cfg.seed, cfg.ppo.kl_coef) for _, cfg in jobs] == [(1, 0.1), (1, 0.2), (2, 0.1), (2, 0.2)]
    assert {cfg.ppo.num_steps for _, cfg in jobs} == {9}


def test_files_of_a_group_can_be_swept_by_a_pattern():
    assert [name for name, _ in planned("rollout=default", "model=glob(t*)")] == ["model=tiny"]


def test_run_dir_itself_may_vary():
    assert [cfg.run.dir for _, cfg in planned("run.dir=a,b")] == ["a", "b"]
    assert [cfg.run.dir for _, cfg in planned("run.dir=a,b", "seed=1,2")] == [
        "a/seed=1",
        "a/seed=2",
        "b/seed=1",
        "b/seed=2",
    ]


def test_a_value_that_is_no_name_of_a_folder_gets_a_short_one():
    first, second = (cfg.run.dir for _, cfg in planned("data.prompts=my/a.jsonl,my/b.jsonl", "run.dir=out"))
    assert first.startswith("out/data.prompts=my_a.jsonl_") and first != second
    long = planned("data.prompts=" + ",".join(letter * 300 for letter in "ab"), "run.dir=out")
    assert all(len(cfg.run.dir) < 150 for _, cfg in long) and len({cfg.run.dir for _, cfg in long}) == 2


@pytest.mark.slow
def test_an_input_is_the_jobs_own_where_it_is_there_and_else_the_one_of_run_dir(tmp_path):
    own = tmp_path / "seed=2" / "reward"
    own.mkdir(parents=True)
    (own / "manifest.json").write_text("{}")
    first, second = (cfg.inputs for _, cfg in planned("seed=1,2", f"run.dir={tmp_path}"))
    assert (first.sft, first.reward) == (f"{tmp_path}/sft", f"{tmp_path}/reward")
    assert (second.sft, second.reward) == (f"{tmp_path}/sft", str(own))
    assert planned("seed=1,2", "inputs.sft=else")[1][1].inputs.sft == "else"


def test_what_makes_its_inputs_itself_makes_them_in_each_job(tmp_path):
    ((_, cfg), _) = planned("seed=1,2", f"run.dir={tmp_path}", makes_inputs=True)
    assert cfg.inputs.sft == f"{tmp_path}/seed=1/sft"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["seed=1,1"], "config: several jobs would write to run.dir=outputs/toy/seed=1; name each value once"),
        (["ppo.gamma=1,2"], "config: ppo.gamma=2.0 must lie between 0 and 1"),
        (["hydra/launcher=joblib"], "config: hydra/launcher=joblib has no effect with -m"),
        (["hydra.sweep.dir=x"], "config: hydra.sweep.dir=x has no effect with -m"),
    ],
)
def test_a_sweep_is_refused_whole_before_its_first_job(overrides, line):
    with pytest.raises(UserError) as error:
        planned(*overrides)
    assert str(error.value).startswith(line)


def test_a_sweep_needs_a_process_of_its_own(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="this run has 2; start one command for each value"):
        planned("seed=1,2")


@pytest.mark.slow
def test_a_job_that_fails_does_not_keep_the_next_from_running(capsys, tmp_path):
    ran = []

    def run(cfg):
        ran.append(cfg.seed)
        if cfg.seed == 1:
            raise NumericsError("loss is nan")

    assert run_sweep(run, plan_jobs(["seed=1,2", f"run.dir={tmp_path}"], None, False)) == NumericsError.exit_code
    assert ran == [1, 2]
    assert capsys.readouterr().err.splitlines() == [
        f"job 1 of 2: seed=1 -> {tmp_path}/seed=1",
        "error: loss is nan",
        f"job 2 of 2: seed=2 -> {tmp_path}/seed=2",
        f"failed with exit code 4: {tmp_path}/seed=1",
    ]


def test_a_stop_ends_the_whole_sweep(capsys, tmp_path):
    ran = []

    def run(cfg):
        ran.append(cfg.seed)
        raise KeyboardInterrupt

    assert run_sweep(run, plan_jobs(["seed=1,2", f"run.dir={tmp_path}"], None, False)) == 130
    assert ran == [1]
