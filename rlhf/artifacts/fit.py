"""Which artifacts fit together."""

from pathlib import Path

from rlhf.artifacts.manifest import (
    manifest_sha256,
)
from rlhf.errors import ArtifactError
from rlhf.hashing import short


def check_same(field: str, role_a: str, manifest_a: dict, role_b: str, manifest_b: dict, remedy: str) -> None:
    """Raises ArtifactError where two artifacts differ in a field of their manifests."""
    values = manifest_a[field], manifest_b[field]
    if values[0] != values[1]:
        what = field.removesuffix("_sha256").replace("_", " ")
        shown = [short(value) if isinstance(value, str | None) else value for value in values]
        raise ArtifactError(f"{what} differs: {role_a} has {shown[0]}, {role_b} has {shown[1]}; {remedy}")


def check_same_tokenizer(role_a: str, manifest_a: dict, role_b: str, manifest_b: dict, remedy: str) -> None:
    """Raises ArtifactError unless both artifacts turn dialogues into the same ids."""
    for field in ("tokenizer_sha256", "chat_template_sha256"):
        check_same(field, role_a, manifest_a, role_b, manifest_b, remedy)


def check_parent(reward_manifest: dict, sft_path: str | Path) -> None:
    """Raises ArtifactError where a reward model was trained from another SFT artifact than the policy comes from."""
    parents = [entry["sha256"] for entry in reward_manifest["inputs"] if entry["role"] == "sft"]
    policy = manifest_sha256(sft_path)
    if policy not in parents:
        parent = short(parents[0] if parents else None)
        raise ArtifactError(
            f"reward model's parent is sft {parent}, the policy is sft {short(policy)} ({sft_path}); "
            "train it again (python -m stages.reward run.force=true) or set ppo.allow_other_parent=true"
        )
