"""Who may import whom (ARCHITECTURE.md), read from the source and not from a diagram."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PACKAGES = ("schemas", "fol_model", "infra", "pipelines")
MAY_IMPORT = {
    "schemas": {"schemas"},
    "fol_model": {"fol_model"},
    "infra": {"infra", "schemas"},
    "pipelines": set(PACKAGES),
}
VERBS = ("engine", "models", "catalog", "locate", "build", "query", "geotag", "evaluate", "report", "serve", "maintain", "train")
HOMES = {
    "torch": lambda path: path.startswith("fol_model/"),
    "faiss": lambda path: path in ("pipelines/ivfpq.py", "pipelines/short_codes.py"),
    "prefect": lambda path: path.endswith("/flow.py"),
    "ray": lambda path: path.endswith("/actors.py") or path in ("pipelines/engine/run.py", "infra/cluster.py"),
    "fsspec": lambda path: path == "infra/storage.py",
    "s3fs": lambda path: path == "infra/storage.py",
    "huggingface_hub": lambda path: path == "pipelines/models/fetch.py",
}
NAMELESS = {"utils", "helpers", "common", "core", "base", "manager"}

FILES = sorted(path.relative_to(PROJECT).as_posix() for package in PACKAGES for path in (PROJECT / package).rglob("*.py"))


def imports(path: str) -> Iterator[str]:
    """Every module a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse((PROJECT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module
            yield node.module
            # `from fol_model import inference` names a module too
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def verb_of(module: str) -> str | None:
    """The verb a module of pipelines belongs to; None for the modules beside the verbs."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "pipelines" and parts[1] in VERBS else None


@pytest.mark.parametrize("path", FILES)
def test_a_file_imports_only_what_its_layer_may(path: str) -> None:
    package = path.split("/")[0]
    ours = {module.split(".")[0] for module in imports(path)} & {*PACKAGES, "tests"}

    assert ours <= MAY_IMPORT[package]


@pytest.mark.parametrize("path", [path for path in FILES if path.startswith("pipelines/")])
def test_a_verb_imports_only_verbs_to_its_left(path: str) -> None:
    own = verb_of(path.removesuffix(".py").replace("/", "."))
    if own is None:
        return  # cli.py, demo.py and ivfpq.py stand beside the verbs

    others = {verb for module in imports(path) if (verb := verb_of(module))}

    assert all(VERBS.index(other) <= VERBS.index(own) for other in others)


@pytest.mark.parametrize("path", FILES)
def test_a_library_is_imported_only_in_its_home(path: str) -> None:
    for module in imports(path):
        library = module.split(".")[0]
        assert library not in HOMES or HOMES[library](path), f"{library} has no home in {path}"


@pytest.mark.parametrize("path", FILES)
def test_only_settings_reads_the_environment(path: str) -> None:
    source = (PROJECT / path).read_text()

    assert path == "infra/settings.py" or ("os.environ" not in source and "getenv" not in source)


@pytest.mark.parametrize("path", FILES)
def test_a_module_says_what_it_is_and_is_named_after_it(path: str) -> None:
    assert ast.get_docstring(ast.parse((PROJECT / path).read_text()))
    assert not NAMELESS & set(path.removesuffix(".py").split("/"))


def test_modules_do_not_import_each_other_in_circles() -> None:
    names = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in FILES}
    edges = {name: {module for module in imports(path) if module in names and module != name} for name, path in names.items()}

    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail, name])
        if name not in done:
            for other in sorted(edges[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in sorted(names):
        visit(name, ())
