"""What CONTRIBUTING.md promises of new things: a file and a line in the registry, and their kind's tests run over them.

The suites are run as they are, in a process where a toy of each kind has been registered before they are collected.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from pagoda.registry import REGISTRY

TESTS = Path(__file__).parent
TOYS = {
    "format": "TOY_FORMAT",
    "layout": "ToyLayout",
    "eviction": "ToyPolicy",
    "tier": "ToyTier",
    "kernels": "ToyKernels",
}
PLUGIN = """
from contextlib import ExitStack
from pagoda.registry import registered

stack = ExitStack()
for kind, attribute in {toys}.items():
    stack.enter_context(registered(kind, "toy", f"toys:{{attribute}}"))
stack.enter_context(registered("kernels", "missing", "toys:MissingKernels"))
"""
# Of the many tests of kernels, those of two layouts.
ONLY = "(toy and (gqa or three or not test_kernels)) or (missing and layers)"


@pytest.fixture(scope="module")
def suites(tmp_path_factory: pytest.TempPathFactory) -> ET.Element:
    """What became of the tests of toys in every conformance suite."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "toy_box.py").write_text(PLUGIN.format(toys=TOYS))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(TESTS)]), "OMP_NUM_THREADS": "1"}
    options = ["-q", "-p", "toy_box", "-p", "no:cacheprovider", f"--junitxml={folder / 'report.xml'}", "-k", ONLY]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(TESTS / "conformance")],
        capture_output=True,
        text=True,
        env=environment,
        cwd=TESTS.parent,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return ET.parse(folder / "report.xml").getroot()


def cases(suites: ET.Element, file: str, name: str) -> list[ET.Element]:
    """The tests of a file whose names have `name` in them."""
    found = suites.iter("testcase")
    return [each for each in found if file in each.attrib["classname"] and name in each.attrib["name"]]


@pytest.mark.parametrize(
    ("file", "least"),
    [("test_formats", 40), ("test_layouts", 4), ("test_eviction", 10), ("test_tiers", 10), ("test_kernels", 40)],
)
def test_a_toy_inherits_the_tests_of_its_kind(file: str, least: int, suites: ET.Element) -> None:
    passed = [case for case in cases(suites, file, "toy") if case.find("skipped") is None]
    assert len(passed) >= least


def test_a_backend_that_is_not_there_is_skipped_by_its_own_word(suites: ET.Element) -> None:
    skipped = [case.find("skipped") for case in cases(suites, "test_kernels", "missing")]
    assert [reason.attrib["message"] for reason in skipped if reason is not None] == [
        "The toy kernels need a toy box; there is none here."
    ] * len(skipped)
    assert skipped


def test_toys_are_gone_afterwards() -> None:
    assert not any("toy" in answers for answers in REGISTRY.values())


def test_the_recipes_name_every_kind() -> None:
    """A row for each kind in the registry, and each row's folder there, unless its first answer is to come."""
    text = (TESTS.parent / "CONTRIBUTING.md").read_text()
    for kind in REGISTRY:
        folders = {"format": "formats", "layout": "layouts", "kernels": "kernels", "tier": "cache/tiers"}
        assert f"`{folders.get(kind, f'cache/{kind}')}/x.py` + registry line" in text
