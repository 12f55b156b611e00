"""`pagoda simulate` as people call it: what it prints and writes, and what it says of what cannot be."""

import csv
import json
import shutil
import subprocess
import sys

import pytest

from analysis.synthetic import block_rows, written
from pagoda.cli import main
from pagoda.commands.trace_texts import EMBEDDED_MODEL


@pytest.fixture
def trace(tmp_path):
    return written(tmp_path / "trace.jsonl", block_rows(150))


def simulate(*arguments):
    return main(["simulate", *map(str, arguments)])


def figures(capsys, *arguments):
    assert simulate(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


class TestOutput:
    def test_a_table(self, trace, capsys):
        assert simulate(trace, "--capacity", "50pages,inf", "--policy", "lru", "belady", "--processes", "1") == 0
        out = capsys.readouterr().out
        assert "trace.jsonl: 150 requests" in out
        assert [line.split()[:2] for line in out.splitlines()[2:]] == [
            ["lru", "50pages"],
            ["lru", "inf"],
            ["belady", "50pages"],
            ["belady", "inf"],
        ]

    def test_every_policy_at_the_usual_capacities(self, trace, capsys):
        """In several processes, which find what one finds."""
        found = figures(capsys, trace, "--policy", "all", "--processes", "2")
        alone = figures(capsys, trace, "--policy", "all", "--processes", "1")
        assert found == alone
        assert len(found["runs"]) == 10 * 8
        rates = {(run["policy"], run["capacity"]): run["token_hit_rate"] for run in found["runs"]}
        for (policy, capacity), rate in rates.items():
            assert 0 <= rate <= rates["belady", capacity] <= rates["lru", "inf"], policy

    def test_files(self, trace, tmp_path, capsys):
        table, picture = tmp_path / "curves.csv", tmp_path / "curves.png"
        options = (trace, "--capacity", "20%", "60%", "inf", "--csv", table, "--plot", picture, "--processes", "1")
        assert simulate(*options) == 0
        rows = list(csv.DictReader(table.read_text().splitlines()))
        assert [row["capacity"] for row in rows] == ["20%", "60%", "inf"]
        assert 0 < float(rows[0]["token_hit_rate"]) < float(rows[2]["token_hit_rate"])
        assert picture.read_bytes().startswith(b"\x89PNG")
        before = picture.read_bytes()
        assert simulate(*options) == 2
        assert "exists; name another file, or say --force" in capsys.readouterr().err
        assert picture.read_bytes() == before
        assert simulate(*options, "--force") == 0

    def test_times_of_a_timed_run(self, trace, capsys):
        rates = ("--prefill-rate", "50000", "--decode-rate", "50")
        (run,) = figures(capsys, trace, "--capacity", "inf", *rates)["runs"]
        assert 0 < run["ttft_p50_seconds"] <= run["ttft_p90_seconds"] <= run["ttft_p99_seconds"]
        assert run["output_tokens"] == 150 * 9
        assert simulate(trace, "--capacity", "inf", "50pages", *rates, "--replicas", "2") == 0
        assert "first token p50" in capsys.readouterr().out

    def test_bytes_of_a_model(self, trace, tmp_path, capsys):
        config = {
            "model_type": "llama",
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "hidden_size": 8192,
            "vocab_size": 128256,
            "max_position_embeddings": 8192,
            "torch_dtype": "bfloat16",
        }
        (tmp_path / "config.json").write_text(json.dumps(config))
        for model in (tmp_path, tmp_path / "config.json", "llama-3-70b"):
            found = figures(capsys, trace, "--model", model, "--capacity", "10GiB", "1000tokens", "--processes", "1")
            first, second = found["runs"]
            assert first["capacity_tokens"] == 32 * 1024, "320 KiB a token"
            assert second["capacity_bytes"] == 31 * 32 * 327_680
            assert first["peak_bytes"] <= 10 << 30

    @pytest.mark.parametrize("model", ["llama-3-70b", "gemma-3-27b", None])
    def test_more_than_the_trace_fills_is_as_much_as_without_limit(self, trace, capsys, model):
        sizes = ["1000000000GiB"] if model else ["10000000000pages", "1000000000%"]
        options = ["--model", model] if model else []
        *runs, unlimited = figures(capsys, trace, "--capacity", *sizes, "inf", "--processes", "1", *options)["runs"]
        for run in runs:
            assert run["hit_tokens"] == unlimited["hit_tokens"] > 0
            assert run["peak_pages"] == unlimited["peak_pages"]
            assert run["evicted_pages"] == 0
            assert run["capacity_pages"] > 10**6

    def test_faults_are_told_and_left_out(self, tmp_path, capsys):
        lines = [json.dumps(row) for row in block_rows(5)]
        file = tmp_path / "trace.jsonl"
        file.write_text("\n".join([*lines, *["{"] * 7]))
        found = figures(capsys, file, "--capacity", "inf")
        assert found["trace"]["skipped_lines"] == 7
        assert found["trace"]["faults"][0]["line"] == 6
        assert simulate(file, "--capacity", "inf") == 0
        error = capsys.readouterr().err
        assert "7 lines are no request" in error
        assert "line 6: it is no JSON" in error
        assert "and 2 more" in error
        assert simulate(file, "--strict") == 1
        assert "line 6: it is no JSON" in capsys.readouterr().err

    def test_texts_by_the_embedded_tokenizer(self, tmp_path, capsys):
        rules = "You answer in one line, and you never tell the captain's name to anybody who asks for it. " * 4
        talks = [[{"role": "system", "content": rules}, {"role": "user", "content": f"{n}?"}] for n in range(4)]
        file = written(tmp_path / "chat.jsonl", [{"messages": talk} for talk in talks])
        (run,) = figures(capsys, file, "--capacity", "inf")["runs"]
        assert run["requests"] == 4
        assert run["token_hit_rate"] > 0.6

    @pytest.mark.parametrize(
        "template", [None, "{% for each in messages %}<{{each.role}}>{{each.content}}{% endfor %}"]
    )
    def test_texts_that_differ_before_their_common_end_share_nothing(self, tmp_path, capsys, template):
        """Whatever the difference is in, and whether the template shows tools or not."""
        question = {"role": "user", "content": "and here is a long question about what came before it " * 20}
        options = []
        if template is not None:
            shutil.copytree(EMBEDDED_MODEL, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
            (tmp_path / "model" / "chat_template.jinja").write_text(template)
            options = ["--tokenizer", tmp_path / "model"]

        def tool(letter):
            return {"type": "function", "function": {"name": letter * 30, "parameters": {"type": "object"}}}

        def picture(letter):
            part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{letter * 40}"}}
            return [{"role": "user", "content": [part, {"type": "text", "text": question["content"]}]}]

        for ask in (
            lambda letter: {"messages": [question], "tools": [tool(letter)]},
            lambda letter: {"messages": [question], "system": letter * 200},
            lambda letter: {"body": {"input": question["content"], "instructions": letter * 200}},
            lambda letter: {"messages": picture(letter)},
        ):
            shares = []
            for second in "ab":
                file = written(tmp_path / "chat.jsonl", [ask("a"), ask(second)])
                (run,) = figures(capsys, file, "--capacity", "inf", *options)["runs"]
                shares.append(run["token_hit_rate"])
            assert shares[0] > 0.45
            assert shares[1] < 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--policy", "mru"], "choose one of: lru"),
        (["--capacity", "0"], "less than a page"),
        (["--capacity", "much"], "is not a size"),
        (["--capacity", "1GiB"], "give --model"),
        (["--capacity", "9" * 310 + "GiB"], "is not a size"),
        (["--capacity", "9" * 300 + "TiB"], "is not a size"),
        (["--capacity", "9" * 20 + "GiB", "--model", "llama-3-70b"], "larger than any cache"),
        (["--ttl", "-1"], "must be positive"),
        (["--ttl", "nan"], "must be positive"),
        (["--ttl", "inf"], "must be positive"),
        (["--replicas", "0"], "not a positive whole number"),
        (["--replicas", "100000"], "simulate at most 1024"),
        (["--routing", "random"], "invalid choice"),
        (["--prefill-rate", "5"], "needs both"),
        (["--prefill-rate", "0", "--decode-rate", "5"], "must be positive"),
        (["--speed", "2"], "is for the time model"),
        (["--policy", "belady", "--replicas", "2"], "of one cache"),
        (["--plot", "no/such/directory.png"], "There is no directory"),
        (["--plot", "curves.xyz"], "no kind of picture"),
        (["--model", "missing"], "no shipped configuration 'missing'"),
        (["--kv-cache-dtype", "int8"], "give --model"),
        (["--tenants", "missing"], "cannot be read"),
        (["--rates", "missing"], "cannot be read"),
    ],
)
def test_what_cannot_be(trace, capsys, options, message):
    try:
        status = simulate(trace, *options)
    except SystemExit as end:  # argparse
        status = end.code
    assert status in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")


def test_it_loads_no_torch(trace):
    code = f"""
import sys
from pagoda.cli import main
main(["simulate", {str(trace)!r}, "--capacity", "inf"])
sys.exit("torch" in sys.modules or "transformers" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
