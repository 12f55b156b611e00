"""Commands whose standard streams are closed, full, or pipes that nobody reads."""

from __future__ import annotations

import subprocess
import sys

import pytest

ERROR = "from pagoda.cli import main; import sys; sys.exit(main(['generate', '--n', 'x']))"
REPORTS = """
import sys
from pagoda.commands.streams import keep_usable
keep_usable()
sys.stderr.write("a report that nobody can read\\n" * 10_000)
sys.stderr.flush()
print("done")
"""
NUMBERS = """
import os, sys
from pagoda.commands.streams import keep_usable
keep_usable()
sys.stderr.write("lost")
with open(os.devnull) as file:
    print(file.fileno() > 2, sys.stdin.read())
"""
WRITES = """
import sys
from pagoda import cli
cli._run = lambda arguments: print("text") or sys.stdout.flush() or 0
sys.exit(cli.main(["doctor"]))
"""


def run(script: str, redirection: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-c", f'"$0" -c "$1" {redirection}', sys.executable, script]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "2> >(true)"])
def test_a_report_that_cannot_be_written_is_lost(redirection: str) -> None:
    assert run(REPORTS, redirection).stdout == "done\n"
    assert run(ERROR, redirection).returncode == 2


def test_no_file_gets_the_number_of_a_closed_stream() -> None:
    done = run(NUMBERS, "0<&- 2>&-")
    assert (done.returncode, done.stdout) == (0, "True \n"), done


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-"])
def test_output_that_cannot_be_written_is_an_error(redirection: str) -> None:
    done = run(WRITES, redirection)
    assert done.returncode == 1
    assert done.stderr.startswith("error: Standard output cannot be written")
    assert "Traceback" not in done.stderr
