"""The shipped YAML: every file composes against the schema, every key says what it is, every field is read."""

import ast
import re
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from rlhf.config.checks import resolve
from rlhf.config.schema import Config

ROOT = Path(__file__).parent.parent
CHECKS = ROOT / "rlhf" / "config"
CONF = ROOT / "conf"
BASES = sorted(CONF.glob("_base/*.yaml"))
FILES = [path for path in sorted(CONF.glob("*/*.yaml")) if path not in BASES]
OPTIONS = [f"{path.parent.name}={path.stem}" for path in FILES]
# Experiments and data sets of the user's own leave their paths to the command line.
LEFT_TO_THE_USER = ("data.demonstrations", "data.rankings", "data.prompts", "data.heldout", "model.path")
# What a function may call the section of the config that it is given (a term is one of ppo.rewards).
SECTION_ARGUMENTS = {"cfg", "config", "section", "options", "term"}


def composed(*overrides):
    with initialize_config_module("conf", version_base="1.3"):
        return compose("config", overrides=list(overrides))


def uncommented_keys(text):
    """The keys of a YAML text whose line has no comment, nor the line above. A list's comment covers its items."""
    lines = text.splitlines()
    body = [(above, line) for above, line in zip(["", *lines], lines, strict=False) if line.strip()]
    keys = []
    for (above, line), (_, following) in zip(body, [*body[1:], ("", "")], strict=True):
        key = re.match(r"\s*([\w.]+):(.*)", line)
        opens_section = key and not key[2].strip() and not following.lstrip().startswith("- ")
        commented = " #" in line or above.lstrip().startswith("#")
        if key and not opens_section and not commented and not is_in_list(line, lines):
            keys.append(key[1])
    return keys


def is_in_list(line, lines):
    """Whether the line goes on an item: the nearest line above with less indentation begins with a dash."""
    indent = len(line) - len(line.lstrip())
    before = reversed(lines[: lines.index(line)])
    parent = next((above for above in before if above.strip() and len(above) - len(above.lstrip()) < indent), "")
    return parent.lstrip().startswith("- ")


def config_fields(kind=Config, section="config"):
    """(section, field) of each value in the config."""
    for field in fields(kind):
        classes = [part for part in getattr(field.type, "__args__", (field.type,)) if is_dataclass(part)]
        if not classes:
            yield section, field.name
        for part in classes:
            yield from config_fields(part, field.name)


@cache
def reads():
    """(what it is read from, name) of each attribute read in the packages: ("ppo", "gamma") for `cfg.ppo.gamma`."""
    assert (CHECKS / "schema.py").is_file()
    found = set()
    for path in [path for package in ("rlhf", "reward", "stages") for path in (ROOT / package).rglob("*.py")]:
        if CHECKS not in path.parents:  # checking a value is not using it
            found |= reads_in(path.read_text())
    return found


def reads_in(text):
    nodes = list(ast.walk(ast.parse(text)))
    strings = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    found = set()
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add((last_name(node.value), node.attr))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            name = node.args[1]
            names = {name.value} if isinstance(name, ast.Constant) else strings
            found |= {(last_name(node.args[0]), name) for name in names}
    return found


def last_name(node):
    """`ppo` of `cfg.ppo`, `self.ppo` and `ppo`."""
    return ast.unparse(node).split(".")[-1]


def is_read(section, name):
    bases = {section, f"{section}_cfg", *SECTION_ARGUMENTS}
    return any((base, name) in reads() for base in bases)


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_each_group_file_composes_with_nothing_left_out(option):
    cfg = composed(option)
    missing = OmegaConf.missing_keys(cfg)
    assert missing <= set(LEFT_TO_THE_USER)
    if not missing:
        OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


def test_the_default_config_passes_every_check():
    assert resolve(composed(), world_size=1).run.dir == "outputs/toy"


def test_conf_has_the_seven_groups():
    groups = {path.parent.name for path in FILES}
    assert groups == {"model", "adapter", "data", "deepspeed", "rollout", "collect", "experiment"}


@pytest.mark.parametrize("path", [CONF / "config.yaml", *BASES, *FILES], ids=lambda path: path.stem)
def test_each_key_has_a_comment_in_its_file_or_in_the_base_of_its_group(path):
    text = path.read_text()
    settings = text.split("\nseed:")[1] if path.name == "config.yaml" else text  # after Hydra's own list of defaults
    if path.parent.name != "experiment":  # its keys are explained where they get their default
        assert set(uncommented_keys(settings)) - {"defaults"} <= keys_of_base(path)


def keys_of_base(path):
    base = CONF / "_base" / f"{path.parent.name}.yaml"
    return set(OmegaConf.load(base)) if base.exists() else set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_no_file_of_a_group_says_again_what_its_base_says(path):
    base = CONF / "_base" / f"{path.parent.name}.yaml"
    said = set(re.findall(r"\s# (.*)", base.read_text())) if base.exists() else set()
    assert said.isdisjoint(re.findall(r"\s# (.*)", path.read_text()))


def test_every_config_field_is_read_somewhere():
    assert [f"{section}.{name}" for section, name in config_fields() if not is_read(section, name)] == []


def test_a_key_without_a_comment_is_found():
    text = "# why\na: 1\nb: 2  # why\nc: 3\nd:\n  e: 4\nf:  # why\n  - g: 5\n    h: 6\n"
    assert uncommented_keys(text) == ["c", "e"]


def test_reads_are_found_through_any_name_of_the_section():
    text = "cfg.ppo.gamma\nself.ppo.lam\noptions.eps = 1\nfor k in ('prompts', 'x'):\n    getattr(cfg.data, k)\n"
    assert {("ppo", "gamma"), ("ppo", "lam"), ("data", "prompts")} <= reads_in(text)
    assert ("options", "eps") not in reads_in(text)
