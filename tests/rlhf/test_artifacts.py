import errno
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from rlhf import hashing
from rlhf.artifacts.commit import commit, input_record
from rlhf.artifacts.fit import check_parent, check_same, check_same_tokenizer
from rlhf.artifacts.freshness import move_aside, stale_reasons
from rlhf.artifacts.lineage import main
from rlhf.artifacts.manifest import load_manifest, manifest_sha256, render, verify
from rlhf.artifacts.provenance import git_state
from rlhf.errors import ArtifactError, NumericsError, UserError
from rlhf.files import writing

CONFIG = {"sft": {"learning_rate": 0.001, "num_epochs": 2}, "seed": 0}
DATA = [{"path": "data/toy/rankings.jsonl", "records": 640, "sha256": "d" * 64}]


def make_stage(run_dir: Path, stage: str, inputs: dict[str, Path] | None = None, **changes) -> Path:
    """A finished artifact with a few small files; inputs: role -> artifact."""
    folder = run_dir / stage
    (folder / "model").mkdir(parents=True)
    save_file({"weight": np.arange(16, dtype=np.float32)}, folder / "model" / "model.safetensors")
    (folder / "model" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1}}}))
    (folder / "model" / "tokenizer_config.json").write_text(json.dumps({"eos_token": "b", "chat_template": "{{ x }}"}))
    (folder / "metrics.jsonl").write_text(f'{{"step": 1, "stage": "{stage}"}}\n')
    (folder / "checkpoints" / "step-1").mkdir(parents=True)
    (folder / "checkpoints" / "step-1" / "state.pt").write_bytes(b"for resume only")
    arguments = {
        "config": CONFIG,
        "data": DATA,
        "inputs": [input_record(role, path, folder) for role, path in (inputs or {}).items()],
        "base_model": {"name": "tiny", "fingerprint": "b" * 64},
        "metrics": {"accuracy": 0.875},
        "seconds": 12.34,
    }
    commit(folder, stage, **{**arguments, **changes})
    return folder


