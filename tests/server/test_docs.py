"""Every curl of docs/server.md, as a reader would type it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from server.running import MOST_SECONDS, Running

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "server.md"
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMANDS = [
    command.strip()
    for block in BLOCK.findall(DOCUMENT.read_text(encoding="utf-8"))
    for command in re.split(r"\n(?=curl )", block)
    if command.startswith("curl")
]
ENDLESS = re.compile(r" -m \d+ ")  # -m: after how many seconds to end what never ends by itself
ENDED_BY_READER = 23  # what curl returns if nobody reads on
needs_curl = pytest.mark.skipif(not (shutil.which("bash") and shutil.which("curl")), reason="bash or curl is missing")


def test_there_are_curls() -> None:
    assert len(COMMANDS) > 20


@needs_curl
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split("8000")[1].split()[0][:40])
def test_a_curl_is_answered(server: Running, command: str) -> None:
    command = command.replace("http://localhost:8000", server.url).replace("curl ", "curl --fail-with-body ", 1)
    is_endless = ENDLESS.search(command) is not None
    if is_endless:
        command = f"set -o pipefail; {ENDLESS.sub(f' -m {MOST_SECONDS} ', command)} | head -n 3"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=MOST_SECONDS)
    assert done.returncode == (ENDED_BY_READER if is_endless else 0), done.stdout + done.stderr
    assert done.stdout
