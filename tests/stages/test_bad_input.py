"""What bad input gets: one line with place, value, rule and remedy, its exit code, and nothing overwritten."""

import json
import os
import re
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
import tiny_world
import torch
from safetensors.torch import load_file, save_file
from tiny_world import ANIMALS, COLOURS, question, ranking, records, write_jsonl

from reward.rankings import load_rankings
from rlhf.artifacts.manifest import manifest_sha256, verify
from rlhf.data.load import DataReport, prompt_key
from rlhf.preflight import forecast as preflight
from stages import reward, sft

STAGES = ["sft", "reward", "ppo", "evaluate"]
NAN_RULE, NAN_LATER_RULE = "tiny_world:not_a_number", "tiny_world:not_a_number_later"


def only_rule(name: str) -> str:
    return f"ppo.rewards=[{{source: '{name}'}}]"


@pytest.fixture
def refused(tiny_command, tmp_path):
    """refused("sft", "seed=-1", code=2): the error line of a command that ends with this code and changes nothing."""

    def run(stage: str, *overrides: str, code: int) -> str:
        before = artifacts(tmp_path)
        outcome = tiny_command(stage, *overrides)
        assert outcome.code == code, outcome.err
        assert "Traceback" not in outcome.err
        assert artifacts(tmp_path) == before
        return outcome.error

    return run


def artifacts(folder: Path) -> dict[str, str]:
    """All artifacts of runs below a folder and the digests of their manifests."""
    return {
        str(path.parent): manifest_sha256(path.parent)
        for path in folder.rglob("manifest.json")
        if "checkpoints" not in path.parts
    }


@pytest.fixture
def ready(finished, tmp_path):
    """ready("ppo") puts the artifacts that come before PPO into tmp_path/run."""

    def make(stage: str) -> Path:
        for earlier in STAGES[: STAGES.index(stage)]:
            shutil.copytree(finished / earlier, tmp_path / "run" / earlier)
        return tmp_path / "run"

    return make


# ---- the config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sft.learning_rat=1", "config: no key 'sft.learning_rat'. Did you mean 'sft.learning_rate'?"),
        ("+sft.lr=1", "config: no key 'sft.lr'; +sft.lr=... adds nothing that a stage would read"),
        ("+sft._target_=os.system", "config: no key 'sft._target_'; +sft._target_=... adds nothing"),
        ("sft.batch_size=many", "config: sft.batch_size: Value 'many' of type 'str' could not be converted to Integer"),
        (
            "sft.objective=all",
            "config: sft.objective: Invalid value 'all', expected one of [completion, assistant, text]",
        ),
        ("sft.learning_rate=-1", "config: sft.learning_rate=-1.0 must be > 0"),
        ("sft.learning_rate=inf", "config: sft.learning_rate=inf must be > 0 and finite"),
        (
            "ppo.batch_size=10",
            "config: ppo.batch_size=10 must be a multiple of ppo.minibatch_size=8; use ppo.batch_size=8 or 16",
        ),
        ("data.rankings=???", "config: data.rankings is not set; give it a value, data.rankings=..."),
        ("model=huge", "config: no model 'huge'; there are llama-3.2-1b, pythia-160m, qwen3-0.6b, tiny."),
        ("seed=-1", "config: seed=-1 must lie between 0 and 2**32 - 1"),
        ("ppo.rewards=[{source: reward, wieght: 2}]", "config: no key 'wieght'"),
        ("data.demonstrations=[]", "data.demonstrations is not set; give a path, a hub id, or a list of these"),
    ],
)
def test_a_config_that_cannot_be_is_refused_by_key_value_rule_and_remedy(refused, override, message):
    assert refused("sft", override, code=2).startswith(message)


