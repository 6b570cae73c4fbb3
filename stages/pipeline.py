"""All stages in their order, each only when it is not up to date. `python -m stages.pipeline`"""

if __name__ == "__main__":  # before the imports below, which take seconds: the config is checked first
    from stages import start

    start("stages.pipeline", makes_inputs=True)

from dataclasses import replace
from pathlib import Path

from rlhf.config.schema import Config
from rlhf.console import say
from rlhf.distributed import on_main
from rlhf.errors import UserError
from rlhf.locks import alone_in_run_dir
from stages import evaluate, ppo, reward, sft
from stages.chain.inputs import check_inputs, needs_reward_model
from stages.chain.preflight import show_all_needs


@alone_in_run_dir
def run(cfg: Config) -> Path:
    """Brings every artifact of the run up to date, says why, and returns that of the evaluation, with the report."""
    if cfg.preflight:
        return show_all_needs(cfg)
    on_main(lambda: check_inputs(cfg))
    sft.run(cfg, replace=True)
    if needs_reward_model(cfg):
        if cfg.collect.wait:
            cfg = with_rankings_of_people(cfg)
        reward.run(cfg, replace=True)
    else:
        say("reward: not needed, as ppo.rewards names no reward model of this run")
    ppo.run(cfg, replace=True)
    return evaluate.run(cfg, replace=True)


def with_rankings_of_people(cfg: Config) -> Config:
    """The config with the rankings that people made, of answers of the SFT policy, once enough are in."""
    try:
        from reward.collect.waiting import rankings_of_people
    except ModuleNotFoundError as error:
        raise UserError(
            f"collect=wait opens a page, and there is no {error.name}: pip install -c constraints.txt -e '.[collect]'"
        ) from error
    version = str(rankings_of_people(cfg))
    say(f"collect: the reward model trains on data.rankings={version}; no gold rule judges what people ranked")
    return replace(cfg, data=replace(cfg.data, rankings=version, simulated=False, gold_rule=None))
