"""A slow average of the policy, steadier than the policy itself."""

from torch import Tensor

from rlhf.distributed import is_main


class Ema:
    """Exponential moving average of a policy's trainable weights, float32, in CPU memory, on rank 0 alone.

    After each PPO step: average = decay * average + (1 - decay) * weights, from the SFT policy's weights on.
    Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, appendix C.4.
    """

    def __init__(self, decay: float, policy):
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        for name, value in policy.each_weight():
            if is_main():
                self.average[name] = value.float().to("cpu", copy=True)

    def update(self, policy) -> None:
        """Takes in the weights of the policy's engine."""
        for name, value in policy.each_weight():
            if is_main():
                self.average[name].lerp_(value.float().cpu(), 1 - self.decay)

    def weights(self) -> dict[str, Tensor]:
        """Copies, as an engine's `weights`."""
        return {name: value.clone() for name, value in self.average.items()}
