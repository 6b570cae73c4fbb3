"""What tests share: a tokenizer and models made in process, options, a small PPO run. No network, no GPU.

Heavy imports stand inside the fixtures, so that tests which need no model start at once.
"""

import gc
import logging
import os
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest

WORDS = "yes no maybe thanks hello world please what is the time in paris rome oslo and berlin"
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 2, "max_positions": 128}


SLOW_FOLDER = Path(__file__).parent / "stages"  # whole stages
SLOW_FIXTURES = {"chromium", "postgres", "postgres_url"}
# Files that take long, the longest first: they are begun first, so that no worker is left with one at the end.
# launch/test.sh tells pytest-xdist to keep this order; by itself it begins with the files of the most tests.
LONGEST = [
    *("test_multi_gpu.py", "test_ppo_ranks.py", "test_kill.py", "test_resume.py", "test_distributed_training.py"),
    *("test_bad_input.py", "test_pipeline.py", "test_collect.py", "test_page.py", "test_whole_path.py"),
    *("test_architectures.py", "test_sweep.py", "test_many_at_once.py", "test_connections.py", "test_invariants.py"),
]


def pytest_configure(config):
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported; tiny models are slower with more
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def pytest_collection_modifyitems(items):
    """`-m "not slow"` leaves out what starts stages, browsers or databases; other tests that take a second say so."""
    for item in items:
        if SLOW_FOLDER in item.path.parents or SLOW_FIXTURES & set(item.fixturenames):
            item.add_marker("slow")
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_collection_finish():
    """What was imported stays: Trainers call gc.collect(), which looked through all of it (0.4 s) at each call."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _logging_is_left_as_it_was():
    """Else what reads the log later in this process fails, far from its cause: see own_logging."""
    level = logging.root.level
    yield
    assert logging.root.level == level, "the test left another level of logging behind; give it the fixture own_logging"


@pytest.fixture
def own_logging():
    """What the test does to loggers is undone after it: Hydra disables all there are, a stage quietens libraries."""
    named = [logger for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    before = [(logger, logger.level, logger.disabled) for logger in (logging.root, *named)]
    handlers = list(logging.root.handlers)
    yield
    logging.root.handlers[:] = handlers
    for logger, level, disabled in before:
        logger.setLevel(level)
        logger.disabled = disabled


@pytest.fixture(scope="session")
def tokenizer():
    from rlhf.text.tokenizer import train_tokenizer

    return train_tokenizer([WORDS] * 3, 320)


def spread_weights(model, seed):
    """Normal weights of standard deviation 0.3: wide enough that a wrong mask or position shows in the first digits."""
    import torch

    random = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0.0, 0.3, generator=random)
    return model.eval()


@pytest.fixture(scope="session")
def make_policy(tokenizer):
    """make_policy(seed) -> a Llama of 2 layers, 32 wide, in evaluation mode."""
    import torch

    from rlhf.models.policies import build_policy

    def make(seed=0, **sizes):
        return spread_weights(build_policy(SimpleNamespace(**{**SIZES, **sizes}), tokenizer, torch.float32), seed)

    return make


@pytest.fixture(scope="session")
def make_scalar(make_policy):
    """make_scalar(seed) -> a ScalarModel (reward model or critic) of the same size."""
    from transformers import LlamaForSequenceClassification

    from rlhf.models.scalars import ScalarModel

    def make(seed=1, mean=0.0, std=1.0):
        config = make_policy().config
        config.num_labels = 1
        return ScalarModel(spread_weights(LlamaForSequenceClassification(config), seed), mean, std).eval()

    return make


@pytest.fixture
def absolute():
    """(policy, critic) of the GPT-2 kind, whose absolute positions show a shift that Llama's relative ones hide."""
    from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

    from rlhf.models.scalars import ScalarModel

    tokens = {"vocab_size": 317, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0, "num_labels": 1}
    config = GPT2Config(n_positions=64, n_embd=32, n_layer=2, n_head=2, **tokens)
    policy = spread_weights(GPT2LMHeadModel(config), 5)
    return policy, ScalarModel(spread_weights(GPT2ForSequenceClassification(config), 6)).eval()


@pytest.fixture
def policy(make_policy):
    return make_policy(0)


@pytest.fixture
def ref_policy(make_policy):
    return make_policy(7)


@pytest.fixture
def critic(make_scalar):
    return make_scalar(1)


