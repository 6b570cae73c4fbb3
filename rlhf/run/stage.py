"""One run of one stage: what it depends on, whether it must run, its folder, and the artifact it becomes."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rlhf.artifacts.commit import commit, input_record
from rlhf.artifacts.dependencies import Needs, rule_records, values_read
from rlhf.artifacts.differences import ChangedRule, Difference
from rlhf.artifacts.freshness import move_aside, stale_reasons
from rlhf.artifacts.manifest import CHECKPOINTS, MANIFEST, TRAIN_PROMPTS, is_complete, manifest_sha256, verify
from rlhf.config.checks import check_split
from rlhf.config.keys import as_dict
from rlhf.config.schema import Config, Resume
from rlhf.console import say
from rlhf.data.load import DataReport, check_leakage, parse_prompt, parse_sources, prompt_keys, read_records
from rlhf.data.sources import is_version, source_sha256
from rlhf.distributed import is_main, on_main, world_size
from rlhf.errors import ArtifactError, UserError
from rlhf.files import write_durably, writing
from rlhf.hashing import flat
from rlhf.run.unfinished import differences_from, different, foreign, is_begun, is_trained, may_go_on
from rlhf.tracking.tracker import SilentTracker, Tracker

WITHOUT_EFFECT = ("deepspeed.gather_share",)  # of how the work is split


class Stage:
    """The folder of one stage and everything that decides what will be in it.

    inputs: role -> path of the artifacts it consumes; each is verified, whole and unaltered, before anything else.
    """

    def __init__(self, needs: Needs, config: Config, inputs: dict[str, str]):
        check_split(config, needs.batches, world_size())
        self.needs, self.name, self.config = needs, needs.name, config
        self.run_dir = Path(config.run.dir)
        self.folder = self.run_dir / self.name
        self.input_paths = {role: Path(path) for role, path in inputs.items()}
        self._require_other_folder()
        self.manifests = {role: verify_stage(path, role, self.name) for role, path in self.input_paths.items()}
        self.inputs = [input_record(role, path, self.folder) for role, path in self.input_paths.items()]
        self.inputs += [input_record(kind, path, self.folder) for kind, path in self._versions()]
        self.values = values_read(needs, config, self.manifests)
        self.rules = rule_records(needs, config)
        self.sources = self._hash_sources()
        self.report = DataReport()
        self.started = time.monotonic()

    def _require_other_folder(self) -> None:
        """Else the input would move aside as the old artifact of this folder."""
        for role, path in self.input_paths.items():
            if path.resolve() == self.folder.resolve():
                raise UserError(
                    f"{self.name}.{role}={path} is the folder that this run writes; choose another run.dir, and name "
                    "the other artifacts in inputs.*"
                )

    @property
    def model_folder(self) -> Path:
        return self.folder / "model"

    @property
    def checkpoint_folder(self) -> Path:
        return self.folder / CHECKPOINTS

    def reasons(self) -> list[str]:
        """Why the stage must run, a sentence each; [] where its artifact is up to date."""
        return stale_reasons(self.folder, self.values, self.sources, self.inputs, self.rules)

    def open(self, replace: bool = False) -> bool:
        """Makes the folder ready; false where the artifact in it is up to date and nothing is to be done.

        replace: an artifact, or a stopped run, of another config moves aside. Otherwise it raises ArtifactError.
        """
        return on_main(lambda: self._open(replace))

    def _open(self, replace: bool) -> bool:
        reasons = self.reasons()
        replace = replace or self.config.run.force
        if not reasons and not self.config.run.force:
            say(f"{self.name}: up to date in {self.folder} (run.force=true runs it again)")
            return False
        if is_complete(self.folder):
            self._replace(reasons, replace)
        elif is_begun(self.folder):
            self._resume_or_restart(replace)
        with writing(self.checkpoint_folder):
            self.checkpoint_folder.mkdir(parents=True, exist_ok=True)
        write_durably(self._record_path, json.dumps(self._record()))
        write_durably(self.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(self.config)))
        say(f"{self.name}: {'; '.join(reasons) or 'run.force=true'} -> {self.folder}")
        return True

    def finish(
        self,
        tracker: Tracker | None = None,
        *,
        base_model: dict | None,
        metrics: dict,
        reward_norm: dict | None = None,
        adapter: dict | None = None,
        remark: str = "",
    ) -> Path:
        """Seals the folder as an artifact, links it to its W&B run, and removes the checkpoints, now of no use.

        remark: what the person at the terminal should know of the result.
        """
        facts = {"base_model": base_model, "metrics": metrics, "reward_norm": reward_norm, "adapter": adapter}
        on_main(lambda: self._finish(tracker, facts, remark))
        return self.folder

    def _finish(self, tracker: Tracker | None, facts: dict, remark: str) -> None:
        write_durably(self.folder / "data_report.json", json.dumps(self.report.as_dict(), indent=1))
        self._require_same_inputs()
        commit(
            self.folder,
            self.name,
            config=self.values,
            data=self._data_records(),
            inputs=self.inputs,
            rules=self.rules,
            seconds=time.monotonic() - self.started,
            **facts,
        )
        if tracker is not None:
            tracker.link_artifact(self.folder / MANIFEST, self.name)
            tracker.end_display()
        shutil.rmtree(self.checkpoint_folder)
        say(f"  wrote {self.folder}{_figures(facts['metrics'])}")
        say(f"{self.name}: done in {time.monotonic() - self.started:.0f} s. {remark}".removesuffix(". "))

    def claim_prompts(self, train: list) -> None:
        """Records the prompts of the training records, so that no later stage is evaluated on them.

        Raises UserError when held-out prompts are among them.
        """
        keys = prompt_keys(train)
        if self.config.data.heldout is not None:
            heldout = [prompt for prompt, _ in read_records(self.config.data, DataReport(), "heldout", parse_prompt)]
            check_leakage(prompt_keys(heldout), keys, self.name)
        on_main(lambda: write_durably(self.folder / TRAIN_PROMPTS, "".join(f"{key}\n" for key in sorted(keys))))

    def note(self, line: str) -> None:
        """Says what the stage is doing now."""
        say(f"  {line}")

    def print_report(self) -> None:
        """Shows what was read, before the long work begins."""
        for line in self.report.lines():
            say(f"  {line}")

    def tracker(self, total_steps: int, headline: tuple[str, ...], first_step: int = 0) -> Tracker | SilentTracker:
        """Where the metrics of this run go: metrics.jsonl, the terminal, W&B; from rank 0 alone."""
        if not is_main():
            return SilentTracker(self.name)
        return Tracker(
            self.folder,
            self.name,
            total_steps,
            self.config.tracking,
            as_dict(self.config),
            group=self.run_dir.name,
            first_step=first_step,
            headline=headline,
        )

    def _sources(self) -> list[tuple[str, str]]:
        """(kind, path) of all data that the stage reads, e.g. ("rankings", "data/toy/rankings.jsonl")."""
        return [
            (kind, source.path)
            for kind in self.needs.sources
            if getattr(self.config.data, kind) is not None
            for source in parse_sources(getattr(self.config.data, kind), f"data.{kind}")
        ]

    def _hash_sources(self) -> list[dict]:
        return [{"path": path, "sha256": source_sha256(path, f"data.{kind}")} for kind, path in self._sources()]

    def _versions(self) -> list[tuple[str, str]]:
        """Those of them that are versions of a collection: artifacts, which the manifest names as inputs."""
        return [(kind, os.path.expanduser(path)) for kind, path in self._sources() if is_version(path)]

    def _require_same_inputs(self) -> None:
        """Raises ArtifactError where an artifact was replaced meanwhile; those of other run folders are not locked."""
        for record in self.inputs:
            path = self.folder / record["path"]
            if not is_complete(path) or manifest_sha256(path) != record["sha256"]:
                what = f"input {record['role']} ({os.path.normpath(path)})"
                raise self._changed_meanwhile(what)

    def _data_records(self) -> list[dict]:
        """What was read, with the hashes taken at the start. Raises ArtifactError when a source changed meanwhile."""
        records = {record["path"]: record for record in self.report.sources()}
        for source in self.sources:
            record = records.setdefault(source["path"], {**source, "records": None})
            if record["sha256"] != source["sha256"]:
                raise self._changed_meanwhile(source["path"])
        return list(records.values())

    def _changed_meanwhile(self, what: str) -> ArtifactError:
        return ArtifactError(f"{what} changed while {self.name} was running; run it again with run.resume=never")

    @property
    def _record_path(self) -> Path:
        return self.checkpoint_folder / "run.json"

    def _record(self) -> dict:
        split = flat({"deepspeed": as_dict(self.config.deepspeed), "world_size": world_size()})
        values = self.values | {key: value for key, value in split.items() if key not in WITHOUT_EFFECT}
        return {"config": values, "data": self.sources, "inputs": self.inputs, "rules": self.rules}

    def _replace(self, reasons: list[str], allowed: bool) -> None:
        if not allowed:
            raise ArtifactError(
                f"{self.folder} holds an artifact made otherwise ({'; '.join(reasons)}). Choose another run.dir, or "
                "run.force=true to make it anew (the old one moves aside)"
            )
        say(f"{self.name}: the old artifact moves to {move_aside(self.folder)}")

    def _resume_or_restart(self, replace: bool) -> None:
        """Leaves the folder of a stopped run of this same config, and one in which nothing was trained, as they are;
        moves any other aside, if that is wanted."""
        run, is_trained_here = self.config.run, is_trained(self.checkpoint_folder)
        if self._record_path.exists() and not is_trained_here:
            shutil.rmtree(self.model_folder, ignore_errors=True)
            return
        found = self._differences_from_stopped_run()
        if run.resume is Resume.never or run.force or (found and replace):
            say(f"{self.name}: an unfinished run moves to {move_aside(self.folder)}")
        elif may_go_on(found, self.needs, run):
            how = "; ".join(map(str, found))
            say(f"{self.name}: goes on otherwise shared out ({how}); no longer bit for bit the same run")
        elif not is_trained_here:
            raise foreign(self.folder)
        elif found:
            raise different(self.folder, self.needs, found)

    def _differences_from_stopped_run(self) -> list[Difference]:
        if not self._record_path.exists():
            return [Difference(str(self._record_path), "it does not say what it was")]
        found = differences_from(self._record_path, self.needs, self._record())
        is_mended = self.config.run.mended_rule
        return [difference for difference in found if not (is_mended and isinstance(difference, ChangedRule))]


def _figures(metrics: dict) -> str:
    """The headline figures of an artifact for the terminal, those that there are."""
    shown = [f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, int | float)]
    return f": {', '.join(shown)}" if shown else ""


def verify_stage(path: Path, role: str, stage: str) -> dict[str, Any]:
    """The manifest of a whole artifact that is what its role asks for. role: e.g. "sft" or "reward_1".

    stage: which one asks. What it starts from is an earlier artifact of its own kind.
    """
    manifest, wanted = verify(path), stage if role == "start_from" else role.split("_")[0]
    if manifest["stage"] != wanted:
        raise ArtifactError(
            f"{path} is an artifact of stages.{manifest['stage']}, and one of stages.{wanted} is needed"
        )
    return manifest
