"""`pagoda simulate` as people call it: what it prints and writes, and what it says of what cannot be."""

import csv
import json
import shutil
import subprocess
import sys
from functools import cache

import pytest

from analysis.synthetic import block_rows, written
from pagoda.cli import main
from pagoda.commands.trace_texts import EMBEDDED_MODEL
from pagoda.models.plain_tokenizer import load_plain_tokenizer

load_once = cache(load_plain_tokenizer)


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch):
    """Each takes a second, all of it in a child process."""
    monkeypatch.setattr("pagoda.commands.trace_texts.load_plain_tokenizer", load_once)


@pytest.fixture
def trace(tmp_path):
    return written(tmp_path / "trace.jsonl", block_rows(150))


def simulate(*arguments):
    return main(["simulate", *map(str, arguments)])


def figures(capsys, *arguments):
    assert simulate(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


class TestTiers:
    def test_what_was_found_where_adds_up(self, trace, tmp_path, capsys):
        table, picture = tmp_path / "tiers.csv", tmp_path / "tiers.png"
        sizes = ("--kv-host-bytes", "40pages", "--kv-disk-bytes", "200000tokens", "--kv-write", "evict")
        [row] = figures(capsys, trace, "--capacity", "40pages", *sizes, "--csv", table, "--plot", picture)["runs"]
        assert row["pool_hit_tokens"] + row["host_hit_tokens"] + row["disk_hit_tokens"] == row["hit_tokens"]
        assert min(row["host_hit_tokens"], row["disk_hit_tokens"], row["disk_written_tokens"]) > 0
        assert row["disk_written_bytes"] is None
        [written] = csv.DictReader(table.read_text().splitlines())
        assert int(written["disk_hit_tokens"]) == row["disk_hit_tokens"]
        assert simulate(trace, "--capacity", "40pages", *sizes) == 0
        out = capsys.readouterr().out
        assert all(heading in out for heading in ("in pool", "in host", "in disk", "to disk"))

    def test_a_slow_tier_is_not_read(self, trace, capsys):
        rates = ("--prefill-rate", "20000", "--decode-rate", "30", "--capacity", "60pages", "--kv-disk-bytes", "inf")
        [free] = figures(capsys, trace, *rates)["runs"]
        [fast] = figures(capsys, trace, *rates, "--kv-disk-rate", "1000000")["runs"]
        [slow] = figures(capsys, trace, *rates, "--kv-disk-rate", "2000")["runs"]
        assert free["disk_hit_tokens"] > slow["disk_hit_tokens"]
        assert free["ttft_p50_seconds"] <= fast["ttft_p50_seconds"] <= slow["ttft_p50_seconds"]

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("--kv-disk-bytes", "3GiB"), "give --model"),
            (("--kv-disk-bytes", "10"), "holds no page"),
            (("--kv-disk-bytes", "10pages", "--kv-disk-rate", "5"), "for the time model"),
            (("--kv-disk-bytes", "10pages", "--policy", "belady"), "without tiers"),
        ],
    )
    def test_what_cannot_be_is_told(self, trace, capsys, options, said):
        assert simulate(trace, "--capacity", "40pages", *options) != 0
        assert said in capsys.readouterr().err


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

    def test_rows_to_standard_output(self, trace, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert simulate(trace, "--capacity", "20%", "inf", "--csv", "-", "--processes", "1") == 0
        rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
        assert [row["capacity"] for row in rows] == ["20%", "inf"]
        assert not (tmp_path / "-").exists()
        assert simulate(trace, "--csv", "-", "--json") == 2
        assert "both go to standard output" in capsys.readouterr().err

    @pytest.mark.parametrize("option", ["--csv", "--plot"])
    def test_what_is_read_is_not_written_over(self, trace, tmp_path, capsys, option):
        link = tmp_path / "link.png"
        link.symlink_to(trace)
        rates = tmp_path / "rates.png"
        rates.write_text("{}")
        for file, more in ((link, []), (rates, ["--rates", rates])):
            before = file.read_bytes()
            assert simulate(trace, option, file, "--force", *more) == 2
            assert "is read by this command; name another file" in capsys.readouterr().err
            assert file.read_bytes() == before

    def test_two_outputs_are_two_files(self, trace, tmp_path, capsys):
        file = tmp_path / "x.png"
        assert simulate(trace, "--csv", file, "--plot", file) == 2
        assert "both write" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("options", "num_timed"),
        [(["--model", "llama-3-70b"], 3), (["--policy", "all"], 3 * 7), (["--policy", "lru"], 3)],
    )
    def test_a_table_has_every_figure_within_80_columns(self, trace, capsys, monkeypatch, options, num_timed):
        monkeypatch.setattr("os.cpu_count", lambda: 1)  # processes would take longer to start than all of it takes
        rates = ["--prefill-rate", "20000", "--decode-rate", "31", "--ttl", "3", "--request-rate", "2"]
        assert simulate(trace, *options, *rates, "--capacity", "20pages", "40%", "inf") == 0
        _, *lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 80
        assert not any("…" in line for line in lines)
        shown = " ".join(lines)
        for heading in ("tokens found", "expired", "too long", "first token p50", "p90", "p99", "output", "sent back"):
            assert shown.count(heading) == 1
        assert shown.count("tokens/s") == num_timed

    def test_that_nothing_can_be_found_is_told_and_not_tried(self, tmp_path, capsys):
        """Of lengths, and of prompts that have nothing in common."""
        rows = [{"timestamp": 9, "input_length": 2000, "output_length": 9} for _ in range(9)]
        other = [{**row, "hash_ids": [4 * number + part for part in range(4)]} for number, row in enumerate(rows)]
        for each, why in ((rows, "how long prompts are"), (other, "begin with the same block")):
            file = written(tmp_path / "trace.jsonl", each)
            found = figures(capsys, file, "--capacity", "2pages", "inf")
            assert why in found["note"]
            assert "nothing was replayed" in found["note"]
            assert [run["evicted_pages"] for run in found["runs"]] == [None, None]
            assert [run["too_long_requests"] for run in found["runs"]] == [9, 0]
            assert [run["computed_tokens"] for run in found["runs"]] == [0, 18_000]
            assert simulate(file) == 0
            assert "Nothing can be found" in capsys.readouterr().out
            timed = figures(capsys, file, "--capacity", "inf", "--prefill-rate", "9", "--decode-rate", "9")
            assert "nothing was replayed" not in timed["note"]
            assert timed["runs"][0]["output_tokens"] == 81
        assert figures(capsys, written(file, block_rows(9)), "--capacity", "inf")["note"] is None

    def test_requests_that_do_not_say_when_they_came(self, tmp_path, capsys):
        rows = block_rows(6)
        for number, row in enumerate(rows):
            row["timestamp"] = f"2024-05-01T10:00:0{number}Z"
        del rows[2]["timestamp"]
        rates = ("--prefill-rate", "50000", "--decode-rate", "50", "--capacity", "inf")
        file = written(tmp_path / "trace.jsonl", rows)
        assert simulate(file, *rates, "--json") == 0
        out, error = capsys.readouterr()
        found = json.loads(out)
        assert found["trace"]["requests_without_time"] == 1
        assert 5 < found["runs"][0]["duration_seconds"] < 10
        assert "1 of 6 requests do not say when they came: each comes with the one before it" in error
        for row in rows:
            row.pop("timestamp", None)
        assert simulate(written(file, rows), *rates) == 0
        assert "does not say when requests came: all are there at once" in capsys.readouterr().err

    def test_what_the_server_found_stands_beside_a_request_log(self, tmp_path, capsys):
        def line(name, cached):
            return {
                "log": "pagoda.requests/1",
                "input_length": 40,
                "output_length": 1,
                "cached_tokens": cached,
                "page_tokens": 32,
                "pages": ["same"],
                "prompt_tail": name,
                "tail": name,
            }

        file = written(tmp_path / "log.jsonl", [line("a", 0), line("b", 36), {**line("c", None)}, line("d", 41)])
        found = figures(capsys, file, "--capacity", "inf")
        assert found["trace"]["server_hit_tokens"] == 36
        assert found["trace"]["server_prompt_tokens"] == 80
        assert found["runs"][0]["hit_tokens"] == 64
        assert found["trace"]["faults"] == [{"line": 4, "problem": "cached_tokens is 41, and its prompt has 40"}]
        assert simulate(file, "--capacity", "inf") == 0
        assert "the server itself found 36 of 80 prompt tokens (45.00%)" in capsys.readouterr().out

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

        asks = (
            lambda letter: {"messages": [question], "tools": [tool(letter)]},
            lambda letter: {"messages": [question], "system": letter * 200},
            lambda letter: {"body": {"input": question["content"], "instructions": letter * 200}},
            lambda letter: {"messages": picture(letter)},
        )
        shares = []
        for seconds in ("aceg", "bdfh"):
            letters = zip(asks, "aceg", seconds, strict=True)
            rows = [ask(letter) for ask, first, second in letters for letter in (first, second)]
            (run,) = figures(capsys, written(tmp_path / "chat.jsonl", rows), "--capacity", "inf", *options)["runs"]
            shares.append(run["token_hit_rate"])
        # A pair has about a quarter of the tokens: one that did otherwise than the rest would show.
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
