"""What SFT begins with and ends with: a whole model or an adapter on a base, and its files."""

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.config.keys import as_dict
from rlhf.config.schema import AdapterKind, Config
from rlhf.distributed import on_main
from rlhf.errors import UserError
from rlhf.files import write_durably
from rlhf.hashing import json_sha256, weights_fingerprint
from rlhf.models.adapters import Base, folder_base, load_base_model, lora_config, require_same_kind
from rlhf.models.opening import load_trunk, require_trust, starting_adapter
from rlhf.models.policies import (
    build_policy,
    enable_gradient_checkpointing,
    fit_embeddings,
    load_policy,
    require_context,
    stop_ids,
)
from rlhf.models.reading import Reading
from rlhf.models.saving import save_checked, save_tokenizer
from rlhf.models.sharding import placed, share_trunk
from rlhf.models.trunk import PolicyView, Trunk
from rlhf.run.stage import Stage
from rlhf.text.chat_template import pin_template
from rlhf.text.tokenizer import load_tokenizer, train_tokenizer
from rlhf.training.sft import texts_of
from rlhf.training.trial import require_usable


@dataclass(frozen=True)
class Start:
    """What SFT begins with. base_model: what the manifest says of it; trunk, base: of an adapter, else None."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    base_model: dict[str, str]
    trunk: Trunk | None = None
    base: Base | None = None


def all_inputs(cfg: Config) -> dict[str, str]:
    """The artifacts that this run of SFT consumes, by role."""
    return {} if cfg.sft.start_from is None else {"start_from": cfg.sft.start_from}


def load_start(cfg: Config, stage: Stage, demonstrations: list) -> Start:
    """The model to start from, whole or with an adapter, and its tokenizer."""
    load = load_whole_model if cfg.adapter.kind is AdapterKind.none else load_with_adapter
    start = load(cfg, stage, pinned_tokenizer(cfg, demonstrations, started(stage)))
    require_context(start.model, cfg.data)
    return start


def pinned_tokenizer(cfg: Config, demonstrations: list, now: datetime) -> PreTrainedTokenizerBase:
    """The tokenizer of an earlier SFT artifact, a new one, or that of model.path; its chat template as it stays.

    demonstrations: of the training split. now: the date that the template writes, where it writes one.
    """
    if cfg.sft.start_from is not None:
        folder = Path(cfg.sft.start_from) / "model"
        tokenizer = load_tokenizer(str(folder), trust_remote_code=cfg.model.trust_remote_code)
    elif cfg.model.path is None:
        tokenizer = train_tokenizer(texts_of(demonstrations), cfg.model.scratch.vocab_size)
    else:
        tokenizer = path_tokenizer(cfg)
    options = {} if cfg.sft.start_from is not None else cfg.model.chat_template_kwargs
    dialogues = (demonstration.messages for demonstration in demonstrations if demonstration.text is None)
    pin_template(tokenizer, dialogues, options, now)
    return tokenizer


def started(stage: Stage) -> datetime:
    """When the run began, to the day: a stopped run that goes on later keeps the date that its prompts carry."""

    def read_or_write() -> str:
        file = stage.checkpoint_folder / "date.txt"
        if not file.exists():
            write_durably(file, datetime.now().date().isoformat())
        return file.read_text()

    return datetime.fromisoformat(on_main(read_or_write))


def load_whole_model(cfg: Config, stage: Stage, tokenizer) -> Start:
    """A model all of whose weights train: an earlier SFT artifact's, a new one, or that of model.path."""
    how = Reading.of_config(cfg)
    if "start_from" in stage.manifests:
        folder = stage.input_paths["start_from"] / "model"
        model = load_policy(folder, how)
        base_model = stage.manifests["start_from"]["base_model"]
    elif cfg.model.path is None:
        model = build_policy(cfg.model.scratch, tokenizer, how.dtype, how.attention)
        base_model = {"name": "scratch", "fingerprint": json_sha256({**as_dict(cfg.model.scratch), "seed": cfg.seed})}
    else:
        model = load_policy(cfg.model.path, how, cfg.model.revision)
        base_model = {"name": cfg.model.path, "fingerprint": fingerprint(cfg.model.path, model)}
    fit_embeddings(model, tokenizer)
    name_tokens(model, tokenizer)
    model = placed(cfg, model)
    require_usable(model)
    if cfg.model.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    return Start(model, tokenizer, base_model)


