"""What CONTRIBUTING.md promises of new things: a file and a line in the registry, and their kind's tests run over them.

The suites are run as they are, in a process where a toy of each kind has been registered before they are collected.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pagoda.registry import REGISTRY

TESTS = Path(__file__).parent
TOYS = {"format": "TOY_FORMAT", "layout": "ToyLayout", "eviction": "ToyPolicy", "kernels": "ToyKernels"}
PLUGIN = """
from contextlib import ExitStack
from pagoda.registry import registered

stack = ExitStack()
for kind, attribute in {toys}.items():
    stack.enter_context(registered(kind, "toy", f"toys:{{attribute}}"))
stack.enter_context(registered("kernels", "missing", "toys:MissingKernels"))
"""


def run_suite(folder: Path, file: str, only: str) -> dict[str, int]:
    """How many tests of a file whose names have `only` in them passed, failed and were skipped."""
    (folder / "toy_box.py").write_text(PLUGIN.format(toys=TOYS))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(TESTS)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "toy_box", "-p", "no:cacheprovider", "-k", only]
    done = subprocess.run(
        [*command, str(TESTS / "conformance" / file)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=TESTS.parent,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|skipped)", done.stdout.splitlines()[-1])}
    return {"said": "toy box" in done.stdout, **counts}


@pytest.mark.parametrize(
    ("file", "only", "least"),
    [
        ("test_formats.py", "toy", 40),
        ("test_layouts.py", "toy", 4),
        ("test_eviction.py", "toy", 10),
        ("test_kernels.py", "toy and (gqa or three)", 40),
    ],
)
def test_a_toy_inherits_the_tests_of_its_kind(file, only, least, tmp_path):
    counts = run_suite(tmp_path, file, only)
    assert counts["passed"] >= least


def test_a_backend_that_is_not_there_is_skipped_by_its_own_word(tmp_path):
    counts = run_suite(tmp_path, "test_kernels.py", "missing and layers")
    assert counts == {"said": True, "skipped": 2}


def test_toys_are_gone_afterwards():
    assert not any("toy" in answers for answers in REGISTRY.values())


def test_the_recipes_name_every_kind():
    """A row for each kind in the registry, and each row's folder there, unless its first answer is to come."""
    text = (TESTS.parent / "CONTRIBUTING.md").read_text()
    for kind in REGISTRY:
        named = {"format": "formats/x.py", "layout": "layouts/x.py", "kernels": "kernels/x.py"}
        assert f"`{named.get(kind, f'cache/{kind}/x.py')}` + registry line" in text
