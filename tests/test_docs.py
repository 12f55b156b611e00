"""The documentation against the code: files it names exist, its examples run, its reference is what the parser says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
FOLDERS = "src|csrc|tests|docs|examples|scripts|benchmarks"
NAMED_FILE = re.compile(rf"`((?:{FOLDERS})/[\w./-]+|[\w./-]+/[\w-]+\.(?:py|h|cpp))`")
PLACEHOLDER = "/x.py"  # "add a file x.py here"
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    missing = [name for name in NAMED_FILE.findall(text) if not name.endswith(PLACEHOLDER) and not _exists(name)]
    missing += [link for link in LINK.findall(text) if not (document.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize(
    "document", [each for each in DOCUMENTS if each.name != "clients.md"], ids=lambda path: path.name
)
def test_python_examples_run(
    document: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All examples of a document run in one namespace, in order, as a reader would type them in an empty folder."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "example"}
    for code in PYTHON_BLOCK.findall(document.read_text(encoding="utf-8")):
        exec(compile(code, str(document), "exec"), namespace)
    for value in list(namespace.values()):
        if type(value).__name__ == "LLM":
            value.close()  # type: ignore[attr-defined]


def test_the_command_line_reference_is_current() -> None:
    write = runpy.run_path(str(ROOT / "scripts" / "write_cli_reference.py"))
    assert write["TARGET"].read_text(encoding="utf-8") == write["reference"](), "run `make docs`"


def test_the_list_of_models_is_current() -> None:
    """Every family with its status; the sizes of some, since it takes minutes to find them all."""
    write = runpy.run_path(str(ROOT / "scripts" / "write_models_reference.py"))
    lines = write["TARGET"].read_text(encoding="utf-8").splitlines()
    families = write["families"]
    status = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1] for line in lines if line.startswith("| ")}
    expected = {
        **dict.fromkeys((*families.FAMILIES, *families.ENCODER_DECODERS), "exact"),
        **{name: f"forward: {why}" for name, why in families.FORWARD_ONLY.items()},
    }
    assert {name: status.get(name) for name in expected} == expected, "run `make docs`"
    assert {name for name in families.REFUSED if name not in status} == set()
    for family in ("bloom", "gemma2", "deepseek_v2", "jamba", "mamba", "whisper"):
        assert write["row"](family) in lines, "run `make docs`"


def test_the_tables_of_plans_are_current() -> None:
    write = runpy.run_path(str(ROOT / "scripts" / "write_planning_reference.py"))
    assert write["TARGET"].read_text(encoding="utf-8") == write["document"](), "run `make docs`"


def test_the_index_of_files_is_that_of_the_package() -> None:
    write = runpy.run_path(str(ROOT / "scripts" / "write_file_index.py"))
    assert (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8") == write["document"](), "run `make docs`"


def test_every_module_says_in_its_first_line_what_it_is() -> None:
    write = runpy.run_path(str(ROOT / "scripts" / "write_file_index.py"))
    lines = write["index"]().splitlines()
    assert not [line for line in lines if line.startswith("- ") and line.endswith(": ")]


def _exists(name: str) -> bool:
    """Paths are given from the root of the repository or of the package."""
    return (ROOT / name).exists() or (ROOT / "src" / "pagoda" / name).exists()