@pytest.fixture(scope="session")
def make_sampler(tokenizer):
    from rlhf.rollout.decoder import Decoder
    from rlhf.rollout.sampling import Sampler

    def make(temperature=1.0, max_tokens=8, batch_size=64, seed=0, stop_ids=None):
        ends = stop_ids or [tokenizer.eos_token_id]
        decoder = Decoder(ends, tokenizer.pad_token_id, temperature, max_tokens, batch_size)
        return Sampler(decoder, tokenizer, seed)

    return make


@pytest.fixture(scope="session")
def prompts():
    """Eight prompts of different lengths."""
    from rlhf.data.load import Prompt

    texts = ["hi", "what is the time", "paris or rome", "hello", "is it oslo", "no", "yes please", "is it time in rome"]
    messages = [({"role": "user", "content": text},) for text in texts]
    return [Prompt(messages[i], text, f"prompts.jsonl:{i + 1}") for i, text in enumerate(texts)]


@pytest.fixture(scope="session")
def prompt_ids(tokenizer, prompts):
    from rlhf.text.encoding import context_of

    return [context_of(tokenizer, prompt.messages).ids for prompt in prompts]


@pytest.fixture(scope="session")
def make_options():
    """make_options(clip_range=0.1) -> the `ppo` section of the config, every option that can be off being off."""
    from rlhf.config.schema import KlControl, PpoConfig

    def make(**changes):
        sizes = {"num_steps": 10, "batch_size": 8, "minibatch_size": 4, "micro_batch_size": 2, "num_epochs": 2}
        adam = {"learning_rate": 3e-3, "critic_learning_rate": 1e-3, "adam_eps": 1e-5, "max_grad_norm": 1.0}
        clips = {"clip_range": 0.2, "clip_range_high": None, "dual_clip": None, "value_clip_range": 0.2}
        losses = {"gamma": 1.0, "lam": 0.95, "whiten_advantages": True, "value_coef": 0.1, "entropy_coef": 0.0}
        kl = {"kl_control": KlControl.fixed, "kl_coef": 0.05, "kl_target": 6.0, "kl_horizon": 1000, "target_kl": None}
        scores = {"missing_eos_penalty": 0.0, "score_clip": None, "running_score_norm": False, "kl_budget": 1e9}
        mixed = {"critic_warmup_steps": 0, "responses_per_prompt": 1, "bootstrap_cut": False}
        averaged = {"ptx_coef": 0.0, "ptx_batch_size": 4, "ema_decay": None, "start_from": None}
        options = {**sizes, **adam, **clips, **losses, **kl, **scores, **mixed, **averaged}
        return PpoConfig(**{**options, **changes})

    return make


@pytest.fixture(scope="session")
def make_engine():
    from rlhf.engines.engine import TorchEngine

    def make(name, module, learning_rate=3e-3, max_grad_norm=1.0):
        return TorchEngine(name, module, learning_rate, adam_eps=1e-5, max_grad_norm=max_grad_norm)

    return make


@pytest.fixture(scope="session")
def make_learner(make_policy, make_scalar, make_engine):
    """make_learner(options, seed) -> all that a PPO run trains, fresh; its reference is make_policy(seed)."""
    from rlhf.ppo.critic import Critic
    from rlhf.ppo.learner import Learner

    def make(options, seed=0, has_critic=True):
        policy = make_engine("policy", make_policy(seed), options.learning_rate)
        critic = make_engine("critic", make_scalar(seed + 1), options.critic_learning_rate)
        return Learner.fresh(options, policy, Critic(critic, options) if has_critic else None)

    return make


@pytest.fixture(scope="session")
def ppo_log(prompts, prompt_ids):
    """ppo_log(learner, ref_policy, score, sampler, options, steps) -> the metrics of each of these steps of PPO.

    estimate: other advantages than those of GAE.
    """
    from rlhf.ppo.estimates import gae_of
    from rlhf.ppo.experience import Collector, prompt_batches
    from rlhf.ppo.loop import ppo_steps
    from rlhf.ppo.update import Ppo

    def run(learner, ref_policy, score, sampler, options, steps, ptx=None, estimate=None):
        collect = Collector(sampler, learner.shaping, options.micro_batch_size)
        ppo = Ppo(options, sampler.temperature, seed=0, tolerance=1e-4, ptx=ptx)
        sizes = (options.batch_size, 0, steps.start, options.responses_per_prompt)
        batches = prompt_batches(prompts, prompt_ids, *sizes)
        estimate = estimate or gae_of(learner.critic, options)
        tolerance = {"sampling_tolerance": 1e-4}
        done = ppo_steps(learner, ref_policy, score, collect, estimate, ppo, batches, steps.start, **tolerance)
        return [metrics for _, metrics in islice(done, len(steps))]

    return run
