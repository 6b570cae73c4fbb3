"""The trained policy as a plain Hugging Face folder with a model card, adapters merged. `python -m stages.export`"""

if __name__ == "__main__":  # before the imports below, which take seconds: the config is checked first
    from stages import start

    start("stages.export")

import json
import os
import shutil
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf.artifacts.freshness import move_aside
from rlhf.artifacts.manifest import manifest_sha256
from rlhf.config.schema import AdapterKind, Config
from rlhf.console import say
from rlhf.errors import ArtifactError
from rlhf.files import write_durably
from rlhf.hashing import file_sha256, short
from rlhf.locks import alone_in_run_dir
from rlhf.models.adapters import base_of, load_base_model
from rlhf.models.opening import open_policy, policy_view, require_trust
from rlhf.models.policies import load_policy, stop_ids
from rlhf.models.reading import Reading
from rlhf.models.saving import probe
from rlhf.models.trunk import Trunk
from rlhf.run.stage import verify_stage
from rlhf.text.tokenizer import load_tokenizer
from stages.reports.model_card import model_card

RECORD = "export.json"  # written last: what was exported, and the differences that were found
# Most that merging may change the logits by, as a share of the largest: weights are rounded once more.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


@alone_in_run_dir
def run(cfg: Config) -> Path:
    """Writes <run.dir>/export; returns it. ArtifactError where other content is there, or merging fails."""
    role = cfg.export.stage.value
    source, folder = Path(getattr(cfg.inputs, role)), Path(cfg.run.dir) / "export"
    manifest, sha256 = verify_stage(source, role, "export"), manifest_sha256(source)
    require_trust(cfg, role, manifest)
    if not make_place(folder, source, cfg.run.force):
        say(f"export: up to date in {folder}")
        return folder
    tokenizer = load_tokenizer(str(source / "model"), trust_remote_code=cfg.model.trust_remote_code)
    how = Reading.of_artifact(manifest, cfg.model.trust_remote_code)
    partial = folder.with_name(".export")
    shutil.rmtree(partial, ignore_errors=True)  # of an export that was stopped
    write = write_merged if manifest["adapter"] else write_copy
    differences = write(source, manifest, tokenizer, how, partial)
    write_durably(partial / "README.md", model_card(source, manifest, Path(cfg.run.dir), differences))
    files = {path.name: file_sha256(path) for path in sorted(partial.iterdir())}
    if manifest_sha256(source) != sha256:
        raise ArtifactError(f"{source} changed while it was exported; run it again")
    record = {"source": sha256, "differences": differences, "files": files}
    write_durably(partial / RECORD, json.dumps(record, indent=1))
    os.rename(partial, folder)
    say(f"export: {role} {short(record['source'])} -> {folder}; {told(differences)}")
    say(f"  serve it: pip install 'transformers[serving]', then transformers serve {folder}")
    return folder


def make_place(folder: Path, source: Path, force: bool) -> bool:
    """Whether the folder is to be written; false where it holds this artifact already.

    Raises ArtifactError where it holds something else, unless force: then that moves aside.
    """
    if not folder.exists():
        return True
    reason = difference(folder, source)
    if reason is None and not force:
        return False
    if not force:
        raise ArtifactError(f"{folder} {reason}. Choose another run.dir, or run.force=true (the old one moves aside)")
    say(f"export: the old folder moves to {move_aside(folder)}")
    return True


def difference(folder: Path, source: Path) -> str | None:
    """How a folder differs from an export of this artifact; None where it is one, every file as it was written."""
    if not (folder / RECORD).is_file():
        return "holds something that is no export"
    record = json.loads((folder / RECORD).read_text())
    if record["source"] != manifest_sha256(source):
        return f"holds an export of {short(record['source'])}, and {source} is {short(manifest_sha256(source))}"
    names = {path.name for path in folder.iterdir()} - {RECORD}
    changed = names ^ record["files"].keys() or {
        name for name, digest in record["files"].items() if file_sha256(folder / name) != digest
    }
    return f"holds this export with another {min(changed)}" if changed else None