def rewrite(folder: Path, **changes) -> None:
    """Changes fields of a manifest as a program would that knows how to seal it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(render({**manifest, **changes}))


@pytest.fixture
def sft(tmp_path):
    return make_stage(tmp_path, "sft")


# ---- the manifest


def test_manifest_lists_every_file_of_the_artifact_with_the_sha256_of_its_bytes(sft):
    manifest = verify(sft)
    weights = (sft / "model" / "model.safetensors").read_bytes()
    assert sorted(manifest["files"]) == [
        "metrics.jsonl",
        "model/model.safetensors",
        "model/tokenizer.json",
        "model/tokenizer_config.json",
    ]
    assert manifest["files"]["model/model.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert manifest["sizes"]["model/model.safetensors"] == len(weights)


def test_manifest_holds_the_fields_that_consumers_rely_on(sft):
    manifest = load_manifest(sft)
    assert (manifest["schema"], manifest["stage"], manifest["status"]) == (1, "sft", "complete")
    assert manifest["base_model"] == {"name": "tiny", "fingerprint": "b" * 64}
    assert manifest["data"] == DATA and manifest["inputs"] == [] and manifest["seconds"] == 12.3
    assert manifest["chat_template_sha256"] == hashlib.sha256(b"{{ x }}").hexdigest()
    assert set(manifest["versions"]) == {"python", "torch", "transformers", "trl", "peft", "datasets", "rlhf-stages"}
    assert {"created", "adapter", "tokenizer_sha256", "reward_norm", "config_sha256", "git"} <= set(manifest)


def test_inputs_are_named_by_relative_path_and_by_the_sha256_of_their_manifest(tmp_path, sft):
    reward = make_stage(tmp_path, "reward", {"sft": sft})
    expected = hashlib.sha256((sft / "manifest.json").read_bytes()).hexdigest()
    assert load_manifest(reward)["inputs"] == [{"role": "sft", "path": "../sft", "sha256": expected}]


def test_a_moved_run_still_verifies(tmp_path, sft):
    shutil.copytree(tmp_path / "sft", tmp_path / "elsewhere" / "sft")
    assert verify(tmp_path / "elsewhere" / "sft")["stage"] == "sft"


def test_a_metric_that_is_nan_is_stored_as_null_and_the_file_stays_strict_json(tmp_path):
    metrics = {"loss": float("nan"), "by_gap": [1.0, float("inf")], "accuracy": np.float32(0.5)}
    folder = make_stage(tmp_path, "sft", metrics=metrics)
    assert "NaN" not in (folder / "manifest.json").read_text()
    assert load_manifest(folder)["metrics"] == {"loss": None, "by_gap": [1.0, None], "accuracy": 0.5}


def test_a_reward_norm_that_is_nan_is_refused(tmp_path):
    with pytest.raises(NumericsError, match=r"reward_norm\.std is nan"):
        make_stage(tmp_path, "reward", reward_norm={"mean": 0.0, "std": float("nan")})


def test_a_finished_artifact_is_never_overwritten(sft):
    with pytest.raises(ArtifactError, match="holds a finished artifact already"):
        make_commit_again(sft)


def make_commit_again(folder):
    commit(folder, "sft", config={}, data=[], inputs=[], base_model=None, metrics={}, seconds=0)


def test_a_pickle_in_the_model_is_not_committed(tmp_path):
    folder = tmp_path / "sft"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "training_args.bin").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"training_args\.bin: is a pickle"):
        make_commit_again(folder)
    assert not (folder / "manifest.json").exists()


def test_a_kill_before_the_last_rename_leaves_no_artifact(tmp_path, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            make_stage(tmp_path, "sft")
    with pytest.raises(ArtifactError, match="not a finished artifact"):
        load_manifest(tmp_path / "sft")
    make_commit_again(tmp_path / "sft")  # what the kill left behind does not become part of the artifact
    assert not any("tmp" in name for name in verify(tmp_path / "sft")["files"])


def test_git_state_is_the_commit_and_whether_tracked_code_was_edited_and_null_outside_git(tmp_path):
    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(
            ["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True, text=True
        ).stdout

    code = tmp_path / "code.py"
    code.write_text("x = 1")
    assert git_state(code) is None
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "empty")
    assert git_state(code) is None  # a checkout that does not hold this code, e.g. a project around its .venv
    git("add", "code.py")
    git("commit", "-q", "-m", "code")
    assert git_state(code) == {"commit": git("rev-parse", "HEAD").strip(), "dirty": False}
    code.write_text("x = 2")
    assert git_state(code)["dirty"] is True


# ---- damage


def test_one_flipped_bit_anywhere_is_refused_and_the_file_named(sft):
    rng = random.Random(0)
    files = [path for path in sft.rglob("*") if path.is_file() and "checkpoints" not in path.parts]
    for path in files:
        good = path.read_bytes()
        for position in {0, len(good) - 1, *(rng.randrange(len(good)) for _ in range(25))}:
            bad = bytearray(good)
            bad[position] ^= 1 << rng.randrange(8)
            path.write_bytes(bad)
            with pytest.raises(ArtifactError, match=path.name):
                verify(sft)
        path.write_bytes(good)
    verify(sft)


def test_an_altered_file_is_named_with_both_hashes_and_the_remedy(sft):
    path = sft / "model" / "model.safetensors"
    said = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    found = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    with pytest.raises(ArtifactError) as error:
        verify(sft)
    assert str(error.value) == (
        f"{path}: altered, sha256 is {found}, manifest.json says {said}; copy it again or rerun "
        "python -m stages.sft run.force=true"
    )


def test_a_truncated_file_is_named_with_both_sizes(sft):
    path = sft / "model" / "model.safetensors"
    size = path.stat().st_size
    os.truncate(path, size - 1)
    with pytest.raises(
        ArtifactError, match=f"model.safetensors: truncated, {size - 1} bytes, manifest.json says {size};"
    ):
        verify(sft)


def test_a_missing_file_is_named(sft):
    (sft / "model" / "tokenizer.json").unlink()
    with pytest.raises(
        ArtifactError,
        match=r"tokenizer\.json: is missing; copy it again or rerun python -m stages\.sft run\.force=true",
    ):
        verify(sft)


def test_a_file_under_model_that_nobody_listed_is_refused_but_notes_beside_it_are_not(sft):
    (sft / "notes.txt").write_text("fine")
    verify(sft)
    (sft / "model" / "model-00001-of-00001.safetensors").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"model-00001-of-00001\.safetensors: is not listed .* could shadow"):
        verify(sft)


def test_a_symbolic_link_in_place_of_a_file_or_of_its_folder_is_refused(tmp_path, sft):
    path = sft / "model" / "model.safetensors"
    shutil.move(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match=r"model\.safetensors: is a symbolic link"):
        verify(sft)
    path.unlink()
    shutil.move(tmp_path / "elsewhere", path)
    shutil.move(sft / "model", tmp_path / "model")
    (sft / "model").symlink_to(tmp_path / "model")
    with pytest.raises(ArtifactError, match="model: is a symbolic link"):
        verify(sft)


@pytest.mark.parametrize("name", ["/etc/passwd", "../reward/model/x", "model/../../x", "", "model\\x", "a\0b"])
def test_a_listed_path_that_leads_out_of_the_artifact_is_refused(sft, name):
    rewrite(sft, files={name: "0" * 64}, sizes={name: 1})
    with pytest.raises(ArtifactError, match="is not a path inside the artifact"):
        verify(sft)


def test_an_absent_artifact_names_the_stage_to_run(tmp_path):
    with pytest.raises(ArtifactError, match=r"run/sft: not there; run python -m stages\.sft first"):
        verify(tmp_path / "run" / "sft")


def test_a_stopped_stage_is_told_apart_and_its_last_checkpoint_named(sft):
    (sft / "manifest.json").unlink()
    with pytest.raises(
        ArtifactError, match=r"no manifest.json; the stage was stopped, last checkpoint checkpoints/step-1\)"
    ):
        verify(sft)


def test_a_newer_schema_asks_for_an_update(sft):
    rewrite(sft, schema=7)
    with pytest.raises(ArtifactError, match="schema is 7, this version knows 1; update the program"):
        load_manifest(sft)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{\n  "schema": 1,\n  "stage" "sft"}', r"manifest\.json:3:11: not valid JSON"),
        (b'{"schema": NaN}', "NaN is not a JSON number"),
        (b"\xff\xfe", "byte 0 is not UTF-8"),
        (b"[]", "not the manifest of an artifact"),
        (b'{"files": {}}', "not the manifest of an artifact"),
        (b"[" * 100_000, r"manifest\.json"),
        (b"", r"manifest\.json:1:1: not valid JSON"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused_with_the_place(sft, content, message):
    (sft / "manifest.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        load_manifest(sft)


def test_a_sealed_manifest_without_a_needed_field_or_not_complete_is_refused(sft):
    rewrite(sft, status="partial")
    with pytest.raises(ArtifactError, match="status is partial"):
        load_manifest(sft)
    rewrite(sft, status="complete", files=["a"])
    with pytest.raises(ArtifactError, match="field 'files' is missing or not a dict"):
        load_manifest(sft)


# ---- fingerprints


def tiny_tokenizer(words: str):
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator([words], trainers.WordLevelTrainer(special_tokens=["<unk>", "<pad>", "<eos>"]))
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template="{{ messages }}\n", **special)


def test_fingerprints_of_tokenizer_and_template_survive_use_and_saving_again(tmp_path):
    from transformers import AutoTokenizer

    tiny_tokenizer("one two three").save_pretrained(tmp_path / "first")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "first")
    loaded(["one", "one two three"], padding=True, truncation=True, max_length=2)  # leaves its state in tokenizer.json
    loaded.padding_side = "left"
    loaded.save_pretrained(tmp_path / "second")
    saved = [(tmp_path / name / "tokenizer.json").read_bytes() for name in ("first", "second")]
    assert saved[0] != saved[1]
    for fingerprint in (hashing.tokenizer_sha256, hashing.chat_template_sha256):
        assert fingerprint(tmp_path / "first") == fingerprint(tmp_path / "second")
    assert hashing.chat_template_sha256(tmp_path / "first") == hashlib.sha256(b"{{ messages }}\n").hexdigest()


def test_another_vocabulary_end_token_or_template_has_another_fingerprint(tmp_path):
    first, other_words, other_end = tiny_tokenizer("one two"), tiny_tokenizer("one three"), tiny_tokenizer("one two")
    other_end.eos_token = "<pad>"
    other_end.chat_template = "{{ messages }} \n"
    for name, tokenizer in {"first": first, "words": other_words, "end": other_end}.items():
        tokenizer.save_pretrained(tmp_path / name)
    assert len({hashing.tokenizer_sha256(tmp_path / name) for name in ("first", "words", "end")}) == 3
    assert hashing.chat_template_sha256(tmp_path / "first") == hashing.chat_template_sha256(tmp_path / "words")
    assert hashing.chat_template_sha256(tmp_path / "first") != hashing.chat_template_sha256(tmp_path / "end")


def test_a_template_has_one_fingerprint_in_its_own_file_and_in_the_config(tmp_path):
    for name in ("own", "config", "none"):
        (tmp_path / name).mkdir()
    (tmp_path / "own" / "chat_template.jinja").write_bytes(b"{{ x }}\r\n")
    (tmp_path / "config" / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ x }}\r\n"}))
    assert hashing.chat_template_sha256(tmp_path / "own") == hashing.chat_template_sha256(tmp_path / "config")
    assert hashing.chat_template_sha256(tmp_path / "none") is None


def test_a_folder_without_tokenizer_or_safetensors_has_no_fingerprint(tmp_path):
    with pytest.raises(ArtifactError, match="no tokenizer"):
        hashing.tokenizer_sha256(tmp_path)
    with pytest.raises(ArtifactError, match=r"no \*\.safetensors"):
        hashing.weights_fingerprint(tmp_path)


def test_weights_fingerprint_changes_with_a_weight_and_not_with_the_readme(sft):
    model = sft / "model"
    before = hashing.weights_fingerprint(model)
    (model / "README.md").write_text("hello")
    assert hashing.weights_fingerprint(model) == before
    save_file({"weight": np.ones(16, dtype=np.float32)}, model / "model.safetensors")
    assert hashing.weights_fingerprint(model) != before


def test_config_fingerprint_ignores_the_order_and_nesting_of_keys():
    assert hashing.config_sha256({"a": {"b": 1, "c": [1]}}) == hashing.config_sha256({"a.c": (1,), "a.b": 1})
    assert hashing.config_sha256({"a": 1}) != hashing.config_sha256({"a": 2})


# ---- what fits what


def test_another_tokenizer_is_refused_naming_both_roles_values_and_the_remedy():
    policy = {"tokenizer_sha256": "a" * 64, "chat_template_sha256": "c" * 64}
    reward = {"tokenizer_sha256": "b" * 64, "chat_template_sha256": "c" * 64}
    check_same_tokenizer("policy", policy, "reward model", policy, "train it again")
    with pytest.raises(ArtifactError) as error:
        check_same_tokenizer("policy", policy, "reward model", reward, "train it again")
    assert str(error.value) == f"tokenizer differs: policy has {'a' * 12}, reward model has {'b' * 12}; train it again"
    with pytest.raises(ArtifactError, match="chat template differs: policy has cccccccccccc, reward model has none"):
        check_same_tokenizer(
            "policy", policy, "reward model", {**policy, "chat_template_sha256": None}, "train it again"
        )


def test_an_adapter_on_another_base_is_refused():
    a, b = ({"base_model": {"name": "tiny", "fingerprint": digit * 8}} for digit in "12")
    with pytest.raises(ArtifactError, match=r"base model differs: .*11111111.*22222222.*; use its base"):
        check_same("base_model", "adapter", a, "policy", b, "use its base")


def test_a_reward_model_of_another_sft_artifact_is_refused(tmp_path, sft):
    other = make_stage(tmp_path / "other", "sft", metrics={"accuracy": 0.5})
    reward = load_manifest(make_stage(tmp_path, "reward", {"sft": sft}))
    check_parent(reward, sft)
    with pytest.raises(ArtifactError) as error:
        check_parent(reward, other)
    assert manifest_sha256(sft)[:12] in str(error.value) and manifest_sha256(other)[:12] in str(error.value)
    assert "ppo.allow_other_parent=true" in str(error.value)


# ---- what must run again


def test_a_stage_with_the_same_config_data_and_inputs_is_up_to_date(sft):
    assert stale_reasons(sft, CONFIG, DATA, []) == []


def test_a_stage_that_never_ran_or_was_stopped_says_so(tmp_path, sft):
    assert stale_reasons(tmp_path / "reward", CONFIG, DATA, []) == ["never ran"]
    (sft / "manifest.json").unlink()
    assert stale_reasons(sft, CONFIG, DATA, []) == ["stopped before it finished"]


def test_changed_config_keys_are_named_with_both_values(sft):
    config = {"sft": {"learning_rate": 0.002, "num_epochs": 2, "packing": True}, "seed": 0}
    assert stale_reasons(sft, config, DATA, []) == [
        "sft.learning_rate 0.001 -> 0.002",
        "sft.packing (not set) -> true",
    ]


def test_changed_new_and_dropped_data_is_named(sft):
    changed = [{**DATA[0], "sha256": "e" * 64}, {"path": "data/more.jsonl", "records": 1, "sha256": "f" * 64}]
    assert stale_reasons(sft, CONFIG, changed, []) == ["data/toy/rankings.jsonl changed", "data/more.jsonl is new"]
    assert stale_reasons(sft, CONFIG, [], []) == ["data/toy/rankings.jsonl is no longer used"]


def test_a_changed_input_is_named(tmp_path, sft):
    reward = make_stage(tmp_path, "reward", {"sft": sft})
    other = make_stage(tmp_path / "other", "sft", metrics={"accuracy": 0.5})
    assert stale_reasons(reward, CONFIG, DATA, [input_record("sft", sft, reward)]) == []
    assert stale_reasons(reward, CONFIG, DATA, [input_record("sft", other, reward)]) == ["input sft changed"]


def test_an_altered_artifact_is_not_up_to_date(sft):
    (sft / "metrics.jsonl").write_text("")
    (reason,) = stale_reasons(sft, CONFIG, DATA, [])
    assert "metrics.jsonl: truncated" in reason


def test_moving_aside_keeps_every_artifact_under_a_name_of_its_own(tmp_path):
    created = []
    for _ in range(2):
        make_stage(tmp_path, "sft")
        rewrite(tmp_path / "sft", created="2026-01-02T03:04:05Z")
        created.append(move_aside(tmp_path / "sft"))
    replaced = tmp_path / "replaced"
    assert created == [replaced / "sft-20260102T030405Z", replaced / "sft-20260102T030405Z-2"]
    assert all(verify(path)["stage"] == "sft" for path in created) and not (tmp_path / "sft").exists()


def test_moving_a_stopped_attempt_aside_keeps_its_checkpoints(sft):
    (sft / "manifest.json").unlink()
    assert (move_aside(sft) / "checkpoints" / "step-1" / "state.pt").exists()


# ---- a disk that does not take it


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the always-full device of Linux")
def test_a_full_disk_is_one_line_with_the_path_and_the_free_space():
    message = r"cannot write /dev/full: no space left \([\d,]+ MB free\); free some space"
    with pytest.raises(UserError, match=message), writing("/dev/full"), open("/dev/full", "w") as file:
        file.write("x")


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EACCES, "no write permission"), (errno.EROFS, "is read-only"), (errno.EDQUOT, "quota is used up")],
)
def test_a_folder_that_cannot_be_written_is_named_with_the_reason(tmp_path, number, words):
    with pytest.raises(UserError, match=f"cannot write {tmp_path}: .*{words}.*run.dir"), writing(tmp_path):
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_recognised_in_the_words_of_torch_and_safetensors(tmp_path, error):
    with pytest.raises(UserError, match="no space left"), writing(tmp_path):
        raise error


def test_an_error_that_is_not_about_writing_passes_through(tmp_path):
    with pytest.raises(ValueError, match="other"), writing(tmp_path):
        raise ValueError("other")


# ---- python -m rlhf.artifacts show


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    """A run of three stages, as the current folder's `run`."""
    monkeypatch.chdir(tmp_path)
    sft = make_stage(Path("run"), "sft", metrics={"eval/loss": 1.25})
    reward = make_stage(Path("run"), "reward", {"sft": sft})
    make_stage(Path("run"), "ppo", {"sft": sft, "reward": reward}, data=[], metrics={"win_rate": 0.8125})
    return Path("run")


