"""`pagoda explain` on two files: what it prints, what it refuses, and that it loads no model."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pagoda.cli import main
from pagoda.llm import EMBEDDED_MODEL
from pagoda.models.plain_tokenizer import load_plain_tokenizer

RULES = "You are the keeper of a lighthouse. It is {}. Answer in one sentence, and never of the war."


def body(time: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": RULES.format(time)}, {"role": "user", "content": "Where is the harbour?"}]
    return {"model": "m", "messages": messages, **more}


load_once = cache(load_plain_tokenizer)


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes a second, all of it in a child process."""
    monkeypatch.setattr("pagoda.commands.explain.load_plain_tokenizer", load_once)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    for name, time in (("earlier.json", "10:05:01"), ("later.json", "10:05:09")):
        (tmp_path / name).write_text(json.dumps(body(time)), encoding="utf-8")
    return [str(tmp_path / "earlier.json"), str(tmp_path / "later.json")]


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["explain", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_report_says_where_why_what_it_cost_and_what_to_change(files, capsys) -> None:
    prices = ["--prefill-rate", "100", "--price-input", "2", "--price-cached", "0.5"]
    found = report(capsys, *files, *prices)
    assert (found["cause"], found["place"]["section"], found["place"]["message"]) == ("timestamp", "system", 0)
    assert found["place"]["page"] * 32 + found["place"]["page_offset"] == found["place"]["token"]
    assert found["reused_tokens"] == found["place"]["token"]
    assert found["reused_tokens"] + found["computed_tokens"] == found["prompt_tokens"]
    assert found["missed_tokens"] == found["computed_tokens"] - 1
    assert found["missed_seconds"] == found["missed_tokens"] / 100
    assert found["missed_price"] == pytest.approx(found["missed_tokens"] * 1.5e-6)
    assert found["vendor"] == {"openai": "input_changed", "anthropic": "system_changed"}
    assert main(["explain", *files, *prices]) == 0
    shown = capsys.readouterr().out
    assert "in the system prompt. A date or time" in " ".join(shown.split())
    assert "What to change: Take the time out of there" in " ".join(shown.split())


def test_no_text_is_quoted_unless_it_is_asked_for(files, capsys) -> None:
    assert "lighthouse" not in json.dumps(report(capsys, *files))
    context = report(capsys, *files, "--show-text")["context"]
    assert context["before"].endswith("It is 10:05:0")
    assert context["earlier"].startswith("1. Answer")
    assert context["later"].startswith("9. Answer")
    assert main(["explain", *files]) == 0
    assert "lighthouse" not in capsys.readouterr().out


def test_pages_are_as_large_as_is_said(files, capsys) -> None:
    small, large = (report(capsys, *files, "--block-size", size)["place"] for size in ("16", "64"))
    assert (small["token"], small["page"]) == (large["token"], large["token"] // 16)


def test_a_template_of_ones_own_replaces_the_tokenizers(files, capsys, tmp_path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{% for message in messages | reverse %}[{{ message.content }}]{% endfor %}")
    own = report(capsys, *files, "--chat-template", str(template))
    assert own["place"]["token"] > report(capsys, *files)["place"]["token"]


def test_text_comes_from_a_file_or_from_standard_input(tmp_path, capsys, monkeypatch) -> None:
    (tmp_path / "earlier.txt").write_text("The sea was calm and blue.\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("The sea was calm and grey.\n"))
    found = report(capsys, str(tmp_path / "earlier.txt"), "-")
    assert (found["cause"], found["place"]["section"]) == ("input_changed", "prompt")


@pytest.mark.parametrize(
    ("earlier", "later", "cause"), [("a b\n", "a b c\n", "continued"), ("a b", "a b\n", "continued")]
)
def test_a_newline_counts_unless_it_ends_both_files(tmp_path, capsys, earlier, later, cause) -> None:
    for name, text in (("earlier", earlier), ("later", later)):
        (tmp_path / name).write_bytes(text.encode())
    found = report(capsys, str(tmp_path / "earlier"), str(tmp_path / "later"))
    assert (found["cause"], found["missed_tokens"]) == (cause, 0)


def test_nothing_is_shared_by_other_salts(tmp_path, capsys) -> None:
    names = []
    for salt in ("a", "b"):
        names.append(str(tmp_path / f"{salt}.json"))
        Path(names[-1]).write_text(json.dumps(body("10:05", cache_salt=salt)))
    found = report(capsys, *names)
    assert (found["cause"], found["reused_tokens"], found["place"]["token"]) == ("salt_changed", 0, 0)
    assert found["missed_tokens"] == found["prompt_tokens"] - 1


def test_windows_and_states_resume_where_the_engine_would(files, capsys, tmp_path) -> None:
    """The same tokenizer, beside layers of which some keep a window or a state alone."""
    folder = tmp_path / "hybrid"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((EMBEDDED_MODEL / name).read_bytes())
    config = {
        "model_type": "lfm2",
        "architectures": ["Lfm2ForCausalLM"],
        "layer_types": ["conv", "full_attention"],
        "vocab_size": 4096,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "conv_L_cache": 3,
        "intermediate_size": 64,
    }
    (folder / "config.json").write_text(json.dumps(config))
    found = report(capsys, *files, "--model", str(folder))
    assert found["note"] is None
    assert found["place"]["token"] > found["reused_tokens"] == 0
    assert "Of those before it 0 could be read" in found["sentence"]
    (folder / "config.json").unlink()
    plain = report(capsys, *files, "--model", str(folder))
    assert plain["reused_tokens"] == plain["place"]["token"]
    assert "config.json" in plain["note"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not valid JSON"),
        ('{"messages": []}', "messages"),
        ('{"messages": [{"role": "user"}, {"content": "x"}]}', "role"),
        ('{"temperature": 1}', "neither messages, input nor one prompt"),
        ('{"input": "x", "previous_response_id": "resp_1"}', "give the whole input"),
        ('{"prompt": ""}', "is empty"),
        ('{"prompt": ["The sea", "The land"]}', "has 2 prompts"),
        ('{"prompt": [[5, 6], [7], [8]]}', "has 3 prompts"),
        ('["The sea", "The land"]', "has 2 prompts"),
        ("[]", "neither messages, input nor one prompt"),
        ("null", "neither messages, input nor one prompt"),
        ("42", "neither messages, input nor one prompt"),
        ("true", "neither messages, input nor one prompt"),
        ('[{"role": "user", "content": "x"}, 5]', "neither messages, input nor one prompt"),
        ('{"prompt": [1, 99999999999]}', "99999999999 among its token ids"),
        ("[1, -4]", "-4 among its token ids"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "tokenizer fails"),
    ],
)
def test_what_is_no_request_is_refused_by_name(files, capsys, tmp_path, text, words) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text(text)
    assert main(["explain", files[0], str(wrong)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "wrong.json" in error


def test_a_list_of_one_prompt_is_that_prompt(capsys, tmp_path) -> None:
    for name, value in (("earlier", "The sea was calm."), ("later", ["The sea was calm."])):
        (tmp_path / f"{name}.json").write_text(json.dumps({"prompt": value}))
        (tmp_path / f"{name}-alone.json").write_text(json.dumps(value))
    assert report(capsys, *(str(tmp_path / f"{name}.json") for name in ("earlier", "later")))["cause"] == "none"
    assert report(capsys, *(str(tmp_path / f"{name}-alone.json") for name in ("earlier", "later")))["cause"] == "none"


def test_numbers_in_a_file_of_text_are_text(capsys, tmp_path) -> None:
    for name, text in (("earlier", "42"), ("later", "43")):
        (tmp_path / name).write_text(text)
    assert report(capsys, str(tmp_path / "earlier"), str(tmp_path / "later"))["cause"] == "input_changed"


def test_wrong_calls_say_what_to_give(files, capsys, tmp_path) -> None:
    assert main(["explain"]) == 2
    assert "--request-id" in capsys.readouterr().err
    assert main(["explain", files[0]]) == 2
    assert main(["explain", *files, files[0]]) == 2
    assert main(["explain", files[0], str(tmp_path / "missing.json")]) == 2
    assert "missing.json cannot be read" in capsys.readouterr().err
    assert main(["explain", *files, "--model", str(tmp_path / "nowhere")]) == 1
    capsys.readouterr()
    assert main(["explain", *files, "--url", "http://localhost:1"]) == 2
    assert "give --url twice" in capsys.readouterr().err
    assert main(["explain", *files, *["--url", "http://localhost:1"] * 3]) == 2
    assert "give --url twice" in capsys.readouterr().err
    assert main(["explain", *["--url", "http://localhost:1"] * 2]) == 2
    assert "Give two files" in capsys.readouterr().err
    assert main(["explain", "--identity", "a", "b"]) == 2
    assert "Give two files" in capsys.readouterr().err
    assert main(["explain", *files, "--identity", "a", "b", "--url", "http://localhost:1"]) == 2
    assert "--url and --identity" in capsys.readouterr().err
    assert main(["explain", *files, "--url", "http://localhost:1", "--request-id", "a"]) == 2
    assert "files and a --request-id" in capsys.readouterr().err
    assert main(["explain", *files, "--identity", files[0], files[1]]) == 2
    error = capsys.readouterr().err
    assert "earlier.json has no identity of pages" in error
    assert "/v1/kv/identity" in error
    (tmp_path / "broken.json").write_text("{")
    assert main(["explain", *files, "--identity", str(tmp_path / "broken.json"), files[1]]) == 2
    assert "broken.json is not valid JSON" in capsys.readouterr().err
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert main(["explain", files[0], str(tmp_path / "binary")]) == 2
    for option in (("--price-input", "-1"), ("--prefill-rate", "x"), ("--block-size", "0"), ("--block-size", "33")):
        with pytest.raises(SystemExit):
            main(["explain", *files, *option])


def test_no_model_is_loaded(files) -> None:
    code = f"import sys; from pagoda.cli import main; main(['explain', *{files}]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
