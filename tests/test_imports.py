"""Who may import whom (DESIGN 3), read from the sources."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tcmu_core
from tcmu_core import posix, testing

ROOT = Path(__file__).parents[1]
CORE = ROOT / "tcmu_core"
PLUGINS = sorted(
    path
    for pattern in ("plugins/tcmu-*/tcmu_*", "examples/tcmu-*/tcmu_*")
    for path in ROOT.glob(pattern)
    if path.is_dir() and path.suffix != ".egg-info"
)

# Each part may import those in the lines above it, and itself; '' is the package itself, `import tcmu_core`. The words
# of SCSI that handlers speak too stand below the disk, the engine above it.
LAYERS = (
    {"errors", "outlet"},
    {"_version", "loop", "log", "progress", "sdnotify", "stdout"},
    {"cfgstring", "entrypoints", "files", "posix", "identity", "state"},
    {"codec"},
    {"channel"},
    {"options"},
    {"scsi.tally"},
    {"scsi.command", "scsi.opcodes"},
    {"disk.threads"},
    {"disk.device"},
    {"hookspecs"},
    {"disk", ""},
    {"recording"},
    {"filters"},
    {"handlers", "host.messages"},
    {"scsi"},
    {"host.transport"},
    {"kernel", "iscsi"},
    {"testing"},
    {"config"},
    {"host"},
    {"daemon"},
    {"bus"},
    {"doctor"},
    {"cli"},
)
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}

# What a handler may import: the names of the package, and those of its public subpackages.
PUBLIC = {f"{package.__name__}.{name}" for package in (tcmu_core, posix, testing) for name in package.__all__}
PUBLIC |= {"tcmu_core", "tcmu_core.posix", "tcmu_core.testing"}

# The SCSI engine is sans I/O: no sockets, threads, mapped memory, files or processes.
IMPURE = {"asyncio", "fcntl", "io", "mmap", "multiprocessing", "os", "pathlib", "select", "selectors", "shutil"}
IMPURE |= {"signal", "socket", "ssl", "subprocess", "tempfile", "threading"}
SOCKETS = {"asyncio", "select", "selectors", "socket", "socketserver", "ssl"}


def imports(file: Path) -> Iterator[str]:
    """Yield the dotted names that a module imports, in functions and for the sake of types too."""
    yield from _imports(ast.parse(file.read_text()).body)


def _imports(nodes: list[ast.stmt]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from _imports([child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)])
            for handler in ast.iter_child_nodes(node):
                if isinstance(handler, ast.ExceptHandler | ast.match_case):
                    yield from _imports(handler.body)


def part(module: str) -> str:
    """Return the part of tcmu_core that a dotted name belongs to; '' for the package itself."""
    names = module.split(".")[1:]
    return next(
        (".".join(names[:length]) for length in (2, 1) if ".".join(names[:length]) in RANK), ".".join(names[:1])
    )


def modules(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*.py"))


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(CORE.parent).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("file", modules(CORE), ids=name_of)
def test_a_module_imports_only_what_lies_below_it(file):
    own = part(name_of(file))
    if not own:
        return  # the package's face collects its names from everywhere
    assert own in RANK, f"{own!r} has no place yet: give it one in LAYERS"
    for name in imports(file):
        if not name.startswith("tcmu_core"):
            continue
        other = part(name)
        if other == own:
            continue
        assert other in RANK, f"{file.name} imports {name}: inside the core, import from the module that has it"
        assert RANK[other] < RANK[own], f"{name_of(file)} imports {name}, but {own!r} stands below {other!r}"


def target(name: str, known: set[str]) -> str | None:
    """Return the module that an imported dotted name is, or is a name of; None outside the core."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


def test_no_two_modules_import_each_other_directly_or_in_a_circle():
    files = {name_of(file): file for file in modules(CORE)}
    graph = {
        name: {found for one in imports(file) if (found := target(one, set(files))) is not None} - {name, "tcmu_core"}
        for name, file in files.items()
    }
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> None:
        assert name not in way, f"a circle: {' -> '.join([*way[way.index(name) :], name])}"
        if name not in done:
            for other in sorted(graph[name]):
                walk(other, [*way, name])
            done.add(name)

    for name in sorted(graph):
        walk(name, [])


@pytest.mark.parametrize("file", modules(CORE / "scsi"), ids=name_of)
def test_the_engine_does_no_io(file):
    assert not {name.split(".")[0] for name in imports(file)} & IMPURE


@pytest.mark.parametrize("file", modules(CORE / "iscsi"), ids=name_of)
def test_the_portal_alone_has_sockets(file):
    if file.name != "portal.py":
        assert not {name.split(".")[0] for name in imports(file)} & SOCKETS


@pytest.mark.parametrize("file", modules(CORE / "posix"), ids=name_of)
def test_the_posix_layer_needs_nothing_of_the_core_but_its_errors(file):
    others = {name for name in imports(file) if name.startswith("tcmu_core") and part(name) != "posix"}
    assert {part(name) for name in others} <= {"errors"}


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_a_plugin_imports_tcmu_core_alone(plugin):
    for file in modules(plugin):
        for name in imports(file):
            if name.startswith("tcmu_core"):
                assert name in PUBLIC, f"{file.name} imports {name}: a handler imports only what an __all__ has"


def test_each_plugin_that_is_here_is_looked_at():
    assert {"tcmu_file", "tcmu_ram", "tcmu_http"} <= {path.name for path in PLUGINS}


@pytest.mark.parametrize("package", [tcmu_core, posix], ids=lambda package: package.__name__)
def test_what_the_package_exports_is_there_and_documented(package):
    for name in package.__all__:
        assert getattr(package, name).__doc__, name
    assert sorted(package.__all__) == sorted(set(package.__all__))


def test_every_module_says_what_it_is():
    for file in modules(CORE):
        assert ast.get_docstring(ast.parse(file.read_text())) or not file.read_text().strip(), file


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import a.b, c", ["a.b", "c"]),
        ("from a import b, c", ["a.b", "a.c"]),
        ("if TYPE_CHECKING:\n    import a\nelse:\n    import b", ["a", "b"]),
        ("def f():\n    import a", ["a"]),
        ("try:\n    import a\nexcept ImportError:\n    import b\nfinally:\n    import c", ["a", "c", "b"]),
        ("class A:\n    with b:\n        import c", ["c"]),
    ],
)
def test_no_import_is_overlooked(tmp_path, source, found):
    (tmp_path / "m.py").write_text(source)
    assert list(imports(tmp_path / "m.py")) == found
