"""Every curl of docs/server.md, as a reader would type it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from server.running import Running

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "server.md"
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMANDS = [
    command.strip()
    for block in BLOCK.findall(DOCUMENT.read_text(encoding="utf-8"))
    for command in re.split(r"\n(?=curl )", block)
    if command.startswith("curl")
]
ENDED_BY_CURL = 28  # -m: the time is over, as is meant for what never ends


def test_there_are_curls() -> None:
    assert len(COMMANDS) > 20


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split("8000")[1].split()[0][:40])
def test_a_curl_is_answered(server: Running, command: str) -> None:
    command = command.replace("http://localhost:8000", server.url).replace("curl ", "curl --fail-with-body ", 1)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == (ENDED_BY_CURL if " -m " in command else 0), done.stdout + done.stderr
    assert done.stdout
