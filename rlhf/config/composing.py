"""From names of files in conf and overrides to a checked config, without torch."""

from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from rlhf.config.checks import resolve
from rlhf.config.errors import config_errors, quoted
from rlhf.config.schema import Config
from rlhf.errors import UserError
from rlhf.ranks import launched_world_size

# By its place, not as the package `conf`: a folder of that name, where a command is started, would hide ours.
CONF = str(Path(__file__).parents[2] / "conf")


def load_config(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> Config:
    """The checked config that a command with these arguments would run, e.g. load_config(["seed=1"]).

    config_dir: a folder with files of one's own, as --config-dir names it. UserError, in the command line's words,
    where the config cannot be.
    """
    given = [str(override) for override in overrides]
    with config_errors(given), _hydra_of_our_own():
        return resolve(compose("config", overrides=[*_search(config_dir), *given]), launched_world_size())


def shipped_config() -> Config:
    """What a command without arguments reads, however many processes there are."""
    with _hydra_of_our_own():
        return OmegaConf.to_object(compose("config"))


def split_sweep(overrides: Sequence[str], config_dir: str | Path | None = None) -> list[tuple[list[str], list[str]]]:
    """(all settings, those that vary) of each job: every combination of the values in overrides like "seed=1,2"."""
    with config_errors(overrides), _hydra_of_our_own():
        compose("config", overrides=_search(config_dir))  # so that a glob finds the files of one's own
        loader = GlobalHydra.instance().config_loader()
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
        swept = {override.get_key_element() for override in parsed if override.is_sweep_override()}
        jobs = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
    return [(job, [setting for setting in job if setting.partition("=")[0] in swept]) for job in jobs]


def _search(config_dir: str | Path | None) -> list[str]:
    if config_dir is None:
        return []
    folder = Path(config_dir).expanduser().resolve()
    if not folder.is_dir():
        raise UserError(f"config: config_dir={config_dir} is not a folder")
    return [f"hydra.searchpath=[{quoted(f'file://{folder}')}]"]


@contextmanager
def _hydra_of_our_own():
    """Hydra with our files, also inside a program that has begun to use Hydra itself."""
    hydra = GlobalHydra.instance()
    others, hydra.hydra = hydra.hydra, None
    try:
        with initialize_config_dir(CONF, version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = others
