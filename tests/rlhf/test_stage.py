"""A stage's folder: when it must run, what it refuses to write over, and what it leaves behind."""

import dataclasses
import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from rlhf.artifacts.manifest import load_manifest, manifest_sha256
from rlhf.config.checks import resolve
from rlhf.config.keys import as_dict
from rlhf.data.load import load_demonstrations
from rlhf.errors import ArtifactError, UserError
from rlhf.hashing import file_sha256
from rlhf.run.stage import Stage, verify_stage
from stages import evaluate, ppo, reward, sft

STAGES = {"sft": sft, "reward": reward, "ppo": ppo, "evaluate": evaluate}
SOURCES = ["demonstrations", "rankings", "prompts", "heldout"]


def config_maker(folder):
    """make("seed=1"): the shipped config with a data file of its own for each source, and the run in folder/run."""
    for name in SOURCES:
        rows = [{"prompt": f"{name} {i}?", "completion": "yes"} for i in range(40)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = [f"data.{name}={folder}/{name}.jsonl" for name in SOURCES]

    def make(*overrides):
        with initialize_config_module("conf", version_base="1.3"):
            return resolve(compose("config", overrides=[f"run.dir={folder}/run", *data, *overrides]))

    return make


@pytest.fixture
def config(tmp_path):
    return config_maker(tmp_path)


@pytest.fixture(scope="module")
def config_of_finished_stages(tmp_path_factory):
    """The same for a run in which every stage is up to date."""
    make = config_maker(tmp_path_factory.mktemp("finished"))
    for name in STAGES:
        finish(make(), name)
    return make


def stage_of(name, config, inputs=None):
    """A stage of ours, whatever artifacts it is given."""
    return Stage(STAGES[name].needs(config), config, inputs or {})


def finish(config, name="sft", inputs=None, replace=False):
    """A finished artifact of a stage that did nothing."""
    stage = stage_of(name, config, inputs)
    assert stage.open(replace)
    return stage.finish(base_model=None, metrics={})


# ---- when a stage must run


@pytest.mark.slow
def test_a_stage_that_never_ran_runs_and_a_finished_one_does_not(config, capsys):
    folder = finish(config())
    assert capsys.readouterr().err.startswith(f"sft: never ran -> {folder}")
    assert stage_of("sft", config()).open() is False
    assert capsys.readouterr().err == f"sft: up to date in {folder} (run.force=true runs it again)\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "stale"),
    [
        ("seed=1", {"sft", "reward", "ppo", "evaluate"}),
        ("model.dtype=bfloat16", {"sft", "reward", "ppo"}),
        ("data.test_share=0.2", {"sft", "reward", "ppo", "evaluate"}),
        ("rollout.temperature=0.5", {"reward", "ppo", "evaluate"}),
        ("model.scratch.num_layers=2", {"sft"}),
        ("model=pythia-160m", {"sft"}),  # the later stages load what SFT made of it
        ("adapter.rank=4", set()),  # of no adapter
        ("sft.learning_rate=1", {"sft"}),
        ("reward.loss=davidson", {"reward"}),
        ("ppo.kl_coef=1", {"ppo"}),
        ("evaluate.num_samples=2", {"evaluate"}),
        ("data.gold_rule=null", {"reward", "evaluate"}),
        ("data.simulated=false", {"evaluate"}),
        ("data.heldout=null", {"ppo", "evaluate"}),
        ("data.rankings=data/toy/rankings.jsonl", {"reward"}),
        ("ppo.save_steps=1", set()),
        ("ppo.keep_checkpoints=1", set()),
        ("tracking.wandb=disabled", set()),
        ("run.debug=true", set()),
        ("run.resume=never", set()),
        ("inputs.sft=elsewhere", set()),
    ],
)
def test_a_stage_depends_on_its_own_part_of_the_config_only(config_of_finished_stages, override, stale):
    config = config_of_finished_stages(override)
    assert {name for name in STAGES if stage_of(name, config).reasons()} == stale


@pytest.mark.slow
def test_a_model_path_that_is_not_loaded_is_neither_named_nor_a_reason_to_train_again(config, tmp_path):
    earlier = finish(config(), inputs={})
    start_from = {"start_from": str(earlier)}
    second = [f"run.dir={tmp_path}/second", f"sft.start_from={earlier}"]
    again = finish(config(*second), inputs=start_from)
    assert not [key for key in load_manifest(again)["config"] if key.startswith(("model.path", "model.scratch"))]
    other = config(*second, "model.path=elsewhere", "model.scratch=null")
    assert stage_of("sft", other, start_from).reasons() == []


