"""What the code may import and call, read from its source: nothing is imported here."""

import ast
import re
import sys
import tomllib
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
OURS = {"rlhf", "reward", "stages", "conf", "tests"}
NOT_ABOVE = {"rlhf": {"reward", "stages"}, "reward": {"stages"}, "stages": set()}
INSTALLED = packages_distributions()  # top-level module -> names of the distributions that bring it
RUNS_WHAT_IT_READS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def sources(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def is_of_collect(path):
    """The collection server, whose extra is there when its code is loaded."""
    return "collect" in path.relative_to(ROOT).parts


def imports(node):
    """The dotted module of each import under the node; dots in front where it is relative."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield "." * child.level + (child.module or "")


def imports_when_loaded(tree):
    """Those that run when the module is imported: outside functions and outside `if TYPE_CHECKING`."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield from imports_when_loaded(node)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.If):
            yield from imports(node)


def calls(tree):
    """(dotted name as written, call) of each call in the file."""
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def keyword(call, name):
    """The value of a keyword argument as written, or None."""
    return next((ast.unparse(word.value) for word in call.keywords if word.arg == name), None)


def upward_imports(package, text):
    return [module for module in imports(ast.parse(text)) if module.split(".")[0] in NOT_ABOVE[package]]


def unsafe_loads(text):
    """Reads that may run code out of the file they read, and objects built from a name in the config."""
    tree = ast.parse(text)
    found = [module for module in imports(tree) if module.split(".")[0] in RUNS_WHAT_IT_READS]
    for name, call in calls(tree):
        last = name.split(".")[-1]
        unsafe_torch = name in ("torch.load", "torch.serialization.load") and keyword(call, "weights_only") != "True"
        unsafe_numpy = last == "load" and keyword(call, "allow_pickle") == "True"
        unsafe_yaml = name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load")
        unsafe_name = last == "instantiate" or name in ("eval", "exec")
        if unsafe_torch or unsafe_numpy or unsafe_yaml or unsafe_name:
            found.append(name)
    return found + [f"from torch import {name}" for name in names_from(tree, "torch") & {"load"}]


def names_from(tree, module):
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == module]
    return {alias.name for node in froms for alias in node.names}


def distributions(names):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"base": project["dependencies"], **project["optional-dependencies"]}
    return {
        canonicalize_name(Requirement(line).name) for name, lines in groups.items() if name in names for line in lines
    }


def undeclared(modules, declared):
    """Third-party modules among them that belong to no declared distribution."""
    names = {module.split(".")[0] for module in modules if not module.startswith(".")}
    top = names - OURS - set(sys.stdlib_module_names)
    owners = {name: {canonicalize_name(owner) for owner in INSTALLED.get(name, [name])} for name in top}
    return sorted(name for name in top if not owners[name] & declared)


@pytest.mark.parametrize("package", NOT_ABOVE)
def test_imports_point_from_stages_to_reward_to_rlhf(package):
    assert sources(package), f"no files in {package}/"
    wrong = {str(path.relative_to(ROOT)): upward_imports(package, path.read_text()) for path in sources(package)}
    assert {path: modules for path, modules in wrong.items() if modules} == {}


def test_nothing_read_from_disk_or_config_can_run_code():
    found = {
        str(path.relative_to(ROOT)): unsafe_loads(path.read_text())
        for path in sources("rlhf", "reward", "stages", "data")
    }
    assert {path: names for path, names in found.items() if names} == {}


def test_what_is_imported_at_once_comes_with_a_plain_installation():
    for path in sources("rlhf", "reward", "stages", "data"):
        declared = distributions({"base", "collect"} if is_of_collect(path) else {"base"})
        modules = list(imports_when_loaded(ast.parse(path.read_text())))
        assert undeclared(modules, declared) == [], path


def test_nothing_but_the_collection_server_imports_it_at_once():
    def load_it(path):
        return [name for name in imports_when_loaded(ast.parse(path.read_text())) if name.startswith("reward.collect")]

    others = [path for path in sources("rlhf", "reward", "stages", "data") if not is_of_collect(path)]
    assert {str(path.relative_to(ROOT)): load_it(path) for path in others if load_it(path)} == {}


def test_what_is_imported_when_needed_comes_with_a_declared_extra():
    declared = distributions({"base", "deepspeed", "quant", "collect", "tune", "vllm"})
    for path in sources("rlhf", "reward", "stages", "data"):
        modules = list(imports(ast.parse(path.read_text())))
        assert undeclared(modules, declared) == [], path