def test_a_fault_in_a_config_file_of_the_users_own_is_named(command, tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    file = tmp_path / "conf" / "experiment" / "mine.yaml"
    for text, message in {
        "sft:\n  learning_rat: 1": "experiment/mine: no key 'sft.learning_rat'. Did you mean 'sft.learning_rate'?",
        "sft:\n  learning_rate: a": "experiment/mine: sft.learning_rate: Value 'a' of type 'str' could not be",
        "sft: [": f"while parsing a flow node expected the node content, but found '<stream end>' in \"{file}\", line",
    }.items():
        file.write_text(f"# @package _global_\n{text}\n")
        outcome = command("sft", f"--config-dir={tmp_path}/conf", "experiment=mine", f"run.dir={tmp_path}/run")
        assert outcome.code == 2 and outcome.error.startswith(f"config: {message}")


# ---- records


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a", b}', ":7:17: not valid JSON (Expecting property name enclosed in double quotes)"),
        ('{"prompt": "a", "answer": "b"}', "or 'text'. Map it with +data.fields.completion=answer"),
        ('{"prompt": "a", "completion": null}', ":7: field 'completion' is null"),
        (
            '{"prompt": "a", "completion": ["b"]}',
            ":7: field 'completion' is a list; an answer must be a string, or one message of the assistant",
        ),
        ('{"prompt": "a", "completion": "b", "x": NaN}', ":7: not valid JSON (NaN is not a finite number)"),
        ('{"prompt": "a <|end|>", "completion": "b"}', ":7: the text contains the control token '<|end|>'"),
        ('{"prompt": "a", "completion": "b<|assistant|>"}', ":7: the text contains the control token '<|assistant|>'"),
        ('{"text": "a"}', ":7: the record holds plain text; learn it with sft.objective=text"),
        (
            '{"prompt": "' + "the " * 30 + '", "completion": "b"}',
            "tokens, more than data.max_prompt_tokens=20. Raise the limit",
        ),
    ],
)
def test_a_bad_demonstration_is_named_by_file_and_line(refused, own_world, line, message):
    path = own_world / "demonstrations.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:6], line, *lines[7:]]))
    error = refused("sft", f"data.demonstrations={path}", code=2)
    assert error.startswith(f"{path}:7") and message in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ranks": [1, 2]}, "field 'ranks' has 2 entries for 3 responses; give one rank for each response"),
        ({"responses": ["a"], "ranks": [1]}, "field 'responses' has 1 answers; a ranking needs 2 or more"),
        ({"ranks": [0, 1, 2]}, "field 'ranks[0]' is 0; a rank must be a whole number from 1 (the best)"),
        ({"ranks": [1, 2.5, 3]}, "field 'ranks[1]' is 2.5; a rank must be a whole number"),
        ({"ranks": [1, None, None]}, "field 'ranks' ranks 1 of 3 responses; rank at least 2"),
        ({"responses": ["a", "b", "c <|pad|>"]}, "the text contains the control token '<|pad|>'"),
    ],
)
def test_a_bad_ranking_is_named_by_file_and_line(refused, ready, tmp_path, change, message):
    ready("reward")
    path = write_jsonl(tmp_path / "rankings.jsonl", [*records()["rankings"], {**ranking("red", "cat"), **change}])
    assert refused("reward", f"data.rankings={path}", code=2).startswith(f"{path}:91: {message}")


def test_rankings_that_tie_everything_are_refused(refused, ready, tmp_path):
    ready("reward")
    path = write_jsonl(tmp_path / "rankings.jsonl", [{**row, "ranks": [1, 1, 1]} for row in records()["rankings"]])
    error = refused("reward", f"data.rankings={path}", code=2)
    assert "field 'ranks' is [1, 1, 1], and all 66 training rankings of data.rankings tie all their answers" in error


def test_validation_rankings_that_tie_everything_are_refused(refused, ready, config, tmp_path):
    ready("reward")
    valid = {ranking.messages[-1]["content"] for ranking in load_rankings(config().data, DataReport())["valid"]}
    rows = [{**row, "ranks": [1, 1, 1]} if row["prompt"] in valid else row for row in records()["rankings"]]
    path = write_jsonl(tmp_path / "rankings.jsonl", rows)
    error = refused("reward", f"data.rankings={path}", code=2)
    assert error.startswith("data.rankings: the 13 prompts of the valid split tie all their answers")


