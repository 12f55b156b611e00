"""Every curl of docs/server.md, as a reader would type it, and the clients of docs/clients.md that are installed."""

from __future__ import annotations

import ast
import gc
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from pagoda import LLM
from server.running import MODEL, MOST_SECONDS, Running, running

DOCS = Path(__file__).parents[3] / "docs"
DOCUMENT = DOCS / "server.md"
CLIENTS = re.findall(
    r"^```python\n(.*?)^```", (DOCS / "clients.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)
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


def imported(code: str) -> set[str]:
    """The packages that an example needs."""
    nodes = list(ast.walk(ast.parse(code)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}


def test_clients_that_are_installed_run() -> None:
    """Answers end soon: clients set no limit, and nor does the model."""
    runnable = [code for code in CLIENTS if all(map(find_spec, imported(code)))]
    assert len(runnable) >= 2
    with LLM(kv_cache_memory_bytes=8 << 20, num_threads=1, max_model_len=128) as llm, running(llm) as server:
        for code in runnable:
            here = code.replace("http://localhost:8000", server.url).replace("qwen", MODEL)
            exec(compile(here, "clients.md", "exec"), {})
        gc.collect()  # clients are left as they are, and close what they have open when they go
