"""The command line from end to end on the embedded model: what it prints, where, and with which exit status."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import wave
from functools import cache
from pathlib import Path

import pytest

from encoder_checkpoints import END, RATE, START, save
from pagoda.cli import build_parser, main
from pagoda.commands import doctor, measuring
from pagoda.config import Environment
from pagoda.models.loader import load_model
from pagoda.registry import registered
from toys import ToyKernels

PROMPT = "The room was a pleasant one, at the top of the house,"
# One thread: threads of a small model wait for each other more than they work, all the more on a busy machine.
ENGINE = ["--kv-cache-memory-bytes", "16MiB", "--num-threads", "1"]
SMALL = ["--temperature", "0", "--max-tokens", "8", *ENGINE]

load_once = cache(load_model)


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command loads its model; here they share one, which takes seconds to load."""
    monkeypatch.setattr("pagoda.llm.load_model", load_once)
    monkeypatch.setattr("pagoda.commands.bench.load_model", load_once)


class Terminal(io.StringIO):
    """Standard input or output that a person sits at."""

    def isatty(self) -> bool:
        return True


def generated(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `pagoda generate` writes to standard output."""
    assert main(["generate", *arguments, *SMALL]) == 0
    return capsys.readouterr().out


def test_generate_prints_the_text_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", PROMPT, *SMALL, "--ignore-eos"]) == 0
    captured = capsys.readouterr()
    assert captured.out.endswith("\n")
    assert captured.out.strip()
    assert captured.err == ""


def test_a_prompt_reads_the_same_from_argument_file_and_pipe(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text(PROMPT + "\n", encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO(PROMPT + "\n"))
    assert generated(capsys, PROMPT) == generated(capsys, "--file", str(file)) == generated(capsys)


def test_json_is_the_request_output(capsys: pytest.CaptureFixture[str]) -> None:
    output = json.loads(generated(capsys, PROMPT, "--json", "--n", "2", "--logprobs", "3", "--ignore-eos"))
    assert output["prompt"] == PROMPT
    assert [len(completion["token_ids"]) for completion in output["outputs"]] == [8, 8]
    assert len(output["outputs"][0]["logprobs"][0]["top"]) == 3
    assert output["outputs"][0]["finish_reason"] == "length"
    assert output["metrics"]["ttft_seconds"] > 0


def test_json_has_the_log_probabilities_of_the_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    output = json.loads(generated(capsys, PROMPT, "--json", "--prompt-logprobs", "2"))
    first, *rest = output["prompt_logprobs"]
    assert first is None
    assert [entry["token_id"] for entry in rest] == output["prompt_token_ids"][1:]
    assert all(len(entry["top"]) == 2 for entry in rest)


def test_output_has_the_form_of_a_schema_or_a_pattern(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "array", "items": {"enum": ["é", 1]}, "minItems": 1, "maxItems": 1}', encoding="utf-8")
    assert json.loads(generated(capsys, PROMPT, "--json-schema", str(schema))) in (["é"], [1])
    assert re.fullmatch(r"\d{4}\n", generated(capsys, PROMPT, "--regex", r"\d{4}"))


def test_several_samples_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    text = generated(capsys, PROMPT, "--n", "2", "--ignore-eos")
    assert "--- sample 1\n" in text
    assert "--- sample 2\n" in text


def test_stats_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", PROMPT, *SMALL, "--stats", "--ignore-eos"]) == 0
    captured = capsys.readouterr()
    for word in ("served from cache", "time to first token", "decode", "KV cache per token", "pages used", "kernels"):
        assert word in captured.err
        assert word not in captured.out


def test_stats_say_where_the_time_went(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", PROMPT, *SMALL, "--stats", "--ignore-eos", "--json"]) == 0
    captured = capsys.readouterr()
    for word in ("queue", "prefill", "decode", "waiting", "beside the model", "verdict"):
        assert word in captured.err
    told = json.loads(captured.out)
    assert sum(told["time"]["wall"].values()) == pytest.approx(told["metrics"]["ended"] - told["metrics"]["arrival"])
    assert told["verdict"][0].startswith("The first token took ")
    assert "".join(told["verdict"][0].split()) in "".join(captured.err.split())


def test_token_ids_in_and_out_without_a_tokenizer(capsys: pytest.CaptureFixture[str]) -> None:
    text = generated(capsys, "--skip-tokenizer-init", "--ignore-eos", "--prompt-token-ids", "5", "6", "7")
    assert len([int(token) for token in text.split()]) == 8


def test_stop_ends_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    whole = generated(capsys, PROMPT, "--ignore-eos").rstrip("\n")
    assert generated(capsys, PROMPT, "--ignore-eos", "--stop", whole[3:6]).rstrip("\n") == whole[:3]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["generate", "x", "--model", "/no/such/model"], 1, "/no/such/model"),
        (["generate", ""], 1, "prompt is empty"),
        (["generate", "word " * 5000], 1, "shorten it"),
        (["generate", "--prompt-token-ids", "99999999"], 1, "99999999"),
        (["generate", "x", "--skip-tokenizer-init"], 1, "without a tokenizer"),
        (["generate", "x", "--top-p", "3"], 2, "top_p is 3"),
        (["generate", "x", "--block-size", "7"], 2, "block_size is 7"),
        (["generate", "x", "--kv-cache-memory-bytes", "1KiB"], 2, "less than one page"),
        (["generate", "x", "--kv-cache-dtype", "int3"], 2, "int3"),
        (["generate", "x", "--eviction-policy", "none"], 2, "none"),
        (["generate", "--file", "/no/such/file"], 2, "/no/such/file"),
        (["generate", "x", "--json-schema", "/no/such/schema"], 2, "/no/such/schema"),
        (["generate", "x", "--regex", "(("], 1, "regex cannot be enforced"),
        (["bench", "--repeats", "0"], 2, "--repeats is 0"),
        (["bench", "--random-weights", "gpt-9"], 2, "qwen2.5-0.5b"),
        (["bench", "--random-weights", "qwen2.5-0.5b", "--model", "x"], 2, "two models"),
    ],
)
def test_errors_are_one_line_and_an_exit_status(
    capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, message: str
) -> None:
    assert main(arguments) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "command"),
        (["dance"], "'dance'"),
        (["generate", "--top-k", "many"], "--top-k"),
        (["generate", "--kv-cache-memory-bytes", "3 parsecs"], "'3 parsecs' is not a size"),
        (["bench", "--scenario", "marathon"], "'marathon'"),
        (["generate", "--regex", "a", "--json-schema", "b"], "not allowed with argument --regex"),
    ],
)
def test_usage_errors_name_the_help(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "--help" in error


def test_a_terminal_without_a_prompt_is_told_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal())
    assert main(["generate"]) == 2
    assert "There is no prompt" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["PAGODA_KERNELS", "PAGODA_KERNEL_ISA", "PAGODA_LOG_LEVEL"])
def test_wrong_environment_variables_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "imaginary")
    assert main(["generate", "x"]) == 2
    assert "imaginary" in capsys.readouterr().err.lower()


def test_interrupting_ends_with_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pagoda.llm.LLM.stream", interrupted)
    assert main(["generate", "x", *SMALL]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_help_names_every_command_and_needs_no_torch() -> None:
    code = "import sys, pagoda.cli as c; print(c.build_parser().format_help()); assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("generate", "chat", "bench", "doctor"):
        assert f"\n    {command}" in result.stdout


def test_every_command_shows_examples() -> None:
    commands = build_parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    for name, parser in dict(commands).items():  # type: ignore[arg-type]
        assert f"pagoda {name}" in parser.epilog


class TestChat:
    """Conversations, through a pipe and at a terminal."""

    def talk(self, monkeypatch: pytest.MonkeyPatch, lines: str, *arguments: str) -> int:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        return main(["chat", *SMALL, *arguments])

    def test_each_turn_starts_from_the_last_ones_pages(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        question = "Tell me about the sea. " * 10
        assert self.talk(monkeypatch, f"{question}\nAnd then?\n", "--stats", "--ignore-eos") == 0
        first, second = [line.replace(",", "") for line in capsys.readouterr().err.split("]") if "cached" in line]
        num_first = int(first.split("[")[1].split()[0])
        num_cached = int(second.split("tokens:")[1].split()[0])
        # All but the last generated token has keys and values when the turn ends.
        assert num_cached == num_first + 7

    def test_answers_alone_go_to_standard_output(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert self.talk(monkeypatch, "/help\n/stats\n\nHello.\n/reset\nHello.\n/nonsense\n/quit\nnever asked\n") == 0
        captured = capsys.readouterr()
        assert "/reset" not in captured.out
        assert "/nonsense" in captured.err
        assert "Forgotten." in captured.err
        half = len(captured.out) // 2
        assert captured.out[:half] == captured.out[half:]  # the same question, the same answer, twice

    def test_a_refused_turn_ends_a_pipe(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert self.talk(monkeypatch, "word " * 5000 + "\n") == 1
        assert "error: " in capsys.readouterr().err

    def test_a_refused_turn_leaves_a_terminal_alive(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lines = iter(["word " * 5000, "Hello.", "/quit"])
        monkeypatch.setattr("sys.stdin", Terminal())
        monkeypatch.setattr("builtins.input", lambda _: next(lines))
        assert main(["chat", *SMALL, "--ignore-eos"]) == 0
        captured = capsys.readouterr()
        assert "/reset starts over" in captured.err
        assert captured.out.strip()

    def test_without_a_tokenizer_it_says_so(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["chat", "--skip-tokenizer-init"]) == 1
        assert "tokenizer" in capsys.readouterr().err


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return options_of(save("bart", tmp_path_factory.mktemp("bart")))


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return options_of(save("whisper", tmp_path_factory.mktemp("whisper")))


class TestEncoders:
    """Models whose encoder reads a text or a sound."""

    @pytest.fixture
    def sound(self, tmp_path: Path) -> str:
        with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes(bytes(2 * 4000))
        return str(tmp_path / "sound.wav")

    def test_a_prompt_is_what_the_encoder_reads(self, bart: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["generate", "w10 w11", "--decoder-prompt", "w20", "--json", "--stats", *bart]) == 0
        captured = capsys.readouterr()
        found = json.loads(captured.out)
        assert found["encoder_prompt_token_ids"] == [10, 11, END]
        assert found["prompt_token_ids"] == [START, 20]
        assert "encoder tokens" in captured.err
        assert "per encoder token" in captured.err

    def test_sound(self, whisper: list[str], sound: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["generate", "--audio", sound, "--decoder-prompt", "w5", "--json", *whisper]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["num_encoder_tokens"], found["prompt_token_ids"]) == (24, [START, 5])

    def test_what_does_not_fit_the_model(
        self, bart: list[str], whisper: list[str], sound: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for arguments, status, message in (
            (["generate", "w5", *whisper], 1, "reads sound"),
            (["generate", "--audio", sound, *bart], 1, "reads text"),
            (["generate", "w5", "--audio", sound, *whisper], 2, "a prompt and --audio"),
            (["generate", "w5", "--decoder-prompt", "w6", *SMALL], 1, "has no encoder"),
            (["chat", *bart], 2, "use pagoda generate"),
            (["bench", "--model", bart[1]], 2, "for decoders"),
        ):
            assert main(arguments) == status
            assert message in capsys.readouterr().err


def options_of(checkpoint: Path) -> list[str]:
    words = str(checkpoint / "words")
    return ["--model", str(checkpoint), "--tokenizer", words, "--kv-cache-memory-bytes", "4MiB", "--max-tokens", "4"]


class TestDoctor:
    """What `pagoda doctor` finds."""

    def findings(self, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
        found = json.loads(capsys.readouterr().out)["findings"]
        return {f"{finding['section']}/{finding['name']}": finding["value"] for finding in found}

    @pytest.fixture
    def short_text(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What formats cost, which takes most of the time, is found over a few tokens."""
        monkeypatch.setattr("pagoda.engine.format_fit.MOST_TOKENS", 100)

    def test_a_working_installation(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["doctor", "--json"]) == 0
        findings = self.findings(capsys)
        for name in ("versions/torch", "versions/transformers", "machine/cores", "machine/memory", "kernels/why"):
            assert findings[name]
        assert "the cache is consistent" in findings["model/check"]
        assert re.fullmatch(r"should cost [\d.]+% of perplexity", findings["model/pages in int4"])

    def test_what_is_missing_of_an_extra_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The client of a shared store works without its parser, at a fraction of the rate."""
        monkeypatch.setattr(doctor, "find_spec", lambda module: None if module == "hiredis" else object())
        findings = doctor.diagnose(Environment())
        value = next(each.value for each in findings if each.name == "pages in a shared store")
        assert value == "hiredis not installed; get it with: pip install 'pagoda-kv[remote]'"

    @pytest.mark.usefixtures("short_text")
    def test_limits_and_what_is_reached_of_them_are_measured(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(measuring, "STREAMED_NBYTES", 32 << 20)
        assert main(["doctor", "--measure", "--json"]) == 0
        findings = self.findings(capsys)
        for name in ("memory read", "memory read, small pages", "arithmetic", "linear layer, 64 rows"):
            assert re.search(r"[1-9].* (GB|GFLOP)/s", findings[f"measured/{name}"])
        for name in ("linear layer, 1 row", "linear layer, 8 rows", "attention over int4 pages"):
            assert re.fullmatch(r"[\d.]+ GB/s, \d+% of its limit", findings[f"measured/{name}"])
        assert re.match(r"[\d.]+ tokens/s alone; reading all weights allows", findings["model/decode"])

    @pytest.mark.usefixtures("short_text")
    def test_forced_kernels_are_said_to_be_forced(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PAGODA_KERNELS", "reference")
        assert main(["doctor", "--json"]) == 0
        findings = self.findings(capsys)
        assert findings["kernels/in use"].startswith("reference")
        assert findings["kernels/why"] == "forced by PAGODA_KERNELS=reference"

    @pytest.mark.usefixtures("short_text")
    def test_what_a_backend_leaves_to_the_reference_is_said(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PAGODA_KERNELS", "toy")
        monkeypatch.setattr(ToyKernels, "obstacle", lambda *_: "everything is beyond a toy")
        with registered("kernels", "toy", "toys:ToyKernels"):
            assert main(["doctor", "--json"]) == 0
        findings = self.findings(capsys)
        assert findings["kernels/in use"] == "toy"
        assert findings["kernels/why"] == "forced by PAGODA_KERNELS=toy"
        assert "full attention run on the slow reference kernels: everything is" in findings["kernels/attention"]

    def test_something_broken_makes_the_exit_status_1(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PAGODA_KERNEL_ISA", "imaginary")
        assert main(["doctor"]) == 1
        text = capsys.readouterr().out
        assert "imaginary" in text
        assert "broken" in text


def test_bench_measures_every_scenario(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    sizes = ["--prompt-tokens", "64", "--output-tokens", "3", "--batch", "3", "--repeats", "2"]
    assert main(["bench", *sizes, "--json", str(file), *ENGINE]) == 0
    shown = capsys.readouterr().out
    measurements = {found["name"]: found for found in json.loads(file.read_text())["measurements"]}
    assert all(len(found["values"]) == 2 for found in measurements.values())
    assert all(name.strip() in shown for name in measurements)
    # Two full pages are shared, so two of three requests compute what is left of 64 tokens.
    assert measurements["prompt tokens"]["values"] == [192, 192]
    assert max(measurements["  of them computed"]["values"]) <= 64 + 2 * 32