@pytest.mark.parametrize(
    ("stage", "key"),
    [("sft", "demonstrations"), ("reward", "rankings"), ("ppo", "prompts"), ("ppo", "heldout")],
)
def test_a_source_that_is_missing_or_empty_is_named(refused, ready, tmp_path, stage, key):
    ready(stage)
    missing, empty = tmp_path / "no.jsonl", write_jsonl(tmp_path / "empty.jsonl", [])
    assert refused(stage, f"data.{key}={missing}", code=2).startswith(f"data.{key}={missing}: no such file")
    assert refused(stage, f"data.{key}={empty}", code=2) == f"{empty}: the source is empty (0 records); need at least 1"


@pytest.mark.parametrize(
    ("stage", "override", "message"),
    [
        ("sft", "data.valid_share=0", "data.demonstrations: the valid split is empty (train 74, valid 0, test 6)"),
        ("reward", "data.valid_share=0", "data.rankings: the valid split is empty (train 74, valid 0, test 6)"),
        ("reward", "data.test_share=0", "data.rankings: the test split is empty"),
        ("sft", "sft.batch_size=160", "sft.batch_size=160 is more than the 61 training demonstrations there are"),
        ("reward", "reward.batch_size=160", "reward.batch_size=160 is more than the 61 training prompts with rankings"),
        ("ppo", "ppo.batch_size=160", "ppo.batch_size=160 is more than the 61 training prompts there are"),
        ("sft", "data.max_response_tokens=1", "no training demonstrations are left; the data report above says"),
        ("reward", "data.max_response_tokens=1", "no training prompts with rankings are left; the data report"),
    ],
)
def test_too_little_data_is_told_before_any_training(refused, ready, stage, override, message):
    run_dir = ready(stage)
    assert refused(stage, override, code=2).startswith(message)
    assert not (run_dir / stage / "metrics.jsonl").exists()


@pytest.mark.parametrize("on_error", ["error", "skip"])
def test_records_that_the_objective_cannot_learn_are_told_before_splits_and_limits(refused, tmp_path, on_error):
    path = write_jsonl(tmp_path / "texts.jsonl", [{"text": "a cat is red", "label": [1, 2]}] * 3)
    message = "the record holds plain text; learn it with sft.objective=text, or name the columns"
    assert refused("sft", f"data.demonstrations={path}", f"data.on_error={on_error}", code=2).startswith(
        f"{path}:1: {message}"
    )
    path = write_jsonl(tmp_path / "dialogues.jsonl", records()["demonstrations"][1:2])  # of the train split
    error = refused("sft", f"data.demonstrations={path}", "sft.objective=text", f"data.on_error={on_error}", code=2)
    assert error.startswith(f"{path}:1: sft.objective=text learns the field 'text'")


def test_an_empty_validation_split_is_refused_since_it_chooses_the_exported_policy(refused, ready):
    ready("ppo")
    error = refused("ppo", "data.valid_share=0", code=2)
    assert error.startswith("data.prompts: the valid split is empty")


@pytest.mark.parametrize(("stage", "key"), [("sft", "demonstrations"), ("reward", "rankings"), ("ppo", "prompts")])
def test_long_prompts_are_an_error_or_cut_and_counted(tiny_command, refused, ready, tmp_path, stage, key):
    run_dir = ready(stage)
    first = records()[key][1]  # a training record
    path = write_jsonl(tmp_path / f"{key}.jsonl", [{**first, "prompt": "the " * 30 + "cat is red?"}, *records()[key]])
    error = refused(stage, f"data.{key}={path}", code=2)
    assert re.match(rf"{path}:1: the prompt has \d+ tokens, more than data.max_prompt_tokens=20", error)
    options = ["data.long_prompts=cut", "run.resume=never"]
    assert tiny_command(stage, f"data.{key}={path}", *options).code == 0
    report = json.loads((run_dir / stage / "data_report.json").read_text())
    assert report["cut"]["count"] == 1 and report["cut"]["places"][0].startswith(f"{path}:1 ")


