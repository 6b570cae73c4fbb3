"""-m runs jobs one after the other in one process: what the first one leaves behind does not touch the second."""

from safetensors.torch import load_file


def test_the_second_job_of_a_sweep_makes_what_a_run_alone_makes(start, ended, finished, tmp_path, world):
    outcome = ended(start("pipeline", "-m", "seed=3,0"))
    assert outcome.code == 0, outcome.err
    assert "job 2 of 2: seed=0 -> " in outcome.err
    for stage in ("sft", "reward", "ppo"):
        alone = load_file(finished / stage / "model" / "model.safetensors")
        swept = load_file(tmp_path / "run" / "seed=0" / stage / "model" / "model.safetensors")
        other = load_file(tmp_path / "run" / "seed=3" / stage / "model" / "model.safetensors")
        assert all(swept[name].equal(alone[name]) for name in alone)
        assert not all(other[name].equal(alone[name]) for name in alone)
