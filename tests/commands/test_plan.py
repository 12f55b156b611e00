"""`pagoda plan` from end to end: what it prints and draws, and how it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pagoda.analysis.catalog import shapes
from pagoda.cli import main

LLAMA = ["plan", "llama-3-70b", "--machine", "H100", "--gpus", "4", "--context", "4096", "--users", "8"]


@pytest.fixture(params=["80", "120"])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """So wide a terminal."""
    monkeypatch.setenv("COLUMNS", request.param)
    return int(request.param)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*arguments]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a command that ends with a usage error."""
    try:
        status = main([*arguments])
    except SystemExit as stop:
        status = int(str(stop.code))
    assert status == 2
    return capsys.readouterr().err


def test_tables_say_what_was_planned(capsys: pytest.CaptureFixture[str], columns: int) -> None:
    lines = printed(capsys, *LLAMA).splitlines()
    assert max(map(len, lines)) <= columns
    assert lines[0] == "llama-3-70b in bfloat16: 131 GiB of weights (70.6 G parameters)"
    rows = [line.split() for line in lines]
    assert ["80", "full", "8", "x", "128", "320", "KiB", "1.25", "GiB", "10", "MiB"] in rows
    assert next(row for row in rows if row[:2] == ["auto", "(bf16)"])[2:6] == ["320", "KiB", "10", "GiB"]
    assert any(row[:2] == ["148", "users"] for row in rows)


@pytest.mark.parametrize("name", ["gemma-3-27b", "deepseek-v3", "qwen3-next-80b-a3b", "whisper-large-v3", "mamba-2.8b"])
def test_no_table_is_cut_off(capsys: pytest.CaptureFixture[str], columns: int, name: str) -> None:
    out = printed(capsys, "plan", name, "--machine", "B200", "--gpus", "16", "--explain")
    assert max(map(len, out.splitlines())) <= columns
    assert "…" not in out


def test_the_heading_says_how_weights_are_kept(capsys: pytest.CaptureFixture[str], columns: int) -> None:
    said = " ".join(printed(capsys, "plan", "gpt-oss-120b", "--machine", "H100").split())
    assert said.startswith(
        "gpt-oss-120b: 60.8 GiB of weights as published in mxfp4 (117 G parameters, 5.13 G active), "
    )
    said = " ".join(printed(capsys, "plan", "gpt-oss-120b", "--weights", "61GiB").split())
    assert said.startswith("gpt-oss-120b: 61 GiB of weights as given (")
    assert "as they are published" not in said


def test_json_is_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(printed(capsys, *LLAMA, "--json", "--explain"))
    assert told["formats"][0]["users_nbytes"] == 10 << 30
    assert told["formulas"][0]["expression"] == "70,553,706,496 parameters x 2 bytes"
    assert told["options"]["gpus"] == 4


def test_explain_shows_formulas_with_their_values(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, *LLAMA, "--explain")
    assert "a token, full: 327,680 bytes\n    = 80 layers x 2 x 8 heads x 128 x 2 bytes\n" in out


def test_notes_say_what_no_table_does(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = printed(capsys, *LLAMA, "--gpus", "16", "--shared-prefix", "2048", "--users", "100000")
    assert "keep 2 copies of it in all" in out
    assert "2,048 tokens that all prompts begin with are kept once" in out
    assert "There is room for" in out
    alone = (
        printed(capsys, "plan", "gpt2", "--memory", "1GiB", "--json"),
        printed(capsys, "plan", "gpt2", "--memory", "1GiB"),
    )
    nbytes = json.loads(alone[0])["budget"]["cache_nbytes"]
    assert f"--kv-cache-memory-bytes {nbytes}; by itself it takes 40% of free memory, at most 4 GiB" in alone[1]
    assert "fp8; here they count in bfloat16" in printed(capsys, "plan", "deepseek-v3", "--dtype", "bfloat16")
    assert "latent rows are keys and values at once" in printed(capsys, "plan", "deepseek-v3")


def test_what_limits_users_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    out = printed(capsys, "plan", "mamba-2.8b", "--machine", "H100", "--context", "4096")
    assert "States are enough for 2,840 users" in out
    assert "2,097,152 tokens at most: 512 of 4,096." in out
    out = printed(capsys, "plan", "gemma-3-27b", "--machine", "H100")
    assert "of 16.4 GiB for sliding 1024 1 user of 131,072 tokens take 1.23 GiB at most" in out
    out = printed(capsys, "plan", "llama-3-8b", "--machine", "H100")
    assert "divides memory before" not in out
    assert "States are enough" not in out


def test_nominal_memory_is_noted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    note = "80 GiB is what the maker states: what a driver holds of it is not taken off"
    for gpus in ("1", "2"):
        assert note in printed(capsys, "plan", "llama-3-8b", "--machine", "H100", "--gpus", gpus)
    assert note not in printed(capsys, "plan", "llama-3-8b", "--machine", "H100", "--memory", "80GiB")
    assert note not in printed(capsys, "plan", "llama-3-8b", "--machine", "H100", "--kv-cache-memory-bytes", "4GiB")


def test_what_is_unknown_is_no_never(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = {"model_type": "stablelm", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 50}), encoding="utf-8")
    out = printed(capsys, "plan", str(tmp_path))
    assert "never" not in out
    assert "config.json states no dtype" in " ".join(out.split())
    given = printed(capsys, "plan", str(tmp_path), "--dtype", "float32", "--weights", "1GiB")
    assert "states no dtype" not in " ".join(given.split())


def test_the_list_names_every_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "plan", "--list")
    assert len(shapes()) >= 25
    assert all(shape.name in out for shape in shapes())


def test_a_picture_is_drawn_and_not_written_over(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "plan.png"
    arguments = ["plan", "gpt2", "--machine", "L4", "--kv-cache-dtype", "auto", "int8", "--plot", str(file)]
    printed(capsys, *arguments)
    assert file.read_bytes().startswith(b"\x89PNG")
    file.write_bytes(b"mine")
    assert "--force" in refused(capsys, *arguments)
    assert file.read_bytes() == b"mine"
    printed(capsys, *arguments, "--force")
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Say which model"),
        (["llama-3-70b", "--machine", "H100"], "52.1 GiB less than its weights"),
        (["llama-3-8b", "--memory", "lots"], "512MiB or 4G"),
        (["llama-3-8b", "--bandwidth", "fast"], "as 3.35TB/s"),
        (["llama-3-8b", "--flops", "fast"], "as 990TFLOPS"),
        (["llama-3-8b", "--weights", "x"], "is not a size"),
        (["llama-3-8b", "--kv-cache-dtype", "int3"], "no format named 'int3'"),
        (["llama-3-8b", "--plot", "no/such/folder/plan.png"], "no folder no/such/folder"),
        (["llama-3-8b", "--users", "0"], "users is 0"),
    ],
    ids=repr,
)
def test_what_cannot_be_is_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert message in refused(capsys, "plan", *arguments)


def test_an_unknown_model_is_an_error_of_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "llama-3-7b"]) == 1
    assert "near it are llama-3-70b" in capsys.readouterr().err


def test_the_command_loads_neither_torch_nor_transformers() -> None:
    program = f"""
import sys
from pagoda.cli import main
status = main({LLAMA!r})
sys.exit(status or bool({{"torch", "transformers", "matplotlib"}} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", program], check=False, capture_output=True).returncode == 0
