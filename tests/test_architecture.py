"""The rules of ARCHITECTURE.md, checked on the source text (nothing is imported)."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
ROOT = CHECKOUT / "vitsense"
FILES = sorted(ROOT.rglob("*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]

# third-party package -> the only places that may import it
OWNERS = {
    "timm": {
        "models.py",
        "model_names.py",
        "preprocessing.py",
        "timm_images.py",
        "zoo/__init__.py",
    },
    "torchvision": {"models.py", "model_names.py", "preprocessing.py"},
    "matplotlib": {
        "report/drawing.py",
        "report/figures.py",
        "report/charts.py",
        "report/heatmap.py",
        "report/labels.py",
        "report/summary.py",
    },
    "seaborn": {"report/heatmap.py"},
    "jinja2": {"report/html.py"},
    "typst": {"report/pdf.py"},
    "pyarrow": {"report/tables.py"},
    "rich": {"progress.py"},
    "onnx_ir": {"export/onnx_graph.py", "export/site_graph.py"},
    "onnxscript": {"export/onnx_graph.py"},
    "onnxruntime": {"export/session.py"},
    "ml_dtypes": {"export/onnx_graph.py"},
    "accelerate": {"qat/processes.py"},
    "filelock": {"in_use.py"},
    "click": {name for name in NAMES if name.startswith("cli")},
}

WITHOUT_TORCH = (
    "cli", "report/", "compare/", "plan/", "verdict", "runfolder", "schemas", "settings",
    "sites", "progress", "provenance", "errors", "formats",
)  # fmt: skip
MAY_NAME_TORCH = {"cli_info.py", "plan/verify.py"}
"""``vitsense env`` asks torch for devices; ``plan/verify.py`` measures a plan."""

HOOKS = {
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
    "TorchFunctionMode",
    "TorchDispatchMode",
}
GLOBAL_HOOKS = {
    "register_module_forward_hook",
    "register_module_forward_pre_hook",
    "register_module_full_backward_hook",
}
UNPICKLING = {"pickle", "dill", "joblib", "cloudpickle", "shelve"}
NAMES_OF_NOTHING = {"utils", "util", "helpers", "helper", "common", "base", "misc", "core"}
LONGEST_FILE = 400


def each_file(rule: Callable[[Path], None]) -> Callable[[], None]:
    """One test for all files: a thousand tests of a millisecond would take many seconds."""

    def over_all_files() -> None:
        for path in FILES:
            try:
                rule(path)
            except AssertionError as error:
                raise AssertionError(f"vitsense/{_here(path)}: {error}") from error

    over_all_files.__name__, over_all_files.__doc__ = rule.__name__, rule.__doc__
    return over_all_files


def _here(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.AST) -> set[str]:
    """Top-level names of every package that ``tree`` imports, at any depth."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def mentioned(tree: ast.AST) -> set[str]:
    """Every name and attribute in ``tree``."""
    nodes = list(ast.walk(tree))
    return {n.attr for n in nodes if isinstance(n, ast.Attribute)} | {
        n.id for n in nodes if isinstance(n, ast.Name)
    }


def test_the_rules_look_at_the_whole_package() -> None:
    assert {"cli.py", "analyze.py", "report/html.py", "observe/visiting.py"} <= set(NAMES)


@each_file
def test_third_party_packages_stay_with_their_owner(path: Path) -> None:
    found = imported(_tree(path)) & OWNERS.keys()
    assert {package for package in found if _here(path) not in OWNERS[package]} == set()


@each_file
def test_only_observe_registers_hooks(path: Path) -> None:
    used = mentioned(_tree(path))
    assert not used & GLOBAL_HOOKS
    assert _here(path).startswith("observe/") or not used & HOOKS


@each_file
def test_only_observe_replaces_a_forward(path: Path) -> None:
    """An assignment to ``something.forward`` changes a model that is not ours."""
    targets = {
        target.attr
        for node in ast.walk(_tree(path))
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Attribute)
    }
    assert _here(path).startswith("observe/") or "forward" not in targets


@each_file
def test_what_reads_results_does_not_import_torch(path: Path) -> None:
    here = _here(path)
    if here.startswith(WITHOUT_TORCH) and here not in MAY_NAME_TORCH:
        assert not imported(_tree(path)) & {"torch", "timm", "torchvision"}


@each_file
def test_nothing_is_unpickled(path: Path) -> None:
    tree = _tree(path)
    assert not imported(tree) & UNPICKLING
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        text = ast.unparse(call.func)
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        if text == "torch.load":
            assert given.get("weights_only") == "True"
        if text in {"np.load", "numpy.load"}:
            assert given.get("allow_pickle") == "False"


@each_file
def test_a_file_is_named_for_what_it_holds_and_is_not_too_long(path: Path) -> None:
    assert path.stem not in NAMES_OF_NOTHING
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


@each_file
def test_only_the_command_line_prints(path: Path) -> None:
    calls = {ast.unparse(n.func) for n in ast.walk(_tree(path)) if isinstance(n, ast.Call)}
    assert "print" not in calls


@each_file
def test_everything_public_says_what_it_gives(path: Path) -> None:
    tree = _tree(path)
    assert ast.get_docstring(tree) is not None
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    scopes: list[ast.Module | ast.ClassDef] = [tree]
    scopes += [n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
    silent = [
        node.name
        for scope in scopes
        for node in scope.body
        if isinstance(node, kinds)
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
        and "overload" not in {ast.unparse(d) for d in node.decorator_list}
    ]
    assert silent == []


def test_every_layer_exists_and_every_file_is_in_one() -> None:
    """import-linter checks the order; this holds where it is not installed."""
    config = configparser.ConfigParser()
    config.read(CHECKOUT / "setup.cfg")
    listed = set(re.findall(r"\w+", config["importlinter:contract:stages"]["layers"]))
    children = {path.stem for path in ROOT.glob("*.py")} - {"__init__", "__main__"}
    children |= {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert listed == children


def test_every_package_is_installed() -> None:
    config = configparser.ConfigParser()
    config.read(CHECKOUT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    folders = {"vitsense"} | {
        ".".join(("vitsense", *path.parent.relative_to(ROOT).parts))
        for path in ROOT.rglob("*/__init__.py")
    }
    assert listed == folders | {"vitsense.report.templates"}


def test_every_import_is_a_declared_dependency() -> None:
    config = configparser.ConfigParser()
    config.read(CHECKOUT / "setup.cfg")
    declared = {
        re.split(r"[<>=!\[; ]", line)[0].lower().replace("-", "_")
        for part in (
            config["options"]["install_requires"],
            config["options.extras_require"]["onnx"],
        )
        for line in part.split("\n")
        if line.strip()
    }
    # the right-hand packages require the left-hand ones
    distribution = {"PIL": "pillow", "huggingface_hub": "timm", "markupsafe": "jinja2"}
    distribution |= {"onnx_ir": "onnxscript", "ml_dtypes": "onnx"}
    outside = set().union(*(imported(_tree(path)) for path in FILES)) - set(sys.stdlib_module_names)
    needed = {distribution.get(name, name) for name in outside - {"vitsense"}}
    assert needed <= declared
