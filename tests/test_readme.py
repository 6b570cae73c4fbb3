"""What the README and docs say can be done: commands compose, keys and paths exist, the readers read the examples."""

import argparse
import importlib
import re
import shlex
import sys
import tomllib
from dataclasses import is_dataclass
from importlib.util import find_spec
from itertools import dropwhile
from pathlib import Path
from typing import get_args

import pytest
from hydra import compose, initialize_config_module

from reward.collect.cli.options import parser
from reward.rankings import parse_ranking
from reward.rules import load_rule
from rlhf.artifacts.lineage import main as show_artifacts
from rlhf.config.checks import resolve
from rlhf.config.composing import split_sweep
from rlhf.config.schema import Config
from rlhf.data.load import DataReport, parse_demonstration, parse_prompt, read_rows

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MANUAL = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [*MANUAL, ROOT / "CHANGELOG.md", ROOT / "data/README.md"]
SECTIONS = set(Config.__dataclass_fields__)
PARSERS = {"demonstrations": parse_demonstration, "rankings": parse_ranking, "prompts": parse_prompt}
THE_READERS_OWN = ("my/", "my_rules", "models/", "conf/experiment/mine.yaml", ".venv")
HUB = ("EleutherAI/", "Qwen/", "meta-llama/")
# Text with a slash that is no path: names of metrics, folders of a collection, parts of a hub id, patterns.
NO_PATH = re.compile(
    r"^/|(policy|val|objective|eval|loss|critic|response|time|throughput|train)/\w+$|(policy|val|objective|eval)/|"
    r"versions/|backups/$|owner/name|^application/|^model/$|::|[*{=<(]| "
)


def text_of(page):
    return page.read_text(encoding="utf-8")


def page_of(name):
    return text_of(ROOT / "docs" / name)


def blocks(language, text):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def shell_commands():
    """The words of each command in the bash blocks of all pages, environment variables in front left out."""
    texts = [block.replace("\\\n", " ") for page in MANUAL for block in blocks("bash", text_of(page))]
    lines = dict.fromkeys(line for text in texts for line in text.splitlines())  # each once
    return [list(dropwhile(is_variable, shlex.split(line))) for line in lines]


def is_variable(word):
    return re.match(r"[A-Z_]+=", word)


def module_commands():
    """(module, arguments) of each `python -m` command, and of the scripts that pass their arguments on to one."""
    for words in shell_commands():
        if words[:2] == ["python", "-m"]:
            yield words[2], words[3:]
        elif words[:2] == ["bash", "launch/quickstart.sh"]:
            yield "stages.pipeline", words[2:]
        elif words[:2] == ["bash", "launch/multi_gpu.sh"] and words[2] != "--help":
            yield f"stages.{words[2]}", words[3:]


def in_backticks(page):
    """What the running text of a page has in backticks; code blocks left out."""
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    return set(re.findall(r"`([^`\n]+)`", text))


each_page = pytest.mark.parametrize("page", MANUAL, ids=lambda page: page.relative_to(ROOT).as_posix())


def links(page):
    """Targets of the links and pictures of a page that do not lead to another site."""
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    return [target for target in targets if not re.match(r"https?://", target)]


def anchors(page):
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def tree():
    """(folder, name) of each line in the drawing of a run's folder, from the indentation."""
    drawing = next(block for block in blocks("text", page_of("artifacts.md")) if block.startswith("outputs/"))
    stack, found = [], []
    for line in drawing.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        stack = [*stack[:depth], name]
        found.append((stack[-2] if depth else "", name))
    return found


def composed(overrides, tmp_path):
    """The config of a command. The reader's own experiment stands in a folder beside ours."""
    (tmp_path / "experiment").mkdir(exist_ok=True)
    (tmp_path / "experiment" / "mine.yaml").write_text(blocks("yaml", page_of("tuning.md"))[0])
    with initialize_config_module("conf", version_base="1.3"):
        return compose("config", [f"hydra.searchpath=[file://{tmp_path}]", *overrides])


def key_exists(key):
    kind = Config
    for name in key.split("."):
        if not is_dataclass(kind) or name not in kind.__dataclass_fields__:
            return kind == dict[str, str | None]  # data.fields, whose names are the user's
        kind = kind.__dataclass_fields__[name].type
        kind = next((part for part in get_args(kind) if is_dataclass(part)), kind)  # of a section that may be null
    return True


@pytest.mark.parametrize("module", sorted({module for module, _ in module_commands()}))
def test_each_module_of_a_command_exists(module):
    assert find_spec(module) is not None


