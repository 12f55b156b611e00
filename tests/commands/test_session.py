"""What `pagoda session show` and `verify` say of files, without any model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pagoda.cache.prefix.keys import token_key
from pagoda.cache.prefix.names import Identity
from pagoda.cache.session_file import write_session
from pagoda.cache.session_parts import MOST_CREATED_MS, Conversation, Description
from pagoda.cache.tiers.record import Draft, Kind, Label
from pagoda.cli import main

IDENTITY = Identity("config", "weights", "", "full", "bf16", "", 32, "{}")
MESSAGES = [{"role": "user", "content": "Who are \x1b[31myou?"}, {"role": "assistant", "content": [{"text": "it"}]}]


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    path = tmp_path / "talk.pagoda"
    draft = Draft(
        Label(IDENTITY.digest, bytes(16), bytes(8), Kind.PAGE, 0, bytes(16), bytes(16), 32, token_key(range(32))), 2048
    )
    draft.body[:] = 7
    conversation = Conversation(np.arange(40, dtype=np.int32), "[bold]a title", MESSAGES)
    write_session(path, Description(IDENTITY, "tiny", MOST_CREATED_MS - 1, "talk"), conversation, [draft.seal(1)])
    return path


def test_show_says_what_a_session_is_and_quotes_nothing(talk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["session", "show", str(talk)]) == 0
    shown = capsys.readouterr().out
    assert all(said in shown for said in ("[bold]a title", "tiny", "bf16", IDENTITY.digest.hex(), "6429-"))
    assert "Who are" not in shown


def test_messages_are_quoted_when_asked_for_and_no_terminal_obeys_them(
    talk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["session", "show", str(talk), "--show-text"]) == 0
    shown = capsys.readouterr().out
    assert "Who are \N{REPLACEMENT CHARACTER}[31myou?" in shown
    assert '[{"text": "it"}]' in shown


def test_show_as_json(talk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["session", "show", str(talk), "--json", "--show-text"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["num_tokens"], told["num_records"], told["messages"]) == (40, 1, MESSAGES)
    assert told["nbytes"] == talk.stat().st_size
    assert told["identity"]["weights"] == "weights"


def test_verify_reads_every_page(talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["session", "verify", str(talk)]) == 0
    assert "1 page, " in capsys.readouterr().out
    damaged, cut = tmp_path / "damaged.pagoda", tmp_path / "cut.pagoda"
    content = bytearray(talk.read_bytes())
    content[content.index(bytes([7] * 100)) + 50] = 8
    damaged.write_bytes(content)
    cut.write_bytes(content[:-1])
    assert main(["session", "verify", str(talk), str(damaged), str(cut), "--json"]) == 1
    whole, broken, short = json.loads(capsys.readouterr().out)
    assert (whole["damages"], whole["error"]) == ([], None)
    assert [each["why"] for each in broken["damages"]] == ["its bytes are damaged"]
    assert "says that it has" in short["error"]
    assert main(["session", "verify", str(damaged)]) == 1
    assert "1 damaged" in capsys.readouterr().out


def test_what_is_no_session_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other").write_text("text")
    assert main(["session", "show", str(tmp_path / "other")]) == 1
    assert "It is no session" in capsys.readouterr().err


CHAT = [{"role": "user", "content": "Where is the harbour?"}, {"role": "assistant", "content": "By the sea."}]
SMALL = ["--kv-cache-memory-bytes", "16MiB", "--num-threads", "1"]


def test_what_was_saved_is_gone_on_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompt.txt").write_text("The sea was calm and the harbour lay still before sunrise\n")
    out = str(tmp_path / "talk.pagoda")
    assert main(["session", "save", "--file", str(tmp_path / "prompt.txt"), out, "--name", "talk", *SMALL]) == 0
    num_tokens = int(capsys.readouterr().out.split(": ")[1].split()[0])
    assert main(["session", "load", out, " over the water", "--max-tokens", "4", *SMALL]) == 0
    told = capsys.readouterr()
    assert told.out.strip()
    assert dict(line.strip().rsplit(maxsplit=1) for line in told.err.splitlines())["served from cache"] == str(
        num_tokens
    )
    assert main(["session", "verify", out]) == 0
    assert main(["session", "save", "--file", str(tmp_path / "prompt.txt"), out, *SMALL]) == 2
    assert "--force" in capsys.readouterr().err


def test_messages_of_a_json_file_are_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "chat.json").write_text(json.dumps({"messages": CHAT}))
    out = str(tmp_path / "talk.pagoda")
    assert main(["session", "save", "--file", str(tmp_path / "chat.json"), out, *SMALL]) == 0
    num_tokens = capsys.readouterr().out.split(": ")[1].split()[0]
    assert main(["session", "load", out, "And the lighthouse?", "--max-tokens", "4", *SMALL]) == 0
    assert f"served from cache  {num_tokens}" in capsys.readouterr().err


def test_a_session_of_another_format_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompt.txt").write_text("The sea was calm")
    out = str(tmp_path / "talk.pagoda")
    assert main(["session", "save", "--file", str(tmp_path / "prompt.txt"), out, *SMALL]) == 0
    assert main(["session", "load", out, "--kv-cache-dtype", "int8", *SMALL]) == 1
    assert "their format is" in capsys.readouterr().err
