"""The Triton kernels compile for cards that are not here, within their shared memory. Needs no GPU."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).parents[2] / "scripts/gpu_compile.py"


@pytest.mark.parametrize(
    ("card", "cases"),
    [("RTX3090", "wide/bf16/full,attend/fp8_e4m3/full"), ("MI300", "attend/int8/full")],
)
def test_kernels_compile_for(card, cases, tmp_path):
    environment = {"TRITON_CACHE_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, str(SCRIPT), "--cards", card, "--cases", cases]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failed" in done.stdout
    assert "kernel=attend_few" in done.stdout
    assert "kernel=attend_many" in done.stdout