def show(path, capsys) -> tuple[int, str, str]:
    code = main(["show", str(path)])
    return code, *capsys.readouterr()


def test_show_prints_an_artifact_and_its_ancestors_once_each(run_dir, capsys):
    code, out, err = show(run_dir / "ppo", capsys)
    assert (code, err) == (0, "")
    lines = [line.strip("│├└─ ") for line in out.splitlines()]
    digest = manifest_sha256(run_dir / "sft")[:12]
    assert [line.split()[0] for line in lines if line.split()[0] in ("sft", "reward", "ppo")] == [
        "ppo",
        "sft",
        "reward",
        "sft",
    ]
    assert lines[0].startswith("ppo  run/ppo  20") and lines[0].endswith("verified")
    assert "metrics  win_rate 0.8125" in lines and "metrics  eval/loss 1.25" in lines
    assert lines.count("data  data/toy/rankings.jsonl  640 records  dddddddddddd") == 2  # of sft and of reward
    assert lines[-1].startswith("sft  run/sft") and digest in lines[-1] and lines[-1].endswith("as above")


def test_show_names_the_code_of_rules(tmp_path, capsys):
    rule = {"key": "ppo.rewards", "rule": "my_rules:short", "path": "my_rules.py", "sha256": "e" * 64}
    folder = make_stage(tmp_path, "ppo", data=[], metrics={}, rules=[rule])
    _, out, _ = show(folder, capsys)
    assert "rule  my_rules:short  my_rules.py  eeeeeeeeeeee" in out


