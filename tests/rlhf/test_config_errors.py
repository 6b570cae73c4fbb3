"""What is said of a config that cannot be read: the key or the very argument, what is wrong, and how it is written."""

import shlex

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from rlhf.config.checks import resolve
from rlhf.config.composing import CONF
from rlhf.config.errors import config_errors
from rlhf.config.help import options
from rlhf.config.keys import all_keys, near_keys
from rlhf.config.schema import Config
from rlhf.errors import UserError


def refusal(*overrides):
    """The line that these overrides get."""
    with pytest.raises(UserError) as error, config_errors(overrides), initialize_config_dir(CONF, version_base="1.3"):
        resolve(compose("config", overrides=list(overrides)))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("ppo.clip_rang=1", "config: no key 'ppo.clip_rang'. Did you mean 'ppo.clip_range'?"),
        ("pppo.clip_range=1", "config: no key 'pppo'. Did you mean 'ppo'?"),
        ("zzz=1", "config: no key 'zzz'."),
        ("modle=tiny", "config: no key 'modle'. Did you mean 'model'?"),
        ("seed=one", "config: seed: Value 'one' of type 'str' could not be converted to Integer"),
        ("seed=null", "config: seed=null: it needs a value"),
        ("sft.batch_size=1.5", "config: sft.batch_size: Value '1.5' of type 'float' could not be converted to Integer"),
        ("model.dtype=fp16", "config: model.dtype: Invalid value 'fp16', expected one of [float32, bfloat16]"),
        ("sft.lr=1", "config: no key 'sft.lr'. Did you mean 'sft.learning_rate'?"),
        (
            "+sft.lr=1",
            "config: no key 'sft.lr'; +sft.lr=... adds nothing that a stage would read. "
            "Did you mean 'sft.learning_rate'?",
        ),
        (
            "data.fields.prompt=q",
            "config: no key 'data.fields.prompt'. A field's name is added with a plus: +data.fields.prompt=...",
        ),
        ("ppo.rewards=[{source: reward, wieght: 2}]", "config: no key 'wieght'; there are "),
        ("ppo.rewards=[a:b]", "config: ppo.rewards[0]: an item has keys; write {source: a:b}"),
        ("ppo.rewards=reward", "config: ppo.rewards: this is a list; put its items in brackets, [...]"),
        ("ppo.rewards={source: reward}", "config: ppo.rewards: this is a list; put its items in brackets, [...]"),
        ("bench.seeds=3", "config: bench.seeds: this is a list; put its items in brackets, [...]"),
        (
            "ppo.rewards[0].weight=2",
            "config: 'ppo.rewards[0].weight' is no key; an item of a list is named by its "
            "number: ppo.rewards.0.weight=...",
        ),
        (
            "+experiment=pretrained",
            "config: experiment is chosen already; choose another one without a plus, experiment=...",
        ),
        ("model=huge", "config: no model 'huge'; there are llama-3.2-1b, "),
        (
            "run.dir=${HOME}",
            "config: run.dir: Interpolation key 'HOME' not found; an environment variable is written ${oc.env:NAME}",
        ),
        ("--sft.learning_rate=1", "config: no option '--sft.learning_rate=1'; settings are KEY=VALUE without dashes"),
        ("seed", "config: 'seed' is no setting; settings are KEY=VALUE, and --help shows which there are"),
        ("run.dir=~/x", "config: run.dir=~/x holds a sign that Hydra reads in its own way; write \"run.dir='~/x'\""),
        ("run.dir='~/x'", "config: run.dir=~/x would be a folder called ~ here; write $HOME/x, or the whole path"),
        (
            "model.path=Qwen/Qwen3-0.6B@main",
            "config: model.path=Qwen/Qwen3-0.6B@main has a revision in it; write "
            "model.path=Qwen/Qwen3-0.6B model.revision=main",
        ),
    ],
)
def test_a_config_error_names_key_value_rule_and_remedy_in_one_line(override, line):
    assert refusal(override).startswith(line)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("sft.lr", ["sft.learning_rate"]),
        ("sft.epochs", ["sft.num_epochs"]),
        ("ppo.kl", ["ppo.kl_control", "ppo.kl_coef", "ppo.kl_target"]),
        ("reward.wd", ["reward.weight_decay"]),
        ("lora.rank", ["adapter.rank"]),
        ("learning_rate", ["sft.learning_rate", "reward.learning_rate", "ppo.learning_rate"]),
        ("adapters", ["adapter"]),
        ("model.scratch.layers", ["model.scratch.num_layers"]),
        ("sft.zzz", []),
    ],
)
def test_the_key_that_may_have_been_meant_is_offered_and_never_a_section_for_a_key(key, near):
    assert near_keys(key, all_keys(Config)) == near


@pytest.mark.parametrize(
    "value",
    [
        "owner/name@rev#split",
        "a=b.jsonl",
        "21_path \u00fcmlaut \u2713.jsonl",
        "it's.jsonl",
        "out(1)",
        "a&b",
        "a$b#c",
        'say "hi"#1',
    ],
)
def test_a_value_that_hydra_cannot_read_is_shown_as_it_has_to_be_typed(value):
    error = refusal(f"run.dir={value}")
    (typed,) = shlex.split(error.split("; write ")[1])  # what the shell makes of it
    assert OverridesParser.create().parse_override(typed).value() == value


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("[a#b.jsonl,c.jsonl]", "['a#b.jsonl',c.jsonl]"),
        ("[{path: my/a#b.jsonl, weight: 2}, o/n@r#s]", "[{path: 'my/a#b.jsonl', weight: 2}, 'o/n@r#s']"),
    ],
)
def test_in_a_list_each_text_gets_the_quotes_that_it_needs(value, written):
    assert refusal(f"data.demonstrations={value}").endswith(f'; write "data.demonstrations={written}"')


def test_a_path_that_the_shell_took_apart_is_put_together_again():
    error = refusal("seed=1", "data.prompts=my", "\u00fcml\u00e4ut", "\u2713.jsonl", "run.dir=out")
    assert error == (
        "config: '\u00fcml\u00e4ut' is no setting, KEY=VALUE; if it belongs to the value before it, write "
        "\"data.prompts='my \u00fcml\u00e4ut \u2713.jsonl'\""
    )


def test_a_comma_outside_of_a_sweep_has_three_readings():
    assert refusal("run.dir=a,b") == (
        'config: run.dir=a,b may be a text, a list or a sweep: write "run.dir=\'a,b\'" or "run.dir=[a,b]", or add -m '
        "to run one job for each"
    )


def test_an_unknown_experiment_says_where_ones_own_are_read_from(tmp_path, monkeypatch):
    line = f"config: no experiment 'mine'; there are {', '.join(options('experiment'))}. "
    assert (
        refusal("experiment=mine") == f"{line}One of your own, DIR/experiment/mine.yaml, is read with --config-dir DIR"
    )
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text("seed: 1\n")
    monkeypatch.chdir(tmp_path)
    assert refusal("experiment=mine") == f"{line}Your conf/experiment/mine.yaml is read with --config-dir conf"


def test_an_error_of_a_config_file_names_the_file(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nppo:\n  clip_rang: 1\n")
    assert refusal(f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine") == (
        "config: experiment/mine: no key 'ppo.clip_rang'. Did you mean 'ppo.clip_range'?"
    )
