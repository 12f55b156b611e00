"""Imports point one way, and what needs no tensors does not load torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pagoda

PACKAGE = Path(pagoda.__file__).parent

BASIS = (
    *("checks", "config", "confined", "devices", "errors"),
    *("json_shape", "machine", "registry", "sampling_params", "units"),
)
# From the top down; a module imports from its own line or a lower one.
LEVELS = (
    ("cli", "cluster"),
    ("commands",),
    ("server",),
    ("hf", "llm"),
    ("chat", "collector", "prompts", "structured"),
    ("outputs", "request_time"),
    ("analysis",),
    ("engine",),
    ("models",),
    ("planning",),
    ("cache",),
    ("kernels",),
    ("formats",),
    ("layouts",),
    ("detokenizer", "text", "tokenizing"),
    ("checkpoint",),
    BASIS,
)
LEVEL = {name: len(LEVELS) - number for number, names in enumerate(LEVELS) for name in names}
ANALYSIS = {
    *("analysis", "cache", "checkpoint", "checks", "config", "devices", "engine", "errors", "formats"),
    *("layouts", "machine", "planning", "registry", "sampling_params", "units"),
}

# Of the folders whose other files know none.
WITH_TENSORS = {"cuda", "device", "pool", "summaries", "view"}

# The rooms of the server, likewise; those on one line import nothing of each other.
SERVER_ROOMS = (
    ("run",),
    ("app",),
    ("own",),
    ("anthropic", "openai"),
    ("entrance",),
    ("accepted",),
    ("watched",),
    ("asked",),
    ("answered",),
    ("backend", "replies"),
    ("deadline", "ground"),
)
ROOM_LEVEL = {name: len(SERVER_ROOMS) - number for number, names in enumerate(SERVER_ROOMS) for name in names}
# The floors of the cache; those on one line may know each other.
CACHE_FLOORS = (
    ("inspector", "residency", "view"),
    ("cache", "pool"),
    ("leases", "lifetime"),
    ("tenants",),
    ("sequence",),
    ("recent",),
    ("groups",),
    ("holdings",),
    ("session_file", "session_parts", "tiers"),
    ("prefix", "report"),
    ("compression", "eviction", "reading", "summaries", "transfers"),
)
FLOOR = {name: len(CACHE_FLOORS) - number for number, names in enumerate(CACHE_FLOORS) for name in names}
# What an LLM is made of: only the backend over one (`local.py`, `local_call.py`) knows that, and nobody else knows it.
LLM_MODULES = ("pagoda.llm", "pagoda.collector", "pagoda.engine.engine", "pagoda.engine.loop", "pagoda.models")
LLM_BACKEND = "pagoda.server.backend.local"

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.name != "__init__.py")


def part(module: str) -> str:
    """The folder or file of the package that `module` is in."""
    return module.split(".")[1] if "." in module else ""


def imported_names(path: Path) -> set[str]:
    """All that a file imports, by its whole name, also inside functions and for types only."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {module for module in modules if module.split(".")[0] == "pagoda"}


def imported(path: Path) -> set[str]:
    """The parts of the package that a file imports from."""
    return {part(module) for module in imported_names(path)}


def room(module: str, house: str = "server") -> str:
    """The folder or file of the server, or of another house, that a module is in; none for what is not in it."""
    parts = module.split(".")
    return parts[2] if parts[:2] == ["pagoda", house] and len(parts) > 2 else ""


def owner(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    if owner(path) == "analysis":
        assert imported(path) <= ANALYSIS
        return
    assert owner(path) in LEVEL, f"{owner(path)} is new: give it its place in LEVELS"
    here = LEVEL[owner(path)]
    upward = {name for name in imported(path) if LEVEL.get(name, 0) > here}
    assert not upward, f"{path} imports from above: {upward}"


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "server").rglob("[a-z]*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_rooms_of_the_server_point_down(path):
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    here = room(name)
    assert here in ROOM_LEVEL, f"{here} is new: give it its place in SERVER_ROOMS"
    names = imported_names(path)
    others = {each for each in map(room, names) if each not in ("", here)}
    assert not {each for each in others if ROOM_LEVEL.get(each, 0) >= ROOM_LEVEL[here]}, f"{path} imports from above"
    if not name.startswith(LLM_BACKEND):
        assert not [each for each in names if each.startswith((*LLM_MODULES, LLM_BACKEND))]


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "cache").rglob("[a-z]*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_floors_of_the_cache_point_down(path):
    here = room(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts), "cache")
    assert here in FLOOR, f"{here} is new: give it its place in CACHE_FLOORS"
    others = {each for each in (room(name, "cache") for name in imported_names(path)) if each}
    assert not {each for each in others if FLOOR[each] > FLOOR[here]}, f"{path} imports from above"


@pytest.mark.parametrize(
    "module",
    [
        "pagoda",
        "pagoda.config",
        "pagoda.registry",
        "pagoda.sampling_params",
        "pagoda.confined.pool",
        "pagoda.confined.child",
        "pagoda.cache.prefix.tree",
        "pagoda.cache.holdings.allocator",
        "pagoda.cache.groups.pages",
        "pagoda.cache.cache",
        "pagoda.cache.eviction.lru",
        "pagoda.cache.tiers.host",
        "pagoda.cache.tiers.disk.tier",
        "pagoda.layouts.spec",
        "pagoda.layouts.attention",
        "pagoda.formats.page",
        "pagoda.formats.plain",
        "pagoda.engine.scheduler",
        "pagoda.planning.checkpoint",
        "pagoda.planning.limits",
        "pagoda.models.plain_tokenizer",
        "pagoda.commands.explain",
        "pagoda.commands.kv",
        "pagoda.commands.request_file",
        "pagoda.commands.session",
        "pagoda.tokenizing",
    ],
)
def test_no_torch_is_loaded_where_there_are_no_tensors(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("folder", ["analysis", "planning", "checkpoint", "layouts", "formats", "cache", "chat"])
def test_bookkeeping_sizes_and_plans_load_no_torch(folder):
    """Whole folders; of the cache all but the bytes of pages and what a step sees of them."""
    files = (path for path in MODULES if owner(path) == folder and path.stem not in WITH_TENSORS)
    modules = ["pagoda." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in files]
    assert modules
    code = f"""
import sys
from importlib import import_module
for module in {modules}:
    import_module(module)
    if {{"torch", "transformers"}} & {{*sys.modules}}:
        sys.exit(f"{{module}} loads torch or transformers")
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