@pytest.mark.slow
def test_an_artifact_to_start_from_counts_by_what_it_is_and_not_by_where_it_lies(config, tmp_path):
    earlier = finish(config())
    second = [f"run.dir={tmp_path}/second", f"sft.start_from={earlier}"]
    finish(config(*second), inputs={"start_from": str(earlier)})
    moved = earlier.rename(tmp_path / "moved")
    second[1] = f"sft.start_from={moved}"
    assert stage_of("sft", config(*second), {"start_from": str(moved)}).reasons() == []


@pytest.fixture
def rule_file(tmp_path, monkeypatch):
    """A file of rules that a config can name as own_rules:short."""
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "own_rules.py"
    path.write_text("from reward.rules import rule\n\n\n@rule\ndef short(prompts, responses):\n    return [1.0]\n")
    return path


RULE_OF = {
    "reward": ("data.gold_rule", "data.gold_rule=own_rules:short"),
    "ppo": ("ppo.rewards", "ppo.rewards=[{source: own_rules:short}]"),
    "evaluate": ("data.gold_rule", "data.gold_rule=own_rules:short"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RULE_OF)
def test_a_changed_rule_makes_the_stages_that_ask_it_stale_and_the_reason_names_its_file(config, rule_file, name):
    key, override = RULE_OF[name]
    folder = finish(config(override), name)
    record = {"key": key, "rule": "own_rules:short", "path": str(rule_file), "sha256": file_sha256(rule_file)}
    assert load_manifest(folder)["rules"] == [record]
    assert stage_of(name, config(override)).reasons() == []
    rule_file.write_text(rule_file.read_text().replace("1.0", "2.0"))
    assert stage_of(name, config(override)).reasons() == [f"{key}: the code of own_rules:short changed ({rule_file})"]


@pytest.mark.slow
def test_a_changed_gold_rule_concerns_neither_sft_nor_ppo(config, rule_file):
    folders = [finish(config("data.gold_rule=own_rules:short"), name) for name in ("sft", "ppo")]
    assert [load_manifest(folder)["rules"] for folder in folders] == [[], []]


def test_a_stopped_run_whose_rule_changed_is_not_gone_on_with(config, rule_file):
    override = RULE_OF["ppo"][1]
    stage = stage_of("ppo", config(override))
    stage.open()
    (stage.checkpoint_folder / "checkpoint-1").mkdir()
    (stage.checkpoint_folder / "checkpoint-1" / "weights").write_text("x")
    rule_file.write_text(rule_file.read_text().replace("1.0", "2.0"))
    message = r"ppo.rewards: the code of own_rules:short changed \(.*own_rules.py\)\)\. Give it the old values"
    with pytest.raises(ArtifactError, match=message):
        stage_of("ppo", config(override)).open()


@pytest.mark.slow
def test_the_reason_names_the_key_and_both_values(config):
    finish(config())
    assert stage_of("sft", config("sft.patience=7")).reasons() == [f"sft.patience {config().sft.patience} -> 7"]


@pytest.mark.slow
def test_a_changed_source_makes_its_stage_stale(config, tmp_path):
    finish(config())
    source = tmp_path / "demonstrations.jsonl"
    source.write_text(source.read_text() + '{"prompt": "new?", "completion": "yes"}\n')
    assert stage_of("sft", config()).reasons() == [f"{source} changed"]


@pytest.mark.slow
def test_a_changed_input_makes_its_consumers_stale(config):
    sft = finish(config())
    finish(config(), "reward", {"sft": str(sft)})
    finish(config("seed=1"), replace=True)
    assert stage_of("reward", config(), {"sft": str(sft)}).reasons() == ["input sft changed"]


def test_a_source_that_changes_while_the_stage_runs_is_found_at_its_end(config, tmp_path):
    stage = stage_of("sft", config())
    stage.open()
    source = tmp_path / "demonstrations.jsonl"
    source.write_text(source.read_text() + '{"prompt": "new?", "completion": "yes"}\n')
    load_demonstrations(config().data, stage.report)
    with pytest.raises(
        ArtifactError, match=f"{source} changed while sft was running; run it again with run.resume=never"
    ):
        stage.finish(base_model=None, metrics={})
    assert not (stage.folder / "manifest.json").exists()


@pytest.mark.slow
def test_an_input_that_is_replaced_while_the_stage_runs_is_found_at_its_end(config):
    sft = finish(config())
    stage = stage_of("reward", config(), {"sft": str(sft)})
    stage.open()
    finish(config("seed=1"), replace=True)
    with pytest.raises(
        ArtifactError,
        match=rf"input sft \({sft}\) changed while reward was running; run it again with run.resume=never",
    ):
        stage.finish(base_model=None, metrics={})
    assert not (stage.folder / "manifest.json").exists()


# ---- what it leaves behind


def test_a_finished_stage_holds_config_and_data_report_and_no_checkpoints(config):
    folder = finish(config("seed=4"))
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "config.yaml", "data_report.json"}
    assert OmegaConf.load(folder / "config.yaml").seed == 4


