"""Every refusal of a stage's folder, walked: what its message offers is done in its place, and the stage goes on."""

import re

import pytest
from test_stage import config_maker, finish, stage_of

from rlhf.artifacts.fit import check_parent
from rlhf.artifacts.manifest import verify
from rlhf.errors import ArtifactError
from rlhf.run.stage import Stage

RUN_DIR = "choose another run.dir"
NEVER, FORCE = "run.resume=never", "run.force=true"


def stop(stage: Stage) -> None:
    """Leaves a stage as a stop after its first checkpoint does."""
    assert stage.open()
    (stage.checkpoint_folder / "checkpoint-7").mkdir()
    (stage.checkpoint_folder / "checkpoint-7" / "weights").write_text("x")


def finished_otherwise(make, folder):
    finish(make())
    return "seed=1"


def finished_and_damaged(make, folder):
    (finish(make()) / "config.yaml").write_text("")
    return "seed=0"


def stopped_otherwise(make, folder):
    stop(stage_of("sft", make()))
    return "sft.learning_rate=1"


def stopped_with_other_data(make, folder):
    stop(stage_of("sft", make()))
    rows = (folder / "demonstrations.jsonl").read_text().splitlines(keepends=True)
    (folder / "demonstrations.jsonl").write_text("".join(rows[1:]))
    return "seed=0"


def stopped_with_another_split(make, folder):
    stop(stage_of("sft", make()))
    return "sft.micro_batch_size=16"


def stopped_with_a_damaged_record(make, folder):
    stage = stage_of("sft", make())
    stop(stage)
    (stage.checkpoint_folder / "run.json").write_text("{")
    return "seed=0"


def stopped_without_a_record(make, folder):
    stage = stage_of("sft", make())
    stop(stage)
    (stage.checkpoint_folder / "run.json").unlink()
    return "seed=0"


def files_of_others(make, folder):
    (folder / "run" / "sft").mkdir(parents=True)
    (folder / "run" / "sft" / "thesis.txt").write_text("mine")
    return "seed=0"


def a_source_that_changed_meanwhile(make, folder):
    stage = stage_of("sft", make())
    stop(stage)
    source = folder / "demonstrations.jsonl"
    source.write_text(source.read_text() + source.read_text().splitlines()[0] + "\n")
    return "seed=0"


# What is refused -> what its message offers.
REFUSALS = {
    finished_otherwise: ["seed=0", RUN_DIR, FORCE],
    finished_and_damaged: [RUN_DIR, FORCE],
    stopped_otherwise: ["old values", RUN_DIR, NEVER],
    stopped_with_other_data: [RUN_DIR, NEVER],
    stopped_with_another_split: ["old values", RUN_DIR, "run.reshard=true", NEVER],
    stopped_with_a_damaged_record: [RUN_DIR, NEVER],
    stopped_without_a_record: [RUN_DIR, NEVER],
    files_of_others: [RUN_DIR, NEVER],
    a_source_that_changed_meanwhile: [RUN_DIR, NEVER],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("refusal", "remedy"),
    [(refusal, remedy) for refusal, remedies in REFUSALS.items() for remedy in remedies],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_what_a_refusal_offers_is_done_in_the_same_folder_and_the_stage_goes_on(tmp_path, refusal, remedy):
    make = config_maker(tmp_path)
    override = refusal(make, tmp_path)
    kept = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(ArtifactError) as refused:
        stage_of("sft", make(override)).open()
    message = str(refused.value)
    assert {path: path.read_bytes() for path in kept} == kept
    overrides = {RUN_DIR: [override, f"run.dir={tmp_path}/other"], "old values": ["seed=0"], "seed=0": ["seed=0"]}
    assert remedy == "seed=0" or remedy.lower() in message.lower()
    stage = stage_of("sft", make(*overrides.get(remedy, [override, remedy])))
    assert stage.open() is (remedy != "seed=0")
    assert sorted(path.read_bytes() for path in tmp_path.rglob("weights")) == [
        content for path, content in kept.items() if path.name == "weights"
    ]  # nothing that was trained is lost


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.__name__)
def test_no_refusal_offers_what_is_not_walked_here(tmp_path, refusal):
    make = config_maker(tmp_path)
    override = refusal(make, tmp_path)
    with pytest.raises(ArtifactError) as refused:
        stage_of("sft", make(override)).open()
    offered = set(re.findall(r"run\.(?:force|resume|reshard|mended_rule)=\w+", str(refused.value)))
    assert offered == {remedy for remedy in REFUSALS[refusal] if remedy.startswith("run.")}


def a_damaged_artifact(make):
    folder = finish(make())
    (folder / "config.yaml").write_text("")
    verify(folder)


def a_manifest_that_was_altered(make):
    folder = finish(make())
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text().replace('"seconds"', '"second"'))
    verify(folder)


def a_reward_model_of_another_sft_policy(make):
    folder = finish(make())
    reward = finish(make(), "reward", {"sft": str(folder)})
    finish(make("seed=1"), replace=True)
    check_parent(verify(reward), folder)


@pytest.mark.parametrize(
    "refusal", [a_damaged_artifact, a_manifest_that_was_altered, a_reward_model_of_another_sft_policy]
)
def test_the_command_that_a_refused_input_names_is_not_refused_in_its_turn(tmp_path, refusal):
    make = config_maker(tmp_path)
    with pytest.raises(ArtifactError) as refused:
        refusal(make)
    name, options = re.search(r"python -m stages\.(\w+)((?: run\.\w+=\w+)*)", str(refused.value)).groups()
    inputs = {"sft": f"{tmp_path}/run/sft"} if name == "reward" else {}
    assert stage_of(name, make(*options.split()), inputs).open()
