"""The Python interface's config: what the command line makes of the same settings, from anywhere, as often as asked."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from rlhf.config.composing import CONF, load_config
from rlhf.config.schema import Config
from rlhf.errors import UserError


def test_settings_are_those_of_the_command_line():
    cfg = load_config(["experiment=scratch_rankings", "seed=3", *(f"data.{kind}=x" for kind in KINDS)])
    assert isinstance(cfg, Config)
    assert (cfg.seed, cfg.run.dir, cfg.inputs.sft) == (3, "outputs/scratch_rankings", "outputs/scratch_rankings/sft")


KINDS = ("demonstrations", "rankings", "prompts", "heldout")


def test_no_settings_are_the_default_config_twice_in_one_process_and_in_any_folder(tmp_path, monkeypatch):
    first = load_config()
    monkeypatch.chdir(tmp_path)
    assert first == load_config() and first.run.dir == "outputs/toy"


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("sft.lr=1", "config: no key 'sft.lr'. Did you mean 'sft.learning_rate'?"),
        ("ppo.gamma=2", "config: ppo.gamma=2.0 must lie between 0 and 1"),
        ("data.prompts=???", "config: data.prompts is not set; give it a value, data.prompts=..."),
    ],
)
def test_what_cannot_be_is_raised_in_the_words_of_the_command_line(setting, line):
    with pytest.raises(UserError) as error:
        load_config([setting])
    assert str(error.value) == line


def test_files_of_ones_own_are_found_in_config_dir_whatever_it_is_called(tmp_path):
    folder = tmp_path / "my own ✓"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 7\n")
    assert load_config(["experiment=mine"], config_dir=folder).seed == 7
    with pytest.raises(UserError, match="is not a folder"):
        load_config(config_dir=tmp_path / "none")


def test_a_program_that_uses_hydra_itself_goes_on_with_its_own(tmp_path):
    with initialize_config_dir(CONF, version_base="1.3"):
        mine = GlobalHydra.instance().hydra
        load_config(["seed=1"])
        assert GlobalHydra.instance().hydra is mine
        assert compose("config").seed == 0
    load_config()