def test_inputs_are_recorded_by_role_and_digest(config):
    sft = finish(config())
    reward = finish(config(), "reward", {"sft": str(sft)})
    expected = [{"role": "sft", "path": "../sft", "sha256": manifest_sha256(sft)}]
    assert load_manifest(reward)["inputs"] == expected


def test_training_prompts_are_kept_by_key_for_later_stages(config):
    stage = stage_of("sft", config())
    stage.open()
    train = load_demonstrations(config().data, stage.report)["train"]
    stage.claim_prompts(train)
    keys = (stage.folder / "train_prompts.txt").read_text().split()
    assert keys == sorted(record.key for record in train)


def test_heldout_prompts_cannot_be_claimed_for_training(config, tmp_path):
    (tmp_path / "heldout.jsonl").write_text((tmp_path / "demonstrations.jsonl").read_text())
    stage = stage_of("sft", config())
    stage.open()
    train = load_demonstrations(config().data, stage.report)["train"]
    with pytest.raises(UserError, match=rf"{len(train)} held-out prompts are in the training data of sft \(e\.g\. "):
        stage.claim_prompts(train)


# ---- what it refuses to write over


@pytest.mark.slow
def test_an_artifact_of_another_config_is_kept_unless_it_may_be_replaced(config, tmp_path):
    folder = finish(config())
    old = manifest_sha256(folder)
    with pytest.raises(
        ArtifactError, match=r"holds an artifact made otherwise \(seed 0 -> 1\)\. Choose another run\.dir"
    ):
        stage_of("sft", config("seed=1")).open()
    assert manifest_sha256(folder) == old
    finish(config("seed=1"), replace=True)
    (moved,) = (tmp_path / "run" / "replaced").iterdir()
    assert manifest_sha256(moved) == old and manifest_sha256(folder) != old


@pytest.mark.slow
def test_force_runs_what_is_up_to_date_again(config, tmp_path, capsys):
    finish(config())
    finish(config("run.force=true"))
    assert "sft: run.force=true -> " in capsys.readouterr().err
    assert len(list((tmp_path / "run" / "replaced").iterdir())) == 1


@pytest.fixture
def stopped(config):
    """The folder of an SFT run that was stopped, with a checkpoint."""
    stage = stage_of("sft", config())
    stage.open()
    (stage.checkpoint_folder / "checkpoint-7").mkdir()
    (stage.checkpoint_folder / "checkpoint-7" / "weights").write_text("x")
    return stage.folder


@pytest.mark.slow
def test_a_stopped_run_goes_on_in_its_folder(config, stopped):
    assert stage_of("sft", config("ppo.gamma=0.5", "run.debug=true")).open()
    assert (stopped / "checkpoints" / "checkpoint-7" / "weights").exists()


@pytest.mark.slow
def test_a_stopped_run_of_another_config_is_refused_with_the_difference(config, stopped):
    with pytest.raises(
        ArtifactError, match=r"holds a stopped run that differs \(seed 0 -> 1\)\. Give it the old values"
    ):
        stage_of("sft", config("seed=1")).open()
    assert (stopped / "checkpoints" / "checkpoint-7").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "replace"), [("run.resume=never", False), ("run.force=true", False), ("seed=1", True)]
)
def test_a_stopped_run_moves_aside_when_it_is_to_start_again(config, stopped, override, replace):
    assert stage_of("sft", config(override)).open(replace)
    (moved,) = (stopped.parent / "replaced").iterdir()
    assert (moved / "checkpoints" / "checkpoint-7").exists()
    assert not (stopped / "checkpoints" / "checkpoint-7").exists()