def test_bad_records_can_be_skipped_and_are_counted(tiny_command, own_world, tmp_path):
    path = own_world / "demonstrations.jsonl"
    path.write_text(path.read_text() + '{"prompt": "a"}\nnot json\n{"prompt": "b"}\n')
    assert tiny_command("sft", f"data.demonstrations={path}", "data.on_error=skip").code == 0
    report = json.loads((tmp_path / "run" / "sft" / "data_report.json").read_text())
    assert report["sources"][0]["records"] == 80 and report["sources"][0]["skipped"] == 3
    assert sorted(finding["count"] for finding in report["skipped"]) == [1, 2]


def test_a_response_that_is_too_long_drops_only_itself_from_its_ranking(tiny_command, ready, tmp_path):
    run_dir = ready("reward")
    rows = [
        {**row, "responses": [*row["responses"], "long " * 20], "ranks": [*row["ranks"], 4]}
        for row in records()["rankings"]
    ]
    path = write_jsonl(tmp_path / "rankings.jsonl", rows)
    assert tiny_command("reward", f"data.rankings={path}").code == 0
    report = json.loads((run_dir / "reward" / "data_report.json").read_text())
    assert report["over_long"]["count"] == 80 and report["tokens"]["answers"]["train"]["count"] == 3 * 61


# ---- leakage


@pytest.mark.parametrize(("stage", "key"), [("sft", "demonstrations"), ("reward", "rankings"), ("ppo", "prompts")])
def test_heldout_prompts_in_the_training_data_of_a_stage_are_an_error(refused, ready, tmp_path, stage, key):
    ready(stage)
    leaked = {**records()[key][1], "prompt": "  YAK is RED? "}  # as in heldout.jsonl, but for case and white space
    path = write_jsonl(tmp_path / f"{key}.jsonl", [*records()[key], leaked])
    error = refused(stage, f"data.{key}={path}", code=2)
    assert re.match(
        rf"1 held-out prompts are in the training data of {stage} \(e\.g\. .*/heldout\.jsonl:1\)\. Remove", error
    )


def test_evaluate_refuses_heldout_prompts_that_an_ancestor_was_trained_on(refused, tiny_command, run_dir, tmp_path):
    seen = [row for row in records()["demonstrations"] if row["prompt"] in trained_prompts(run_dir)][:1]
    heldout = write_jsonl(tmp_path / "heldout.jsonl", [{"prompt": seen[0]["prompt"]}])
    others = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"{n}?"} for n in range(60)])
    options = [f"data.prompts={others}", f"data.heldout={heldout}", "run.force=true"]
    outcome = tiny_command("evaluate", *options)
    assert outcome.code == 2
    assert re.match(rf"1 held-out prompts are in the training data of \w+ \(e\.g\. {heldout}:1\)", outcome.error)


def trained_prompts(run_dir: Path) -> list[str]:
    """Prompts of the tiny world that the SFT stage trained on."""
    keys = set((run_dir / "sft" / "train_prompts.txt").read_text().split())
    prompts = [question(colour, animal) for colour in COLOURS for animal in ANIMALS]
    return [prompt for prompt in prompts if prompt_key([{"role": "user", "content": prompt}]) in keys]


# ---- models of the user's own


@pytest.fixture
def model(finished, tmp_path) -> Path:
    """A folder with a small Llama and its tokenizer, as a user may have one."""
    return Path(shutil.copytree(finished / "sft" / "model", tmp_path / "model"))


def change_json(path: Path, **changes) -> None:
    """Sets values of a JSON file; None takes one out."""
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


def test_a_tokenizer_without_pad_gets_one_that_is_not_eos_and_every_stage_keeps_it(config, model):
    change_json(model / "tokenizer_config.json", pad_token=None)
    folder = sft.run(config(f"model.path={model}", "sft.num_epochs=1"))
    saved = json.loads((folder / "model" / "tokenizer_config.json").read_text())
    assert saved["pad_token"] and saved["pad_token"] != saved["eos_token"]
    reward_folder = reward.run(config(f"model.path={model}", "reward.num_epochs=1"))
    assert verify(reward_folder)["tokenizer_sha256"] == verify(folder)["tokenizer_sha256"]