COLLECTING = [arguments for module, arguments in module_commands() if module == "reward.collect"]
COMMANDS_OF_THE_COLLECTION = {
    name for action in parser()._actions if isinstance(action, argparse._SubParsersAction) for name in action.choices
}
COMMANDS = [(module, arguments) for module, arguments in module_commands() if module.startswith("stages.")]


@pytest.mark.slow
@pytest.mark.parametrize(("module", "arguments"), COMMANDS, ids=[" ".join([m, *a]) for m, a in COMMANDS])
def test_each_command_composes_and_passes_every_check(module, arguments, tmp_path):
    settings = [argument for argument in arguments if argument not in ("--cfg", "job", "-m")]
    jobs = [job for job, _ in split_sweep(settings)] if "-m" in arguments else [settings]
    for overrides in jobs:
        assert resolve(composed(overrides, tmp_path)).run.dir.startswith("outputs/")
    assert hasattr(importlib.import_module(module), "run")


def test_all_four_stages_and_the_pipeline_are_shown():
    shown = {module for module, _ in module_commands()}
    assert shown >= {f"stages.{name}" for name in ("sft", "reward", "ppo", "evaluate", "pipeline")}


@pytest.mark.parametrize("arguments", COLLECTING, ids=" ".join)
def test_each_command_of_the_collection_is_understood(arguments):
    assert parser().parse_args(arguments).command in COMMANDS_OF_THE_COLLECTION


def test_all_commands_of_the_collection_are_shown():
    said = {name for page in MANUAL for name in re.findall(r"`python -m reward\.collect (\w+)", text_of(page))}
    assert {arguments[0] for arguments in COLLECTING} | said == COMMANDS_OF_THE_COLLECTION


def test_the_artifacts_command_is_understood(tmp_path):
    (arguments,) = [arguments for module, arguments in module_commands() if module == "rlhf.artifacts"]
    assert arguments[0] == "show"
    assert show_artifacts(["show", str(tmp_path)]) == 3  # an empty folder is no artifact: understood, and refused


def test_scripts_of_the_commands_exist():
    scripts = {words[1] for words in shell_commands() if words[0] == "bash"}
    assert scripts == {"launch/quickstart.sh", "launch/test.sh", "launch/multi_gpu.sh"}
    assert all((ROOT / script).is_file() for script in scripts)


def test_the_readers_own_experiment_wins_over_the_defaults(tmp_path):
    cfg = composed(["experiment=mine"], tmp_path)
    assert cfg.run.dir == "outputs/mine"
    assert cfg.model.path == "models/mine"
    assert cfg.data.rankings == "my/rankings.jsonl"
    assert cfg.ppo.kl_coef == 0.1
    assert cfg.ppo.learning_rate == 1e-6  # of experiment/pretrained.yaml, which it is made from


EXAMPLES = re.findall(r"In `my/(\w+)\.jsonl`(?:(?!```).)*?```json\n(.*?)```", page_of("data.md"), re.DOTALL)


def test_there_is_an_example_of_each_kind_of_record():
    assert [kind for kind, _ in EXAMPLES] == ["demonstrations", "rankings", "prompts"]
    assert len(EXAMPLES) == len(blocks("json", page_of("data.md")))


def test_the_records_of_the_readme_are_read_by_the_real_readers(tmp_path):
    (block,) = blocks("json", README)
    kinds = ("demonstrations", "rankings", "prompts")
    for kind, line in zip(kinds, block.splitlines(), strict=True):
        path = tmp_path / f"{kind}.jsonl"
        path.write_text(line)
        assert len(list(read_rows(str(path), "error", DataReport(), kind, parse=PARSERS[kind]))) == 1


@pytest.mark.parametrize(("kind", "text"), EXAMPLES, ids=[kind for kind, _ in EXAMPLES])
def test_each_example_is_read_by_the_real_reader(kind, text, tmp_path):
    path = tmp_path / f"{kind}.jsonl"
    path.write_text(text)
    records = list(read_rows(str(path), "error", DataReport(), kind, parse=PARSERS[kind]))
    assert len(records) == len(text.splitlines())


