"""From models to the files of an artifact, which are read again: they must hold what was trained."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.config.schema import AdapterKind
from rlhf.distributed import on_main
from rlhf.errors import ArtifactError
from rlhf.models.adapters import Base, require_whole
from rlhf.models.policies import load_policy
from rlhf.models.reading import Reading
from rlhf.models.scalars import Scalar, ScalarModel, load_scalar_model
from rlhf.models.trunk import PolicyView, ScalarView

# Rounding of one forward of the same weights, as a share of the largest output.
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
PROBE = torch.arange(8).unsqueeze(0)  # one sequence of token ids that every vocabulary has


def save_checked(
    model: PreTrainedModel | Scalar | PolicyView, base: Base | None, kind: AdapterKind, artifact: Path, how: Reading
) -> dict | None:
    """Writes an artifact's model folder and reads it again; returns the adapter's record for the manifest.

    base, kind: of the adapter that a view is. Called by all ranks. Raises ArtifactError where the files hold something
    else than what was trained.
    """
    if isinstance(model, PolicyView | ScalarView):
        return save_adapter(model, base, kind, artifact, how)
    return on_main(lambda: save_whole(model, artifact / "model", how))


@torch.no_grad()
def save_whole(model: PreTrainedModel | ScalarModel, folder: Path, how: Reading) -> None:
    """The same for a whole model, in Hugging Face's layout, on the rank that calls it."""
    is_scalar, device, trained = isinstance(model, ScalarModel), model.device, probe(model)
    files = model.model if is_scalar else model
    require_whole(dict(files.named_parameters()), folder)
    files.save_pretrained(folder)
    del model, files  # where nobody else needs it, it makes room for the next
    reread = load_scalar_model(folder, how) if is_scalar else load_policy(folder, how)
    require_same_forward(trained, probe(reread.to(device)), folder, how.dtype)


def save_adapter(view: PolicyView | ScalarView, base: Base, kind: AdapterKind, artifact: Path, how: Reading) -> dict:
    """The same for an adapter, and its head. Rank 0 writes; all make the forwards: they may hold the trunk together."""
    folder, trained = artifact / "model", probe(view)
    on_main(lambda: view.write(folder, base))
    require_same_forward(trained, probe(view.reread(folder)), folder, how.dtype)
    return base.adapter_record(kind.value, view.trunk.configs[view.name], artifact)


def save_tokenizer(tokenizer, artifact: Path) -> None:
    """Writes a tokenizer, with its chat template, beside the model. Called by all ranks."""
    on_main(lambda: tokenizer.save_pretrained(artifact / "model") and None)


@torch.no_grad()
def probe(model: nn.Module, ids: Tensor = PROBE) -> Tensor:
    """What a model says of fixed sequences: logits [B, T, V] or values [B, T], float32, on the CPU. ids: [B, T]."""
    was_training, ids = model.training, ids.to(model.device)
    model.eval()
    mask = torch.ones_like(ids)
    output = model(ids, mask.bool()) if isinstance(model, Scalar) else model(input_ids=ids, attention_mask=mask).logits
    model.train(was_training)
    return output.float().cpu()


def require_same_forward(trained: Tensor, reread: Tensor, folder: Path, dtype: torch.dtype) -> None:
    """Raises ArtifactError where the saved model speaks otherwise than the trained one. Both: what `probe` gave."""
    difference = (trained - reread).abs().max().item()
    if not difference <= ROUNDING[dtype] * max(1.0, trained.abs().max().item()):
        raise ArtifactError(
            f"{folder}: the model that was saved differs from the one that was trained by {difference:.2e} in one "
            "forward; the stage is not done. This is a bug of ours: please report it"
        )