def name_tokens(model: PreTrainedModel, tokenizer) -> None:
    """Tells a model's own files the tokens of its tokenizer: whoever serves it stops where turns end."""
    model.generation_config.eos_token_id = stop_ids(model, tokenizer)
    for settings in (model.config, model.generation_config):
        settings.bos_token_id = tokenizer.bos_token_id
    model.config.eos_token_id = tokenizer.eos_token_id


def load_with_adapter(cfg: Config, stage: Stage, tokenizer) -> Start:
    """A frozen base with the adapter that trains: fresh, or a copy of the one that an earlier SFT artifact holds."""
    how = Reading.of_config(cfg)
    if "start_from" in stage.manifests:
        path, manifest = stage.input_paths["start_from"], stage.manifests["start_from"]
        trunk, base = load_trunk(path, manifest, cfg.adapter.kind, tokenizer, how)
        require_usable(trunk.model)
        share_trunk(cfg, trunk, cfg.sft.micro_batch_size)
        config, weights = starting_adapter(cfg, path, manifest, trunk, cfg.adapter.dropout)
    else:
        trunk, base = path_trunk(cfg, tokenizer, how)
        require_usable(trunk.model)
        share_trunk(cfg, trunk, cfg.sft.micro_batch_size)
        config, weights = lora_config(cfg.adapter, trunk.model), None
    trunk.add("default", config, weights, trains=True)  # peft's own name: its loaders look for it
    if cfg.model.gradient_checkpointing:
        trunk.enable_gradient_checkpointing()
    return Start(trunk.peft, tokenizer, base.record, trunk, base)


def path_tokenizer(cfg: Config) -> PreTrainedTokenizerBase:
    """The tokenizer of model.path."""
    return load_tokenizer(cfg.model.path, cfg.model.revision, cfg.model.chat_template, cfg.model.trust_remote_code)


def path_trunk(cfg: Config, tokenizer, how: Reading) -> tuple[Trunk, Base]:
    """model.path, frozen. What it is on the hub is known by its commit, once it was read."""
    path = cfg.model.path
    base = folder_base(path, path) if Path(path).is_dir() else Base(path, cfg.model.revision, path, "")
    model = load_base_model(base, tokenizer, cfg.adapter.kind, how)
    if not base.fingerprint:
        commit = fingerprint(path, model)
        base = replace(base, revision=commit, fingerprint=commit)
    return Trunk(model), base


def require_base(cfg: Config, stage: Stage) -> None:
    """Raises UserError where there is nothing that an adapter could stand on, ArtifactError where it is another's."""
    for role, manifest in stage.manifests.items():
        require_trust(cfg, role, manifest)
        require_same_kind(role, manifest, cfg.adapter.kind)
    if cfg.adapter.kind is not AdapterKind.none and cfg.model.path is None and not stage.manifests:
        raise UserError(
            f"adapter={cfg.adapter.kind.value} needs a trained model to stand on, and model.path=null begins with "
            "random weights. Train them all first (python -m stages.sft run.dir=outputs/base), then "
            "model.path=outputs/base/sft/model"
        )


def fingerprint(path: str, model) -> str:
    """What the base model is: the hash of its weights, or the hub's commit."""
    return weights_fingerprint(path) if Path(path).is_dir() else model.config._commit_hash


def save(cfg: Config, stage: Stage, start: Start) -> dict | None:
    """Writes the model folder and reads it again; returns the adapter's record for the manifest. Called by all ranks.

    Raises ArtifactError where the files hold something else than what was trained.
    """
    save_tokenizer(start.tokenizer, stage.folder)
    model = start.model if start.trunk is None else PolicyView(start.trunk, "default")
    return save_checked(model, start.base, cfg.adapter.kind, stage.folder, Reading.of_config(cfg))