def test_a_tokenizer_without_eos_is_refused(refused, model):
    change_json(model / "tokenizer_config.json", eos_token=None)
    error = refused("sft", f"model.path={model}", code=2)
    assert error.startswith(f"model.path={model}: its tokenizer has no EOS token") and "Set eos_token in" in error


def test_pickled_weights_are_refused(refused, model):
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    error = refused("sft", f"model.path={model}", code=2)
    assert (
        error.startswith(f"model.path={model} has only pickled weights (pytorch_model.bin)") and "safetensors" in error
    )


@pytest.mark.parametrize("model_type", ["llama", "of_its_own"])
def test_a_model_that_brings_code_is_refused_and_its_code_does_not_run(refused, model, tmp_path, model_type):
    auto_map = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    change_json(model / "config.json", auto_map=auto_map, model_type=model_type)
    (model / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    error = refused("sft", f"model.path={model}", code=2)
    assert "wants to run its own code" in error and "set model.trust_remote_code=true" in error
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_that_brings_code_is_refused_and_its_code_does_not_run(refused, model, tmp_path):
    auto_map = {"AutoTokenizer": ["code.Tokenizer", None]}
    change_json(model / "tokenizer_config.json", auto_map=auto_map, tokenizer_class="Tokenizer")
    (model / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "set model.trust_remote_code=true" in refused("sft", f"model.path={model}", code=2)
    assert not (tmp_path / "ran").exists()


def test_a_model_folder_that_is_not_there_is_refused(refused, tmp_path):
    error = refused("sft", f"model.path={tmp_path}/none", code=2)
    assert error.startswith(f"model.path={tmp_path}/none: cannot load its tokenizer (no such folder")


def drop_a_weight(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    del weights["model.layers.0.self_attn.q_proj.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_a_weight, "lack 1 of the model's weights (e.g. model.layers.0.self_attn.q_proj.weight)"),
        (lambda model: change_json(model / "config.json", model_type="bert"), "names another architecture"),
        (lambda model: os.truncate(model / "model.safetensors", 1000), "cannot load it ("),
        (lambda model: (model / "config.json").write_text("{"), "cannot load its tokenizer ("),
        (lambda model: (model / "tokenizer.json").write_text("{"), "cannot load its tokenizer ("),
        (lambda model: (model / "model.safetensors").unlink(), "cannot load it ("),
    ],
    ids=["weight missing", "other architecture", "truncated", "config", "tokenizer", "no weights"],
)
def test_a_damaged_model_folder_is_refused(refused, model, damage, message):
    damage(model)
    error = refused("sft", f"model.path={model}", code=2)
    assert error.startswith(f"model.path={model}: ") and message in error


def test_a_model_too_short_for_prompt_and_response_is_refused(refused, model):
    change_json(model / "config.json", max_position_embeddings=25)
    error = refused("sft", f"model.path={model}", code=2)
    assert error.startswith("data.max_prompt_tokens + data.max_response_tokens = 26 is more than the 25 tokens")


@pytest.mark.parametrize(
    "template", ["{% for %}", "{{ raise_exception('no') }}", "{{ messages[0].a.b }}", "{{ ''.__class__.__mro__ }}"]
)
def test_a_chat_template_that_fails_is_refused(refused, model, tmp_path, template):
    (tmp_path / "chat.jinja").write_text(template)
    error = refused("sft", f"model.path={model}", f"model.chat_template={tmp_path}/chat.jinja", code=2)
    assert "the chat template cannot render the dialogue" in error and "see model.chat_template" in error


# ---- artifacts


@pytest.fixture
def unreadable_models(monkeypatch):
    """From here on a model that is loaded fails the test: artifacts are to be refused before."""

    def fail(*args, **kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", fail)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("stage", "role"), [("reward", "sft"), ("ppo", "sft"), ("ppo", "reward"), ("evaluate", "ppo")])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "{folder}: not there; run python -m stages.{role} first or point to a finished artifact"),
        (lambda folder: (folder / "manifest.json").unlink(), "{folder}: not a finished artifact (no manifest.json)"),
        (
            lambda folder: flip_a_bit(folder / "model" / "model.safetensors"),
            "{folder}/model/model.safetensors: altered, sha256 is",
        ),
        (
            lambda folder: flip_a_bit(folder / "model" / "tokenizer.json"),
            "{folder}/model/tokenizer.json: altered, sha256 is",
        ),
        (
            lambda folder: flip_a_bit(folder / "model" / "chat_template.jinja"),
            "{folder}/model/chat_template.jinja: altered",
        ),
        (lambda folder: flip_a_bit(folder / "metrics.jsonl"), "{folder}/metrics.jsonl: altered, sha256 is"),
        (
            lambda folder: (folder / "model" / "config.json").unlink(),
            "{folder}/model/config.json: is missing; copy it again",
        ),
        (
            lambda folder: os.truncate(folder / "model" / "model.safetensors", 99),
            "{folder}/model/model.safetensors: truncated, 99 bytes",
        ),
        (
            lambda folder: (folder / "model" / "pytorch_model.bin").touch(),
            "{folder}/model/pytorch_model.bin: is not listed",
        ),
    ],
    ids=["absent", "incomplete", "weights", "tokenizer", "template", "metrics", "config", "truncated", "stranger"],
)
def test_a_damaged_input_is_refused_before_weights_are_loaded(
    refused, ready, unreadable_models, stage, role, damage, message
):
    folder = ready(stage) / role
    damage(folder)
    assert refused(stage, code=3).startswith(message.format(folder=folder, role=role))
    assert not (folder.parent / stage).exists()


@pytest.mark.parametrize(
    ("stage", "key", "wrong", "right"),
    [
        ("reward", "inputs.sft", "ppo", "sft"),
        ("ppo", "inputs.sft", "reward", "sft"),
        ("ppo", "inputs.reward", "sft", "reward"),
        ("evaluate", "inputs.ppo", "sft", "ppo"),
        ("sft", "sft.start_from", "reward", "sft"),
    ],
)
def test_an_artifact_of_another_stage_is_refused(refused, finished, unreadable_models, stage, key, wrong, right):
    error = refused(
        stage, f"run.dir={finished.parent}/other", f"{key}={finished}/{wrong}", *inputs_but(key, finished), code=3
    )
    assert error == f"{finished}/{wrong} is an artifact of stages.{wrong}, and one of stages.{right} is needed"


def inputs_but(key: str, finished: Path) -> list[str]:
    return [f"inputs.{role}={finished}/{role}" for role in ("sft", "reward", "ppo") if f"inputs.{role}" != key]


def test_a_reward_model_from_another_sft_artifact_is_refused(refused, ready, config, unreadable_models, monkeypatch):
    run_dir = ready("ppo")
    monkeypatch.undo()
    shutil.rmtree(run_dir / "sft")
    sft.run(config("seed=5"))  # same data, same tokenizer, other weights
    error = refused("ppo", code=3)
    assert error.startswith("reward model's parent is sft ") and "ppo.allow_other_parent=true" in error


def test_a_reward_model_with_another_chat_template_is_refused(refused, config, model, tmp_path):
    (tmp_path / "chat.jinja").write_text((model / "chat_template.jinja").read_text() + " ")
    template = f"model.chat_template={tmp_path}/chat.jinja"
    sft.run(config(f"model.path={model}", "sft.num_epochs=1"))
    for stage in (sft, reward):
        stage.run(config(f"model.path={model}", template, f"run.dir={tmp_path}/other", "sft.num_epochs=1"))
    error = refused("ppo", f"inputs.reward={tmp_path}/other/reward", code=3)
    assert error.startswith("chat template differs: reward has ")


# ---- rewards that are functions


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("nowhere:score", "rule 'nowhere:score': cannot import 'nowhere'"),
        ("json:loads", "rule 'json:loads': 'json' has no function 'loads' marked with @rule"),
        ("tiny_world:fails", "rule 'tiny_world:fails' failed (ZeroDivisionError: division by zero); mend it"),
        ("tiny_world:too_few", "rule 'tiny_world:too_few' gave 1 scores for 8 responses; return one for each"),
    ],
)
def test_a_rule_that_cannot_score_is_named(refused, ready, rule, message):
    ready("ppo")
    assert refused("ppo", only_rule(rule), code=2).startswith(message)


