"""The policies that answers are sampled from: SFT and PPO artifacts, a model's folder, a hub id."""

from dataclasses import dataclass
from pathlib import Path

from rlhf.artifacts.lineage import ancestry
from rlhf.artifacts.manifest import CHECKPOINTS, TRAIN_PROMPTS, is_complete, manifest_sha256, verify
from rlhf.config.schema import DataConfig, LongPrompts, OnError
from rlhf.data.sources import looks_like_hub_id
from rlhf.errors import ArtifactError, UserError

# How a policy reads prompts where no artifact says it: that of conf/config.yaml's stages, with room for long answers.
SHARES = {"valid_share": 0.1, "test_share": 0.1}
LIMITS = {"max_prompt_tokens": 1024, "max_response_tokens": 512, "long_prompts": LongPrompts.cut}


@dataclass(frozen=True)
class PolicySource:
    """A policy by its path or hub id; where it is an artifact, with its verified manifest."""

    path: str
    manifest: dict | None
    manifest_sha256: str | None


def find_policy(path: str) -> PolicySource:
    """Raises ArtifactError for an artifact that is not whole or no policy's, UserError for what can be no model."""
    if not (is_complete(path) or (Path(path) / CHECKPOINTS).is_dir()):
        require_model(path)
        return PolicySource(path, None, None)
    manifest = verify(path)
    if manifest["stage"] not in ("sft", "ppo"):
        raise ArtifactError(f"{path} is an artifact of {manifest['stage']}, not a policy; name one of sft or ppo")
    return PolicySource(path, manifest, manifest_sha256(path))


def require_model(path: str) -> None:
    """Raises UserError for what is neither a folder nor the id of a model on the hub."""
    if not Path(path).is_dir() and not looks_like_hub_id(path):
        raise UserError(
            f"--policy {path}: no such folder, and no hub id (OWNER/NAME). Paths are relative to the folder you start "
            f"from ({Path.cwd()})"
        )


def data_settings(sources: list[PolicySource], **changes) -> DataConfig:
    """How prompts are split and cut: as the first artifact among the policies was trained. changes: those not None."""
    trained = next((source.manifest["config"] for source in sources if source.manifest), {})
    settings = {key: trained.get(f"data.{key}", value) for key, value in {**SHARES, **LIMITS}.items()}
    mapped = [key for key in trained if key.startswith("data.fields.")]
    settings["fields"] = {key.removeprefix("data.fields."): trained[key] for key in mapped}
    settings["long_prompts"] = LongPrompts(settings["long_prompts"])
    given = {key: value for key, value in changes.items() if value is not None}
    return DataConfig(**{"on_error": OnError.error, "heldout": None, **settings, **given})


def trained_prompts(sources: list[PolicySource]) -> set[str]:
    """The keys of all prompts that the artifacts among the policies, and what they came from, were trained on."""
    paths = {path for source in sources if source.manifest for path in ancestry(Path(source.path))}
    files = [path / TRAIN_PROMPTS for path in paths if (path / TRAIN_PROMPTS).exists()]
    return {key for file in files for key in file.read_text().split()}


def load(source: PolicySource, trust_remote_code: bool = False):
    """(policy, tokenizer), where models live. Raises UserError where they cannot be read."""
    from rlhf.text.tokenizer import load_tokenizer

    trained = (source.manifest or {"config": {}})["config"]
    if trained.get("model.trust_remote_code") and not trust_remote_code:
        raise UserError(
            f"{source.path}: was trained with model.trust_remote_code=true, so its model may run its own code. "
            "Read that, then add --trust-remote-code"
        )
    folder = str(Path(source.path) / "model") if source.manifest else source.path
    try:
        tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
        return load_model(source, tokenizer, trust_remote_code), tokenizer
    except UserError as error:
        raise UserError(str(error).replace("model.path=", "--policy ", 1)) from error


def load_model(source: PolicySource, tokenizer, trust_remote_code: bool):
    """The policy as it was trained; a model that is no artifact in float32, or bfloat16 on a GPU."""
    import torch

    from rlhf.models.opening import open_policy
    from rlhf.models.policies import device, fit_embeddings, load_policy
    from rlhf.models.reading import Reading

    if source.manifest:
        how = Reading.of_artifact(source.manifest, trust_remote_code)
        return open_policy(Path(source.path), source.manifest, tokenizer, how)
    dtype = torch.bfloat16 if device().type == "cuda" else torch.float32
    model = load_policy(source.path, Reading(dtype, trust_remote_code=trust_remote_code))
    fit_embeddings(model, tokenizer)
    return model.requires_grad_(False).to(device())