def test_the_tests_need_no_more_than_the_dev_extra():
    folders = {path.stem for path in (ROOT / "tests").rglob("*.py")}  # test files may import one another
    for path in sources("tests"):
        declared = distributions({"base", "dev", "collect"} if is_of_collect(path) else {"base", "dev"})
        modules = list(imports_when_loaded(ast.parse(path.read_text())))
        assert set(undeclared(modules, declared)) <= folders, path


def test_every_folder_with_code_is_a_package_that_gets_installed():
    folders = {path.parent for path in sources("rlhf", "reward", "stages")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize("text", ["import reward", "from stages.ppo import run", "def f():\n    import reward.losses"])
def test_an_upward_import_is_found_wherever_it_stands(text):
    assert upward_imports("rlhf", text)


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "from torch import load",
        "hydra.utils.instantiate(cfg.optimizer)",
        "from hydra.utils import instantiate\ninstantiate(cfg)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader)",
    ],
)
def test_an_unsafe_read_is_found(text):
    assert unsafe_loads(text)


def test_reading_weights_only_is_allowed():
    assert unsafe_loads("state = torch.load(path, map_location='cpu', weights_only=True)\nmodel.eval()") == []


# ---- what a model is


MODEL = re.compile("model|module|engine|policy|ref_policy|critic|learner|trunk|view|plain|parameter|weight|p")
ASKED_OF_LIBRARIES = {  # modules of any architecture, and what DeepSpeed has put on a weight: no class tells
    ("rlhf/engines/zero.py", "ds_tensor"),
    ("rlhf/engines/zero.py", "_hp_mapping"),
    ("rlhf/models/adapters.py", "support_avx512bf16_for_cpu"),
    ("rlhf/models/policies.py", "config"),
    ("rlhf/preflight/dryrun.py", "num_key_value_groups"),
}


def guesses(tree):
    """The attribute of each hasattr(model, ...) and getattr(model, ..., default) in the file."""
    for name, call in calls(tree):
        is_guess = name == "hasattr" or (name == "getattr" and len(call.args) == 3)
        if is_guess and MODEL.fullmatch(ast.unparse(call.args[0]).split(".")[-1]):
            yield ast.literal_eval(call.args[1])


def test_no_code_guesses_from_attributes_what_a_model_is():
    found = {
        (path.relative_to(ROOT).as_posix(), guess)
        for path in sources("rlhf", "reward", "stages")
        for guess in guesses(ast.parse(path.read_text()))
    }
    assert found == ASKED_OF_LIBRARIES


def test_a_guess_is_found():
    text = "hasattr(self.policy, 'trunk')\ngetattr(model, 'step', None)\ngetattr(model, 'step')\nhasattr(row, 'prompt')"
    assert list(guesses(ast.parse(text))) == ["trunk", "step"]


# ---- wings: the folders and files right inside a package


PACKAGES_WITH_WINGS = ["rlhf", "reward", "reward/collect", "stages"]


def wings(package):
    """wing -> the wings of the same package that its code imports, wherever the import stands."""
    folder, prefix = ROOT / package, package.replace("/", ".") + "."
    found = {}
    for path in folder.rglob("*.py"):
        wing = path.relative_to(folder).parts[0].removesuffix(".py")
        ours = (module.removeprefix(prefix) for module in named_modules(path) if module.startswith(prefix))
        found.setdefault(wing, set()).update({module.split(".")[0] for module in ours} - {wing})
    return {wing: named & set(found) for wing, named in found.items()}


def named_modules(path):
    """`package.name` for each name of a `from package import name`, and the module of any other import."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def map_of_rlhf():
    """The lines of the map in rlhf/__init__.py, each the wings in it."""
    text = ast.get_docstring(ast.parse((ROOT / "rlhf/__init__.py").read_text()))
    return [line.split("  ")[0].split(", ") for line in re.findall(r"^    (\S.*)", text, re.M)]


@pytest.mark.parametrize("package", PACKAGES_WITH_WINGS)
def test_wings_do_not_import_in_circles(package):
    order = list(TopologicalSorter(wings(package)).static_order())  # CycleError names the circle
    assert len(order) > 5


def test_a_wing_of_rlhf_imports_from_those_above_it_in_the_map_and_from_no_other():
    graph, above = wings("rlhf"), set()
    for line in map_of_rlhf():
        above.update(line)
        assert {wing: graph[wing] - above for wing in line} == {wing: set() for wing in line}
    assert above == set(graph) - {"__init__"}


def test_the_page_on_the_architecture_has_the_same_map():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    folders = {path.name for path in (ROOT / "rlhf").iterdir() if path.is_dir()}
    order = [wing for line in map_of_rlhf() for wing in line if wing in folders]
    assert re.findall(r"^\| `rlhf/(\w+)/` \|", page, re.M) == order
