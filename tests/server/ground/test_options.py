"""What is wrong with the options is said before a model is loaded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pagoda import cli
from pagoda.errors import ConfigError
from pagoda.server.ground.options import ServerOptions


def test_a_missing_chat_template_ends_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "missing.jinja"
    assert cli.main(["serve", "--chat-template", str(missing), "--model", str(tmp_path)]) == cli.USAGE
    assert f"error: chat_template {missing} cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(("content", "message"), [(b"\xff\xfe", "cannot be read"), (b"", "is empty")])
def test_a_chat_template_is_text(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "template.jinja"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        ServerOptions(chat_template=file)


def test_a_chat_template_is_read_once(tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("{{ messages }}")
    options = ServerOptions(chat_template=file)
    file.unlink()
    assert options.chat_template_text == "{{ messages }}"
    assert ServerOptions().chat_template_text is None


@pytest.mark.parametrize("key", ["", "ö"])
def test_a_key_that_no_header_can_have_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="API key"):
        ServerOptions(api_key=(key,))


@pytest.mark.parametrize("origin", ["chat.example", "https://chat.example/", "https://Chat.example", "https://", ""])
def test_an_origin_is_as_browsers_send_it(origin: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(repr(origin))):
        ServerOptions(allowed_origins=(origin,))
