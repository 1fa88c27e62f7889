"""The layers of the packages, and no import cycles; deferred and type-only imports count."""

import ast
import re
from pathlib import Path

import pytest

PACKAGES = ("common", "model", "data", "evaluate", "train", "chat")
# The packages that each package may import, besides itself: common <- model <- data <- evaluate <-
# train in one line, and chat on top of data. Nothing in the product imports bench, tests or assets.
LAYERS: dict[str, set[str]] = {
    "common": set(),
    "model": {"common"},
    "data": {"common", "model"},
    "evaluate": {"common", "model", "data"},
    "train": {"common", "model", "data", "evaluate"},
    "chat": {"common", "model", "data"},
}
OUTSIDE = {"bench", "tests", "assets"}

ImportGraph = dict[str, set[str]]


def parse_modules(root: Path) -> dict[str, ast.Module]:
    """Return the syntax tree of every module of the packages, by dotted name."""
    modules = {}
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            name = ".".join(parts).removesuffix(".__init__")
            modules[name] = ast.parse(file.read_text(encoding="utf-8"))
    return modules


def imported_names(tree: ast.Module) -> set[str]:
    """Return every dotted name that a module imports anywhere, inside functions too.

    `from a import b` gives `a.b`, which is a module or a name in the module `a`.
    """
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that this test sees their module"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def build_import_graph(modules: dict[str, ast.Module]) -> ImportGraph:
    """Return the modules of the project that each module imports."""
    graph: ImportGraph = {}
    for name, tree in modules.items():
        targets = set()
        for imported in imported_names(tree):
            parent = imported.rpartition(".")[0]
            if imported in modules:
                targets.add(imported)
            elif parent in modules:
                targets.add(parent)
        graph[name] = targets - {name}
    return graph


def find_import_cycle(graph: ImportGraph) -> list[str] | None:
    """Return the modules of one import cycle in order, the first one again at the end, or None."""
    finished: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str] | None:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in finished:
            return None
        for target in sorted(graph[module]):
            if cycle := visit(target, [*path, module]):
                return cycle
        finished.add(module)
        return None

    for module in graph:
        if cycle := visit(module, []):
            return cycle
    return None


def find_layer_violations(modules: dict[str, ast.Module]) -> list[str]:
    """Return `module imports name` for every import that the layers forbid."""
    violations = []
    for name, tree in modules.items():
        package = name.partition(".")[0]
        forbidden = (set(PACKAGES) | OUTSIDE) - LAYERS[package] - {package}
        for imported in sorted(imported_names(tree)):
            if imported.partition(".")[0] in forbidden:
                violations.append(f"{name} imports {imported}")
    return violations


@pytest.fixture(scope="module")
def modules(root: Path) -> dict[str, ast.Module]:
    return parse_modules(root)


@pytest.mark.slow
def test_there_are_no_import_cycles(modules: dict[str, ast.Module]) -> None:
    """Prevents two modules that can only be read, tested and changed together."""
    graph = build_import_graph(modules)
    assert len(graph) > 150 and sum(map(len, graph.values())) > 500  # it did read the tree
    cycle = find_import_cycle(graph)
    assert cycle is None, " -> ".join(cycle)


@pytest.mark.slow
def test_packages_import_only_lower_layers(modules: dict[str, ast.Module]) -> None:
    """Prevents a library package that needs the command built on top of it."""
    assert find_layer_violations(modules) == []


@pytest.mark.parametrize(
    "statement",
    [
        "import model.b",
        "from model import b",
        "from model.b import name",
        "def later():\n    from model.b import name",
        "if TYPE_CHECKING:\n    from model.b import name",
    ],
)
def test_every_form_of_import_counts_in_a_cycle(statement: str) -> None:
    """Prevents a cycle that hides in a deferred or type-only import."""
    sources = {
        "model.a": statement,
        "model.b": "from model.c import x",
        "model.c": "import model.a",
    }
    modules = {name: ast.parse(source) for name, source in sources.items()}
    cycle = find_import_cycle(build_import_graph(modules))
    assert cycle is not None and set(cycle) == set(sources)
    del modules["model.c"]
    assert find_import_cycle(build_import_graph(modules)) is None


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("common.files", "from model.llama import Llama"),
        ("model.export", "def main():\n    import data.shards"),
        ("data.shards", "from evaluate import cli"),
        ("evaluate.cli", "if TYPE_CHECKING:\n    from train.trainer import Trainer"),
        ("evaluate.cli", "import chat.prompt"),
        ("train.trainer", "from chat.prompt import fit"),
        ("chat.prompt", "from train.trainer import Trainer"),
        ("chat.prompt", "from evaluate.rouge import score"),
        ("model.llama", "from tests.helpers import gguf_files"),
    ],
)
def test_import_of_a_higher_layer_is_reported(module: str, source: str) -> None:
    """Prevents a layering test that passes whatever is imported."""
    assert len(find_layer_violations({module: ast.parse(source)})) == 1


@pytest.mark.slow
def test_file_table_of_the_documentation_is_current(root: Path) -> None:
    """Prevents docs/architecture.md from describing files that were moved, renamed or rewritten."""
    table = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| `([a-z_/0-9]+\.py)` \| (.+) \|$", table, re.MULTILINE))
    paths = [path for package in (*PACKAGES, "bench") for path in (root / package).rglob("*.py")]
    described = {}
    for path in paths:
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        first_paragraph = " ".join(docstring.split("\n\n")[0].split())
        if path.name != "__init__.py":
            described[path.relative_to(root).as_posix()] = first_paragraph.replace("|", r"\|")
    assert documented == described
