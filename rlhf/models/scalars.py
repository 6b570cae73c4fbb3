"""Scalar models: one number per token, read as a reward at a response's end and as a critic's value everywhere.

Shapes: B sequences of T = P + R tokens, prompt left-padded to P, response right-padded to R.
"""

import math
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from rlhf.models.policies import load_model, read_config
from rlhf.models.reading import Reading
from rlhf.ops import position_ids


class Scalar(nn.Module, ABC):
    """One number per token: reward models read it at the last token, critics at every token.

    mean, std: what raw scores are normalised by, (raw - mean) / std. A subclass says what a raw score is, and where
    the model lives (`device`).
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0):
        super().__init__()
        self.mean, self.std = mean, std

    @abstractmethod
    def raw(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Raw scores in float32. ids, mask: [B, T]; returns [B, T]."""

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Values in float32. ids, mask: [B, T]; returns [B, T], meaningful where mask is true."""
        return (self.raw(ids, mask) - self.mean) / self.std

    def scores(self, ids: Tensor, mask: Tensor) -> Tensor:
        """One score per right-padded sequence, read at its last real token. ids, mask: [B, T]; returns [B]."""
        last = mask.sum(-1, keepdim=True) - 1
        return self(ids, mask).gather(-1, last).squeeze(-1)


class ScalarModel(Scalar):
    """A whole model of its own. model: a sequence classifier with one label, in Hugging Face's layout."""

    def __init__(self, model: PreTrainedModel, mean: float = 0.0, std: float = 1.0):
        super().__init__(mean, std)
        self.model = model

    @property
    def device(self) -> torch.device:
        return self.model.device

    def raw(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model.score(hidden_states(self.model, ids, mask)).squeeze(-1).float()


def hidden_states(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """What the trunk of a model makes of each token. ids, mask: [B, T]; returns [B, T, hidden size]."""
    trunk = model.base_model
    attended = {"attention_mask": mask.long(), "position_ids": position_ids(mask)}
    return trunk(input_ids=ids, **attended, use_cache=False).last_hidden_state


def response_values(critic: nn.Module, ids: Tensor, mask: Tensor, num_response: int) -> Tensor:
    """V_t of each response token: what the critic says at the position before it. ids, mask: [B, T]; returns [B, R]."""
    return critic(ids, mask)[:, -num_response - 1 : -1]


# ---- heads


class Head(nn.Linear):
    """Makes one number of a hidden state, in float32: in bfloat16 scores would have 8 bits, and many would be equal."""

    def __init__(self, width: int):
        super().__init__(width, 1, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden.float(), self.weight.float())


def fresh_head(policy: PreTrainedModel, is_zero: bool) -> Head:
    """A head for the hidden states of a causal language model, where that is."""
    head = Head(policy.get_output_embeddings().in_features)
    set_head(head, is_zero)
    return head.to(policy.device)


def set_head(head: nn.Linear, is_zero: bool) -> None:
    """A fresh scalar head: zero, or normal with standard deviation 1 / sqrt(d + 1) for d hidden units.

    Stiennon et al. 2020, https://arxiv.org/abs/2009.01325, appendix B.1.
    """
    with torch.no_grad():
        head.weight.normal_(0.0, 0.0 if is_zero else 1 / math.sqrt(head.weight.shape[-1] + 1))


# ---- whole models


class _Classifier:
    """A trunk and a head: what the library's sequence classifiers hold, under the same names in the same files.

    It has them for some architectures only (not for Granite, nor for Cohere), with heads in the trunk's precision.
    """

    causal: type[PreTrainedModel]
    _keep_in_fp32_modules_strict = frozenset({"score"})

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        policy = self.causal(config)
        setattr(self, self.base_model_prefix, policy.base_model)
        self.score = Head(policy.get_output_embeddings().in_features)
        self.post_init()


def classifier_class(config: PretrainedConfig, path: str | Path) -> type[PreTrainedModel]:
    """The class of a sequence classifier on the trunk of a causal language model. path: where its own code would be."""
    own = (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM")
    kind = type(config)
    causal = get_class_from_dynamic_module(own, str(path)) if own else AutoModelForCausalLM._model_mapping[kind]
    family = next(base for base in causal.__mro__ if base.__name__.endswith("PreTrainedModel"))
    name = family.__name__.removesuffix("PreTrainedModel") + "ForSequenceClassification"
    if kind in AutoModelForSequenceClassification._model_mapping:  # then anyone can load the folder
        name = AutoModelForSequenceClassification._model_mapping[kind].__name__
    # The library looks in a class's module for what its layers can do.
    own = {"causal": causal, "base_model_prefix": causal.base_model_prefix, "__module__": causal.__module__}
    return type(name, (_Classifier, family), own)


def scalar_model_from_policy(path: str | Path, how: Reading, zero_head: bool) -> ScalarModel:
    """A scalar model with a fresh head on the trunk of a saved policy."""
    model = _load_classifier(path, how, fresh="score.")
    set_head(model.score, zero_head)
    return ScalarModel(model)


def load_scalar_model(path: str | Path, how: Reading, mean: float = 0.0, std: float = 1.0) -> ScalarModel:
    """A scalar model that was saved with its head."""
    return ScalarModel(_load_classifier(path, how), mean, std)


def _load_classifier(path, how: Reading, fresh: str | None = None) -> PreTrainedModel:
    config = read_config(path, None, how.trust_remote_code)
    config.num_labels = 1
    return load_model(classifier_class(config, path), path, how, fresh=fresh, config=config)