@pytest.mark.parametrize("stage", ["reward", "evaluate"])
def test_a_gold_rule_that_is_not_there_is_told_before_the_work_begins(refused, ready, stage, unreadable_models):
    ready(stage)
    error = refused(stage, "data.gold_rule=tiny_world:nothing", code=2)
    assert error.startswith("rule 'tiny_world:nothing': 'tiny_world' has no function 'nothing' marked with @rule")


def test_a_gold_rule_that_fails_is_told_before_the_reward_model_trains(refused, ready, unreadable_models):
    ready("reward")
    error = refused("reward", "data.gold_rule=tiny_world:fails", code=2)
    assert error.startswith("rule 'tiny_world:fails' failed (ZeroDivisionError: division by zero); mend it")


# ---- numbers


def test_a_reward_that_is_nan_stops_ppo_names_the_prompts_and_keeps_the_checkpoint(refused, ready, world, monkeypatch):
    monkeypatch.setattr(tiny_world.not_a_number_later, "calls", 0, raising=False)
    run_dir = ready("ppo")
    error = refused("ppo", only_rule(NAN_LATER_RULE), code=4)
    assert re.match(rf"step 2 \(prompts {world}/prompts\.jsonl:\d+ and 7 more\): the reward of 1 of 8 responses", error)
    assert "Saved after 2 steps: the same command goes on from there" in error
    assert [path.name for path in (run_dir / "ppo" / "checkpoints").glob("step-*")] == ["step-000002"]


