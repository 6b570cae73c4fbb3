"""Everything that PPO training changes, and nothing else: what a checkpoint must hold.

Random numbers, the order of prompts and the learning rate follow from the seed and the step: they need no state.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rlhf.checkpoints.learner import LearnerCheckpoints
from rlhf.config.schema import KlControl, PpoConfig
from rlhf.distributed import is_main
from rlhf.engines.engine import DeepspeedEngine, TorchEngine
from rlhf.kl import AdaptiveKL, FixedKL
from rlhf.ppo.critic import Critic
from rlhf.ppo.ema import Ema
from rlhf.ppo.heldout import BestPolicy
from rlhf.ppo.scores import ScoreShaping


@dataclass
class Learner:
    """The parts of a PPO run that have state.

    critic: None where the advantages need none. pending: the last step's metrics while its evaluation is to come.
    """

    policy: TorchEngine | DeepspeedEngine
    critic: Critic | None
    kl: FixedKL | AdaptiveKL
    shaping: ScoreShaping
    best: BestPolicy
    ema: Ema | None = None
    pending: dict[str, float] | None = None

    @classmethod
    def fresh(cls, options: PpoConfig, policy: TorchEngine | DeepspeedEngine, critic: Critic | None) -> "Learner":
        """What a run begins with. options: the `ppo` section of the config."""
        shaping = ScoreShaping(options.running_score_norm, options.score_clip, options.missing_eos_penalty)
        adaptive = options.kl_control is KlControl.adaptive
        return cls(
            policy=policy,
            critic=critic,
            kl=AdaptiveKL(options.kl_coef, options.kl_target, options.kl_horizon)
            if adaptive
            else FixedKL(options.kl_coef),
            shaping=shaping,
            best=BestPolicy(options.kl_budget, shaping),
            ema=None if options.ema_decay is None else Ema(options.ema_decay, policy),
        )

    @property
    def engines(self) -> list[TorchEngine | DeepspeedEngine]:
        """All that have an optimizer."""
        return [self.policy, *([self.critic.engine] if self.critic is not None else [])]

    @contextmanager
    def shown(self) -> Iterator[TorchEngine | DeepspeedEngine | Ema]:
        """Whose weights are evaluated and exported, the average's where there is one: the policy has them inside."""
        if self.ema is None:
            yield self.policy
        else:
            with self.policy.using(self.ema.average):
                yield self.ema

    def save(self, checkpoints: LearnerCheckpoints, num_steps_done: int) -> None:
        """Writes a checkpoint from which `restore` goes on as if nothing had happened."""
        state = {
            "kl_coef": self.kl.coef,
            "score_moments": vars(self.shaping.moments),
            "best": self.best.state(),
            "pending": self.pending,
        }
        tensors = {engine.name: engine.tensors() for engine in self.engines} | {"best": self.best.weights}
        if self.ema is not None:
            tensors["ema"] = self.ema.average
        checkpoints.save(num_steps_done, tensors, state)

    def restore(self, checkpoints: LearnerCheckpoints, say) -> int:
        """Takes the newest whole checkpoint, if there is one; returns the number of steps that were done."""
        found = checkpoints.load_latest(say)
        if found is None:
            return 0
        for engine in self.engines:
            engine.load_tensors(found.tensors[engine.name])
        self.kl.coef = found.state["kl_coef"]
        self.pending = found.state.get("pending")
        vars(self.shaping.moments).update(found.state["score_moments"])
        self.best.load_state(found.state["best"], dict(found.tensors["best"]) if is_main() else {})
        if self.ema is not None and is_main():
            self.ema.average = dict(found.tensors["ema"])
        return found.step