def write_copy(source: Path, manifest: dict, tokenizer, how: Reading, folder: Path) -> dict[str, float]:
    """A whole model's files as they are; returns {}: nothing was computed."""
    shutil.copytree(source / "model", folder)
    write_generation_config(open_policy(source, manifest, tokenizer, how), tokenizer, folder)
    return {}


def write_merged(source: Path, manifest: dict, tokenizer, how: Reading, folder: Path) -> dict[str, float]:
    """An adapter's matrices added to the weights that it stands on; returns the largest differences in one forward.

    With qlora these weights are what the 4 bits stand for, the ones that the adapter was trained on.
    Raises ArtifactError where the merged model, read again, speaks otherwise than the adapter did.
    """
    base, kind = base_of(source, manifest), AdapterKind(manifest["adapter"]["kind"])
    model = load_base_model(base, tokenizer, AdapterKind.lora, how)
    trained = None
    if kind is AdapterKind.qlora:
        packed = load_base_model(base, tokenizer, kind, how)
        unpack(packed, model)
        trained = probe(policy_view(Trunk(packed), source), probe_ids(packed))
        del packed
    view, ids = policy_view(Trunk(model), source), probe_ids(model)
    unmerged = probe(view, ids)
    peft: PeftModel = view.trunk.peft
    merged = peft.merge_and_unload(safe_merge=True)
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_generation_config(merged, tokenizer, folder)
    reread = probe(load_policy(folder, how).to(merged.device), ids)
    differences = {"merged": require_same_logits(unmerged, reread, how.dtype), "tolerance": TOLERANCE[how.dtype]}
    return differences if trained is None else differences | {"four_bits": relative(trained, reread)}


@torch.no_grad()
def unpack(packed: PreTrainedModel, model: nn.Module) -> None:
    """Writes what the 4-bit weights of a model stand for into the same model of plain weights."""
    from bitsandbytes.functional import dequantize_4bit

    for name, module in packed.named_modules():
        if type(module).__name__ == "Linear4bit":
            values = dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain = model.get_submodule(name)
            plain.weight.copy_(values.T if isinstance(plain, Conv1D) else values)


def probe_ids(model: PreTrainedModel) -> Tensor:
    """Four sequences of 32 tokens drawn over the whole vocabulary, always the same: [4, 32]."""
    size = model.get_input_embeddings().num_embeddings
    return torch.randint(size, (4, 32), generator=torch.Generator().manual_seed(0))


def relative(x: Tensor, y: Tensor) -> float:
    """The largest difference as a share of the largest of x."""
    return ((x - y).abs().max() / x.abs().max()).item()


def require_same_logits(unmerged: Tensor, merged: Tensor, dtype: torch.dtype) -> float:
    """Their largest difference, as a share of the largest logit. ArtifactError where it is more than rounding."""
    found = relative(unmerged, merged)
    if not found <= TOLERANCE[dtype]:
        raise ArtifactError(
            f"the merged model's logits differ from the adapter's by {found:.1e} of the largest (at most "
            f"{TOLERANCE[dtype]:.0e} is rounding in {dtype}); nothing was exported. "
            "This is a bug of ours: please report it"
        )
    return found


def write_generation_config(model: PreTrainedModel, tokenizer, folder: Path) -> None:
    """Every token that ends an answer, so that a server stops where the policy learned to."""
    settings = model.generation_config
    settings.eos_token_id, settings.pad_token_id = stop_ids(model, tokenizer), tokenizer.pad_token_id
    settings.save_pretrained(folder)


def told(differences: dict[str, float]) -> str:
    """The differences in words."""
    if not differences:
        return "a copy of the whole model"
    bits = f", from the 4-bit model's by {differences['four_bits']:.1e}" if "four_bits" in differences else ""
    return f"merged logits differ from the adapter's by {differences['merged']:.1e} of the largest{bits}"