def test_a_reward_that_is_nan_on_heldout_prompts_stops_ppo(refused, ready):
    ready("ppo")
    error = refused("ppo", only_rule(NAN_RULE), code=4)
    assert error.startswith("held-out prompts: the reward of 8 of 8 responses is not finite (first: response 0, nan,")


def test_a_gold_rule_that_is_nan_stops_the_reward_stage_before_it_trains(refused, ready, unreadable_models):
    ready("reward")
    error = refused("reward", f"data.gold_rule={NAN_RULE}", code=4)
    assert error.startswith(f"data.gold_rule={NAN_RULE} gives [nan, nan, nan] to answers to '")


def test_a_gold_rule_that_is_nan_stops_evaluate(refused, ready):
    ready("evaluate")
    assert refused("evaluate", f"data.gold_rule={NAN_RULE}", code=4).startswith("gold of held-out response 0 is nan")


@pytest.mark.parametrize(("stage", "steps"), [("sft", 2), ("reward", 2)])
def test_a_loss_that_turns_nan_stops_training_names_the_batch_and_keeps_the_checkpoint(refused, ready, stage, steps):
    run_dir = ready(stage)
    error = refused(stage, f"{stage}.learning_rate=1e30", code=4)
    assert re.match(
        r"step \d: the (loss|norm of the gradient) is (nan|inf) on the batch that begins with '<\|user\|>\w+ is \w+\?",
        error,
    )
    assert "The last checkpoint is kept; a lower learning rate" in error
    kept = [path.parent for path in (run_dir / stage / "checkpoints").glob("checkpoint-*/manifest.json")]
    for path in kept:
        assert all(torch.isfinite(value).all() for value in load_file(path / "training.0.safetensors").values())
    assert [path.name for path in kept] == [f"checkpoint-{steps}"]


