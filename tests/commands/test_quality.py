"""`pagoda bench quality`: formats of pages next to exact ones."""

from __future__ import annotations

import json

import pytest
import torch

from pagoda.cli import main
from pagoda.commands.comparison import CUE_TOKENS, STRETCH_TOKENS, Probes
from pagoda.llm import EMBEDDED_MODEL
from pagoda.models.tokenizer import load_tokenizer

pytestmark = pytest.mark.usefixtures("two_threads")

SMALL = ("--windows", "2", "--window-tokens", "128", "--distances", "64", "--probes", "2", "--repeats", "1")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(EMBEDDED_MODEL)


@pytest.fixture(scope="module")
def filler(tokenizer):
    text = "The ship went on, and the old man looked at the sea as if it were a book that he had read before. " * 30
    return torch.tensor(tokenizer(text).input_ids)


def test_figures_of_every_format(tmp_path, capsys):
    files = tmp_path / "figures.json", tmp_path / "plot.png"
    formats = ("auto", "int8", "int4", "int4:none")
    assert not main(
        ["bench", "quality", *SMALL, "--formats", *formats, "--json", str(files[0]), "--plot", str(files[1])]
    )
    written = json.loads(files[0].read_text())
    found = {each["format"]: each for each in written["formats"]}
    assert list(found) == list(formats)
    for text in ("prose", "code"):
        exact, int8, int4 = (found[name]["texts"][text] for name in formats[:3])
        assert (exact["change"], exact["kl_mean"], exact["top1_agreement"]) == (0, 0, 1)
        assert 0 < int8["kl_mean"] < int4["kl_mean"] < 0.2
        assert int8["kl_mean"] < int8["kl_p99"]
        assert abs(int8["perplexity"] / exact["perplexity"] - 1 - int8["change"]) < 1e-6
    assert found["auto"]["bytes_per_token"] > 1.9 * found["int8"]["bytes_per_token"]
    assert found["int4"]["expected_loss"] > found["int8"]["expected_loss"] > 0
    assert found["int4:none"]["expected_loss"] is None
    assert all(len(each["decode_tokens_per_second"]) == 1 for each in found.values())
    assert all(0 <= each["recall"]["copy"]["64"] <= 1 for each in found.values())
    assert files[1].read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "prose" in printed and "copy at 64" in printed and "bytes of a token" in printed


def test_a_later_position_and_own_texts(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("The ship went on, and nobody spoke of the sea. " * 60)
    options = ("--texts", str(text), "--position", "1024", "--skip-speed", "--formats", "int8")
    assert not main(["bench", "quality", *SMALL, *options])
    assert "text.txt" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--texts", "/nowhere.txt"), "cannot be read as text"),
        (("--position", "5"), "multiple of 32"),
        (("--position", "999968"), "lower --position"),
        (("--windows", "0"), "at least one window"),
        (("--repeats", "0"), "one repeat"),
        (("--distances", "-5"), "numbers of tokens"),
        (("--distances", "3000"), "to put between"),
        (("--formats", "int3"), "int3"),
    ],
)
def test_what_cannot_be_measured_is_said_before(options, message, capsys):
    assert main(["bench", "quality", *SMALL, *options]) == 2
    assert message in capsys.readouterr().err


def test_a_needle_is_asked_for_after_the_distance(tokenizer, filler):
    for probe in Probes(tokenizer, filler).make("needle", 64, 5):
        told = tokenizer.decode(probe.token_ids[: probe.first_answer])
        answer = tokenizer.decode(probe.token_ids[probe.first_answer :]).strip()
        assert len(answer) == 5 and answer.isdigit()
        assert told.endswith(("The number of the harbour is", "is "))
        assert answer in told[:60]


def test_a_stretch_of_text_comes_again(tokenizer, filler):
    for probe in Probes(tokenizer, filler).make("copy", 64, 5):
        assert torch.equal(probe.token_ids[:STRETCH_TOKENS], probe.token_ids[-STRETCH_TOKENS:])
        assert len(probe.token_ids) == 2 * STRETCH_TOKENS + 64
        assert probe.first_answer == STRETCH_TOKENS + 64 + CUE_TOKENS
    first, second = (list(Probes(tokenizer, filler).make("copy", 64, 2)) for _ in range(2))
    assert all(torch.equal(a.token_ids, b.token_ids) for a, b in zip(first, second, strict=True))