def test_the_pairs_of_the_example_are_rankings_of_two(tmp_path):
    path = tmp_path / "rankings.jsonl"
    path.write_text(dict(EXAMPLES)["rankings"])
    rankings = list(read_rows(str(path), "error", DataReport(), "rankings", parse=parse_ranking))
    assert [ranking.ranks for ranking in rankings] == [(2, 1, 3, 3), (1, 2, None), (1, 2), (1, 2)]
    assert rankings[-1].messages == ({"role": "user", "content": "Who wrote Faust?"},)
    assert rankings[-1].responses == ("Goethe.", "Schiller.")


def test_the_rule_of_the_example_gives_what_its_docstring_says(tmp_path, monkeypatch):
    code = blocks("python", page_of("rewards.md"))[0]
    (tmp_path / "my_rules.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rules", raising=False)
    assert load_rule("my_rules:brief")(["?", "?"], ["word " * 40, "word " * 80]) == [1.0, 0.5]
    sys.modules.pop("my_rules")


@each_page
def test_each_key_that_is_named_exists(page):
    keys = {re.split(r"[=\s]", text)[0].lstrip("+") for text in in_backticks(page)}
    keys = {key for key in keys if re.fullmatch(r"\w+(\.\w+)+", key) and key.split(".")[0] in SECTIONS}
    assert len(keys) > 10 or page.name != "README.md"
    assert sorted(key for key in keys if not key_exists(key) and not is_module(key)) == []


def is_module(name):
    """Whether it is one of ours, as reward.collect: `reward` is a section and a package."""
    return (ROOT / name.replace(".", "/")).is_dir() or (ROOT / f"{name.replace('.', '/')}.py").is_file()


@pytest.mark.slow
def test_each_setting_that_is_named_with_a_value_composes(tmp_path):
    settings = {text for page in MANUAL for text in in_backticks(page) if re.fullmatch(r"\+?[\w.]+=[\w./-]*\w", text)}
    settings = {text for text in settings if re.split(r"[.=]", text.lstrip("+"))[0] in {*SECTIONS, "experiment"}}
    assert len(settings) > 15
    for setting in sorted(settings):
        composed([setting], tmp_path)


@each_page
def test_each_command_in_the_running_text_is_of_a_module_that_exists_and_composes(page, tmp_path):
    for text in in_backticks(page):
        if text.startswith("python -m "):
            _, _, module, *arguments = text.split(" > ")[0].split()
            assert find_spec(module) is not None, text
            if module.startswith("stages.") and all("=" in argument for argument in arguments):
                composed(arguments, tmp_path)


@each_page
def test_each_path_that_is_named_exists_or_is_the_readers_own(page):
    paths = {text for text in in_backticks(page) if "/" in text and not NO_PATH.search(text)}
    named = {path for path in paths if not path.startswith((*THE_READERS_OWN, *HUB, "outputs/", "http"))}
    assert "rlhf/" in named or page.name != "README.md"
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


def test_each_file_in_the_drawing_of_a_run_is_written_by_the_code():
    code = "\n".join(
        path.read_text() for folder in ("rlhf", "reward", "stages") for path in (ROOT / folder).rglob("*.py")
    )
    names = {name.rstrip("/") for _, name in tree()} - {"outputs/toy", "outputs/collect"}
    assert names >= {"manifest.json", "model", "replaced", "report.html"}
    assert sorted(name for name in names if f'"{name}"' not in code) == []


def test_the_drawing_shows_a_folder_for_each_stage():
    assert [name for folder, name in tree() if folder == "outputs/toy/"][:4] == ["sft/", "reward/", "ppo/", "evaluate/"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_each_link_leads_somewhere(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        place = (page.parent / path) if path else page
        assert place.exists(), target
        assert not anchor or anchor in anchors(place), target


def test_the_pictures_are_small_and_reach_for_nothing_outside():
    pictures = list((ROOT / "docs").glob("*.png"))
    assert len(pictures) == 5 and all(picture.stat().st_size < 400_000 for picture in pictures)
    drawing = (ROOT / "docs" / "stages.svg").read_text()
    assert re.findall(r"https?://[^\"]+", drawing) == ["http://www.w3.org/2000/svg"]
    assert "prefers-color-scheme: dark" in drawing


def test_the_changelog_speaks_of_the_version_in_pyproject():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^(?:## \[|To become )(\d+\.\d+\.\d+)", text, re.MULTILINE)[:1] == [version]


def test_each_command_of_the_changelog_exists():
    text = (ROOT / "CHANGELOG.md").read_text()
    modules = re.findall(r"stages\.\w+", text)
    assert modules and all(find_spec(module) for module in modules)
    assert all((ROOT / script).is_file() for script in re.findall(r"launch/\w+\.sh", text))