@pytest.mark.parametrize("key", ["learning_rate", "critic_learning_rate"])
def test_a_policy_or_critic_that_diverges_stops_ppo(refused, ready, key):
    ready("ppo")
    error = refused("ppo", f"ppo.{key}=1e30", code=4)
    assert re.match(r"step \d \(prompts .*prompts\.jsonl:\d+ and 7 more\): ", error)


# ---- where nothing can be written


@pytest.mark.parametrize("stage", STAGES)
def test_a_file_in_the_place_of_the_run_folder_is_told_and_left_alone(refused, finished, tmp_path, stage):
    (tmp_path / "file").write_text("mine")
    error = refused(stage, f"run.dir={tmp_path}/file", *inputs_but("", finished), code=2)
    assert error.startswith(f"cannot write {tmp_path}/file/{stage}") and "choose another run.dir" in error
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_may_not_be_written_is_told(refused, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "locked").mkdir(mode=0o500)
    error = refused("sft", f"run.dir={tmp_path}/locked/run", code=2)
    assert error.startswith(f"cannot write {tmp_path}/locked/run: no write permission")


@pytest.mark.parametrize(
    ("stage", "limit"),
    [
        ("sft", 100),
        ("sft", 8_000),
        ("sft", 100_000),
        ("reward", 60_000),
        ("ppo", 3_000),
        ("ppo", 100_000),
        ("evaluate", 20_000),
    ],
)
def test_a_disk_that_is_full_is_told_and_the_stage_can_run_again(tiny_command, refused, ready, tmp_path, stage, limit):
    run_dir = ready(stage)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        error = refused(stage, code=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert error.startswith(f"cannot write {run_dir}")
    assert error.endswith("or choose another run.dir. Results written earlier are untouched.")
    assert tiny_command(stage).code == 0
    assert not [path for path in (run_dir / stage).rglob("*") if path.name.startswith(".")]


@pytest.mark.parametrize("is_full_from_the_start", [True, False])
def test_a_disk_that_really_is_full_is_told(refused, finished, tmp_path, monkeypatch, is_full_from_the_start):
    """Before the work begins, or where others fill the disk meanwhile, when it is met."""
    if not is_full_from_the_start:
        monkeypatch.setattr(preflight, "free_disk", lambda stage: 1e12)
    (tmp_path / "small").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", tmp_path / "small"], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.decode().strip()}")
    try:
        error = refused("ppo", f"run.dir={tmp_path}/small/run", *inputs_but("", finished), code=2)
    finally:
        subprocess.run(["umount", "-l", tmp_path / "small"], check=True)
    if is_full_from_the_start:
        assert re.search(r"the disk of .*/small/run/ppo has 0\.6 MB left, and checkpoints and artifact need", error)
    else:
        assert error.startswith(f"cannot write {tmp_path}/small/run") and "no space left (0 MB free)" in error


# ---- real processes


def test_exit_codes_of_real_processes(start, ended, finished, tmp_path):
    inputs = inputs_but("", finished)
    processes = {
        0: start("sft", f"run.dir={tmp_path}/good"),
        2: start("sft", "sft.learning_rat=1"),
        3: start("ppo"),
        4: start("ppo", *inputs, only_rule(NAN_RULE), f"run.dir={tmp_path}/nan"),
    }
    outcomes = {code: ended(process) for code, process in processes.items()}
    assert {code: outcome.code for code, outcome in outcomes.items()} == {0: 0, 2: 2, 3: 3, 4: 4}
    assert not any("Traceback" in outcome.err for outcome in outcomes.values())
    assert [outcome.error is None for outcome in outcomes.values()] == [True, False, False, False]
    assert [path.name for path in tmp_path.iterdir()] == ["good", "nan"]  # Hydra leaves no folder of its own


def test_debug_shows_the_traceback_of_an_expected_error(tiny_command):
    outcome = tiny_command("sft", "data.demonstrations=none.jsonl", "run.debug=true")
    assert outcome.code == 2 and "Traceback" in outcome.err
    assert outcome.error.startswith("data.demonstrations=none.jsonl: no such file")
