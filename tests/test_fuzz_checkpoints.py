"""Broken checkpoints, the same few every time; `scripts/fuzz_checkpoints.py` makes any number of others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "scripts" / "fuzz_checkpoints.py"
MUTATIONS = 12


def test_broken_checkpoints_generate_text_or_are_named_errors():
    command = [sys.executable, str(SCRIPT), "--mutations", str(MUTATIONS), "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{MUTATIONS} mutations" in done.stdout
