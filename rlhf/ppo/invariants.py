"""What must hold while PPO runs, whatever the data: else the run stops, with the likely causes.

Every rank comes to the same verdict, and none of these looks costs a forward.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from rlhf.distributed import any_rank, gather, over_ranks
from rlhf.engines.zero import bare, is_shared_out, own_share
from rlhf.errors import NumericsError
from rlhf.models.trunk import all_weights
from rlhf.ops import masked_mean

PART = 1 << 24  # elements that a checksum turns to int64 at once: 128 MB


def check_starts_at_reference(rollout, tolerance: float) -> None:
    """Raises NumericsError when the policy's first rollout already has a KL from the reference.

    The mean over tokens is looked at: in bfloat16 another padding alone moves single tokens by some tenths of a nat.
    """
    difference = masked_mean((rollout.logprobs - rollout.ref_logprobs).abs(), rollout.mask).item()
    if not difference <= tolerance:
        raise NumericsError(
            f"before any update the policy's log-probabilities differ by {difference:.2e} nats per token from the "
            f"reference's (at most {tolerance:.0e} is rounding), so KL would not start at 0. Likely causes: two "
            "different checkpoints, or dropout that is not 0"
        )


def check_sampled_is_scored(rollout, tolerance: float) -> None:
    """Raises NumericsError when the decoder drew tokens from another distribution than the training forward scores.

    The mean over tokens is looked at: in bfloat16 single tokens may differ by a nat and more.
    """
    difference = masked_mean(rollout.sampling_difference, rollout.mask).item()
    if not difference <= tolerance:
        raise NumericsError(
            f"the log-probabilities with which tokens were sampled differ by {difference:.2e} nats per token from "
            f"those of the training forward (at most {tolerance:.0e} is rounding). Likely causes: another temperature, "
            "positions or padding that the decoder's cache counts otherwise, another dtype or quantisation, an "
            "attention implementation that ignores the mask (try model.attention=eager)"
        )


def check_on_policy(difference: float, tolerance: float) -> None:
    """Raises NumericsError when, before any update of this rollout, the ratio is not 1.

    difference: between the policy's log-probabilities and the rollout's, in nats, the mean over tokens.
    """
    if not difference <= tolerance:
        raise NumericsError(
            f"before the first update the policy's log-probabilities differ by {difference:.2e} nats per token from "
            f"those of the rollout (at most {tolerance:.0e} is rounding). Likely causes: dropout that is not 0, "
            "another temperature, another dtype, or a shift by one token"
        )


class FirstStep:
    """Watches the first optimizer step of an engine that has something to learn."""

    def __init__(self):
        self.is_over = False

    def __call__(self, engine, has_signal: bool) -> float:
        """engine.step(), the first time with a gradient that is not 0 and weights that change, or NumericsError.

        has_signal: false where a gradient of 0 is right, as where all advantages are 0; the next step is watched then.
        """
        if self.is_over or not has_signal:
            return engine.step()
        before = checksums(engine.parameters.values())
        norm = engine.step()
        check_gradient(engine.name, norm)
        check_changed(engine, before)
        self.is_over = True
        return norm


def check_gradient(name: str, norm: float) -> None:
    """Raises NumericsError for a gradient of 0."""
    if norm == 0:
        raise NumericsError(
            f"the first gradient of the {name} is 0, though there is something to learn. Likely causes: weights that "
            "are frozen or not those that the optimizer has, a graph that is cut (no_grad, detach), or an adapter that "
            "its forward does not switch on"
        )


def check_changed(engine, before: Tensor) -> None:
    """Raises NumericsError when no rank's weights are others than before (their checksums)."""
    if not any_rank(not torch.equal(checksums(engine.parameters.values()), before)):
        raise NumericsError(
            f"the first step of the {engine.name} (learning rate {engine.learning_rate:.1e}) changed no weight. Likely "
            "causes: a learning rate so small that the weights' precision rounds it away, or an optimizer that has "
            "other weights than the model"
        )


def check_all_counted(name: str, found: tuple[int, int], wanted: tuple[int, int]) -> None:
    """Raises NumericsError unless the gradient of a minibatch came from all of it.

    found, wanted: tokens and backward passes, of all ranks together.
    """
    if found != wanted:
        raise NumericsError(
            f"the gradient of the {name} came from {found[0]} tokens in {found[1]} backward passes, and its minibatch "
            f"has {wanted[0]} tokens in {wanted[1]} micro-batches. Likely causes: a minibatch that the ranks cannot "
            "split evenly, or a micro-batch that was left out"
        )


def check_equal_counts(counts: dict[str, int]) -> None:
    """Raises NumericsError unless all ranks counted the same, e.g. forwards of the policy: collectives would mix."""
    found = gather(counts)
    for name in counts:
        values = [theirs[name] for theirs in found]
        if len(set(values)) > 1:
            raise NumericsError(
                f"the ranks made unequal numbers of {name}: {values} by rank. Likely causes: parts of a minibatch that "
                "differ in length, or an early stop that not all ranks took"
            )


class FrozenWeights:
    """Checksums of everything that training must leave alone: the reference, and the trunk under adapters."""

    def __init__(self, engines: list, ref_policy: nn.Module):
        trained = {id(p) for engine in engines for p in engine.parameters.values()}
        of_engines = [p for engine in engines for p in all_weights(bare(engine.module)) if id(p) not in trained]
        parameters = {id(p): p for p in [*ref_policy.parameters(), *of_engines]}
        self.parameters = list(parameters.values())
        self.before = checksums(self.parameters)

    def check(self) -> None:
        """Raises NumericsError when one of them has changed since the start."""
        num_changed = int(over_ranks((checksums(self.parameters) != self.before).sum(), "max"))
        if num_changed:
            raise NumericsError(
                f"{num_changed} of {len(self.parameters)} frozen weights (the reference's, or the base under adapters) "
                "changed while the policy trained. Likely causes: a reference that shares its weights with the policy, "
                "or an optimizer that was given too much"
            )


def check_same_weights(engine) -> None:
    """Raises NumericsError, naming a rank and a weight, unless all ranks hold the same. Under ZeRO-3 they need not."""
    if any(is_shared_out(parameter) for parameter in engine.parameters.values()):
        return
    found = gather(checksums(engine.parameters.values()).tolist())
    for rank, theirs in enumerate(found):
        if theirs != found[0]:
            pairs = zip(engine.parameters, theirs, found[0], strict=True)
            first = next(name for name, one, other in pairs if one != other)
            raise NumericsError(
                f"rank {rank} holds other weights of the {engine.name} than rank 0 (first: {first}). Likely causes: "
                "gradients that were not summed over ranks, different starts, or memory that failed"
            )


@torch.no_grad()
def checksums(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The sum of each weight's bits as integers, int64 [number of weights]; under ZeRO-3 of this rank's share.

    Exact in any order of summation, so equal weights have equal sums on every rank and machine.
    """
    return torch.stack([_checksum(own_share(p)) for p in parameters])


def _checksum(weight: Tensor) -> Tensor:
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
    parts = weight.contiguous().view(kind).flatten().split(PART)
    return torch.stack([part.sum(dtype=torch.int64) for part in parts]).sum().cpu()