def test_files_that_no_stage_wrote_are_not_written_over(config, tmp_path):
    (tmp_path / "run" / "sft").mkdir(parents=True)
    (tmp_path / "run" / "sft" / "thesis.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="it does not say what it was"):
        stage_of("sft", config()).open()
    assert (tmp_path / "run" / "sft" / "thesis.txt").read_text() == "mine"


def test_empty_folders_are_no_stopped_run(config, tmp_path):
    (tmp_path / "run" / "sft" / "checkpoints").mkdir(parents=True)  # what a disk that was full at the start leaves
    assert stage_of("sft", config()).open()


@pytest.fixture
def begun(config):
    """The folder of an SFT run that ended before its first step: its data had a mistake, say."""
    stage = stage_of("sft", config())
    stage.open()
    stage.model_folder.mkdir()
    for name in ("metrics.jsonl", "train_prompts.txt", "model/left.safetensors", "notes.txt"):
        (stage.folder / name).write_text("{}\n")
    return stage.folder


@pytest.mark.slow
@pytest.mark.parametrize("override", ["seed=1", "+data.fields.prompt=question", "sft.batch_size=64", "seed=0"])
def test_a_run_in_which_no_step_was_trained_stands_in_nobodys_way(config, begun, override):
    assert stage_of("sft", config(override)).open()
    assert json.loads((begun / "checkpoints" / "run.json").read_text())["config"]["seed"] == config(override).seed
    assert not (begun / "model").exists()  # or its files would be mixed with those of another kind of model
    assert (begun / "notes.txt").exists() and not (begun.parent / "replaced").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "override", "may_change"),
    [
        ("reward", "data.gold_rule=null", True),
        ("reward", "reward.norm_samples=32", True),
        ("reward", "rollout.temperature=0.5", True),
        ("reward", "reward.learning_rate=1", False),
        ("ppo", "rollout.temperature=0.5", False),
        ("sft", "tracking.log_steps=9", True),
        ("ppo", "evaluate.num_prompts=9", True),
        ("ppo", "data.gold_rule=null", True),
    ],
)
def test_what_acts_only_after_training_may_change_in_a_run_that_goes_on(config, stage, override, may_change):
    first = stage_of(stage, config())
    first.open()
    (first.checkpoint_folder / "checkpoint-7").mkdir()
    if may_change:
        assert stage_of(stage, config(override)).open()
        assert (first.checkpoint_folder / "checkpoint-7").exists()
    else:
        with pytest.raises(ArtifactError, match="holds a stopped run that differs"):
            stage_of(stage, config(override)).open()


def leave_checkpoint(stage):
    """Leaves a stage as a stop after its first checkpoint does."""
    stage.open()
    (stage.checkpoint_folder / "checkpoint-7").mkdir()


@pytest.mark.parametrize(
    ("name", "overrides"),
    [("rollout.jsonl", []), ("rollout.jsonl", ["run.reshard=true"]), ("deepspeed.jsonl", ["run.reshard=true"])],
)
def test_a_file_that_is_called_like_a_section_is_no_key_of_it(config, tmp_path, monkeypatch, name, overrides):
    """A stopped run goes on with another temperature of the SFT samples, or other ranks; never with other rankings."""
    monkeypatch.chdir(tmp_path)
    rows = Path("rankings.jsonl").read_text()
    Path(name).write_text(rows)
    leave_checkpoint(stage_of("reward", config(f"data.rankings={name}")))
    Path(name).write_text(rows.replace("yes", "no"))
    with pytest.raises(ArtifactError, match=f"holds a stopped run that differs .{name} changed.* Give it the old"):
        stage_of("reward", config(f"data.rankings={name}", *overrides)).open()


@pytest.mark.slow
def test_a_stopped_run_whose_record_is_damaged_is_refused_and_can_be_started_again(config, stopped):
    (stopped / "checkpoints" / "run.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"run\.json:1:2: not valid JSON .* or run.resume=never to start again"):
        stage_of("sft", config()).open()
    assert stage_of("sft", config("run.resume=never")).open()


# ---- which artifacts it takes


@pytest.mark.parametrize(
    ("made_by", "role", "fits"),
    [
        ("sft", "sft", True),
        ("sft", "start_from", True),
        ("reward", "reward_1", True),
        ("reward", "sft", False),
        ("ppo", "start_from", False),
        ("sft", "reward_0", False),
    ],
)
def test_an_artifact_fits_the_roles_of_its_stage_only(config, made_by, role, fits):
    folder = finish(config(), made_by)
    if fits:
        assert verify_stage(folder, role, "sft")["stage"] == made_by
    else:
        with pytest.raises(ArtifactError, match=f"is an artifact of stages.{made_by}, and one of stages"):
            verify_stage(folder, role, "sft")


def test_a_config_as_dicts_has_plain_values_only(config):
    values = as_dict(config("ppo.rewards=[{source: 'a:b', weight: 2}]"))
    assert values["ppo"]["rewards"] == [{"source": "a:b", "weight": 2.0, "scale": 1.0, "clip": None}]
    assert values["run"]["resume"] == "auto" and values["model"]["dtype"] == "float32"
    assert json.loads(json.dumps(values)) == values
    assert set(values) == {field.name for field in dataclasses.fields(config())}