def test_show_of_a_run_folder_starts_at_the_artifacts_that_nobody_consumed(run_dir, capsys):
    code, out, _ = show(run_dir, capsys)
    assert code == 0
    assert out == show(run_dir / "ppo", capsys)[1]


def test_show_tells_of_an_ancestor_that_vanished_changed_or_was_altered(run_dir, capsys):
    was = manifest_sha256(run_dir / "sft")[:12]
    (run_dir / "reward" / "metrics.jsonl").write_text("altered")
    shutil.rmtree(run_dir / "sft")
    code, out, _ = show(run_dir / "ppo", capsys)
    assert code == 0
    assert f"sft  run/sft  vanished, was {was}" in out
    assert "altered: run/reward/metrics.jsonl: truncated" in out
    make_stage(run_dir, "sft", metrics={"eval/loss": 9.0})
    _, out, _ = show(run_dir / "ppo", capsys)
    assert f"sft  run/sft  changed, was {was}, is {manifest_sha256(run_dir / 'sft')[:12]}" in out


def test_show_finds_an_ancestor_that_was_moved_aside(run_dir, capsys):
    moved = move_aside(run_dir / "sft")
    make_stage(run_dir, "sft", metrics={"eval/loss": 9.0})
    code, out, _ = show(run_dir / "ppo", capsys)
    assert code == 0 and f"sft  {moved}  " in out and "changed" not in out


def test_show_exits_3_with_one_line_when_the_artifact_itself_is_refused(run_dir, capsys):
    (run_dir / "ppo" / "metrics.jsonl").write_text("altered")
    code, out, err = show(run_dir / "ppo", capsys)
    assert code == 3 and "altered" in out
    assert err.startswith("error: run/ppo/metrics.jsonl: truncated") and err.count("\n") == 1
    code, out, err = show("nowhere", capsys)
    assert (code, out) == (3, "") and err.startswith("error: nowhere: not there")


@pytest.mark.slow
def test_show_runs_as_a_module(run_dir):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "rlhf.artifacts", "show", "run/ppo"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "") and "run/reward" in done.stdout
    assert all(character.isprintable() or character == "\n" for character in done.stdout)
