"""Traces as files have them: every kind, every way to write one down, and lines that are no request."""

import gzip
import json

import pytest

from analysis.synthetic import BLOCK, block_rows, read, written
from pagoda.analysis.traces.trace import Kind
from pagoda.errors import ConfigError, TraceError


class Letters:
    """A token for each character; a chat is its roles and texts."""

    def of_text(self, text):
        return [ord(each) for each in text]

    def of_chat(self, messages, tools):
        shown = "".join(f"<{each['role']}>{each['content']}" for each in messages) + "<assistant>"
        return self.of_text("".join(f"<tool>{each['function']['name']}" for each in tools) + shown)

    def of_answer(self, text):
        return self.of_text(text)


def read_rows(path, rows, **options):
    return read(written(path / "trace.jsonl", rows), tokens=Letters, **options)


def read_text(path, text, name="trace.jsonl", **options):
    file = path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(file, tokens=Letters, **options)


def texts(trace):
    return ["".join(map(chr, request.prompt)) for request in trace.requests]


def problems(trace):
    return {fault.line: fault.problem for fault in trace.faults}


class TestBlocks:
    def test_lengths_times_and_blocks(self, tmp_path):
        rows = block_rows(20)
        trace = read_rows(tmp_path, rows)
        assert (trace.kind, trace.unit_tokens) == (Kind.BLOCKS, BLOCK)
        assert [request.num_prompt_tokens for request in trace.requests] == [row["input_length"] for row in rows]
        assert [request.arrival_seconds for request in trace.requests] == [number / 10 for number in range(20)]
        numbers = {}
        for request, row in zip(trace.requests, rows, strict=True):
            assert all(
                numbers.setdefault(hash, n) == n for hash, n in zip(row["hash_ids"], request.prompt, strict=True)
            )
        assert len(set(numbers.values())) == len(numbers)

    def test_hashes_are_numbers_of_any_size_or_text(self, tmp_path):
        """Of large numbers some readers make floats, which are equal where the numbers are not."""
        hashes = [2**64 + 1, 2**64 + 2, -(2**70), 10**30, 10**30 + 1, "10", 10, "a" * 64]
        (request,) = read_rows(tmp_path, [{"input_length": 8 * BLOCK, "hash_ids": hashes}], block_tokens=BLOCK).requests
        assert len(set(request.prompt)) == len(hashes)

    @pytest.mark.parametrize("size", [16, 64, 256, 512, 1024])
    @pytest.mark.parametrize("has_partial", [True, False])
    def test_the_size_of_a_block_is_found_out(self, tmp_path, size, has_partial):
        lengths = [7 * size + 3, 12 * size, 3 * size + size // 2, 40 * size - 1]
        counts = [-(-length // size) if has_partial else length // size for length in lengths]
        rows = [
            {"input_length": length, "hash_ids": [f"{length}/{number}" for number in range(count)]}
            for length, count in zip(lengths, counts, strict=True)
        ]
        trace = read_rows(tmp_path, rows)
        assert trace.unit_tokens == size
        assert [len(request.prompt) for request in trace.requests] == [-(-length // size) for length in lengths]

    def test_of_two_sizes_that_fit_the_one_with_a_hash_for_every_block_is_taken(self, tmp_path):
        """300 tokens and 2 hashes are blocks of 256, and could be of 128 the last of which has none."""
        rows = [{"input_length": 300, "hash_ids": [1, number]} for number in range(6)]
        trace = read_rows(tmp_path, rows)
        assert trace.unit_tokens == 256
        assert {len(request.prompt) for request in trace.requests} == {2}

    @pytest.mark.parametrize("length", [100, 1024, 5000])
    def test_rows_without_hashes_tell_no_size(self, tmp_path, length):
        empty = {"input_length": length, "hash_ids": []}
        assert read_rows(tmp_path, [empty, empty]).unit_tokens == BLOCK
        rows = [{"input_length": 64 * n + 3, "hash_ids": [*range(n + 1)]} for n in range(2, 9)]
        assert read_rows(tmp_path, [empty, *rows]).unit_tokens == 64

    def test_blocks_without_a_hash_are_found_by_nobody(self, tmp_path):
        rows = [{"input_length": 700, "hash_ids": [5]}, {"input_length": 700, "hash_ids": [5]}]
        first, second = read_rows(tmp_path, rows, block_tokens=BLOCK).requests
        assert first.prompt[0] == second.prompt[0]
        assert first.prompt[1] != second.prompt[1]

    def test_a_size_that_does_not_fit_is_told(self, tmp_path):
        with pytest.raises(TraceError, match=r"3 hash_ids are too many for 700 tokens .* --trace-block"):
            read_rows(tmp_path, [{"input_length": 700, "hash_ids": [1, 2, 3]}], block_tokens=BLOCK)
        with pytest.raises(TraceError, match="fit no size of blocks; say with --trace-block"):
            read_rows(tmp_path, [{"input_length": n, "hash_ids": [*range(9)]} for n in (5, 50_000, 500_000, 3)])


class TestLengths:
    def test_times_of_day(self, tmp_path):
        text = (
            "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:17:03.9799600,4808,10\r\n"
            "2023-11-16 18:17:05.4799600,3180,8\r\n"
        )
        trace = read_text(tmp_path, text, "trace.csv")
        first, second = trace.requests
        assert trace.kind is Kind.LENGTHS
        assert (first.num_prompt_tokens, first.num_output_tokens) == (4808, 10)
        assert second.arrival_seconds - first.arrival_seconds == pytest.approx(1.5)

    @pytest.mark.parametrize(
        ("header", "row"),
        [
            ("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type", "5,ChatGPT,472,18,490,API log"),
            ("arrived_at,num_prefill_tokens,num_decode_tokens", "5.0,472,18"),
            ('"prompt_tokens","output_tokens","arrival time"', '"472","18","5"'),
        ],
    )
    def test_columns_of_other_names(self, tmp_path, header, row):
        (request,) = read_text(tmp_path, f"{header}\n{row}\n").requests
        assert (request.num_prompt_tokens, request.num_output_tokens, request.arrival_seconds) == (472, 18, 5.0)

    def test_the_unit_of_time_can_be_said(self, tmp_path):
        text = '{"timestamp": 1500, "input_length": 3}'
        for unit, seconds in ((None, 1.5), ("ms", 1.5), ("s", 1500)):
            assert read_text(tmp_path, text, time_unit=unit).requests[0].arrival_seconds == seconds

    def test_neither_json_nor_a_header(self, tmp_path):
        for text in ("1,2,3\n4,5,6\n", "hello\n", bytes(range(128, 256)), "a,a\n1,2\n"):
            with pytest.raises(TraceError, match="neither JSON lines nor CSV with a header"):
                read_text(tmp_path, text)


class TestTexts:
    def test_prompts_and_answers(self, tmp_path):
        rows = [
            {"prompt": "ab"},
            {"prompt": [1, 2, 3], "max_tokens": 7},
            {"text": "abc", "completion": "xyz", "tenant": "t"},
            {"body": {"prompt": "abd", "max_tokens": 4}},
        ]
        trace = read_rows(tmp_path, rows)
        assert trace.kind is Kind.TOKENS
        assert texts(trace) == ["ab", "\1\2\3", "abc", "abd"]
        assert [request.num_output_tokens for request in trace.requests] == [0, 7, 3, 4]
        # The last token of an answer is never computed.
        assert "".join(map(chr, trace.requests[2].sequence)) == "abcxy"
        assert trace.requests[2].tenant == "t"

    def test_a_batch_file(self, tmp_path):
        content = [{"type": "text", "text": "How "}, {"type": "text", "text": "deep?"}]
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
        row = {"custom_id": "1", "url": "/v1/chat/completions", "body": {"messages": messages, "max_tokens": 5}}
        trace = read_rows(tmp_path, [row])
        assert texts(trace) == ["<system>Be brief.<user>How deep?<assistant>"]
        assert trace.requests[0].num_output_tokens == 5

    @pytest.mark.parametrize("as_array", [True, False])
    def test_a_conversation_is_asked_turn_by_turn(self, tmp_path, as_array):
        turns = [("system", "s"), ("human", "hi"), ("gpt", "hello"), ("human", "why"), ("gpt", "so")]
        talk = {"id": "x", "conversations": [{"from": name, "value": text} for name, text in turns]}
        text = json.dumps([talk, talk], indent=2) if as_array else f"{json.dumps(talk)}\n" * 2
        trace = read_text(tmp_path, text)
        first, second = texts(trace)[:2]
        assert len(trace.requests) == 4
        assert (first, second) == (
            "<system>s<user>hi<assistant>",
            "<system>s<user>hi<assistant>hello<user>why<assistant>",
        )
        assert [request.num_output_tokens for request in trace.requests] == [5, 2, 5, 2]

    @pytest.mark.parametrize("name", ["system", "system_prompt", "instructions"])
    @pytest.mark.parametrize(
        "value", ["Be brief.", [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]]
    )
    def test_instructions_beside_a_prompt_come_before_it(self, tmp_path, name, value):
        asked = [{"messages": [{"role": "user", "content": "hi"}]}, {"body": {"input": "hi"}}, {"prompt": "hi"}]
        rows = [{**row, name: value} for row in asked if "body" not in row]
        rows.append({"body": {"input": "hi", name: value}})
        assert texts(read_rows(tmp_path, rows)) == ["<system>Be brief.<user>hi<assistant>"] * 3

    @pytest.mark.parametrize(
        "tools",
        [
            [{"type": "function", "function": {"name": "dig", "parameters": {}}}],
            [{"type": "function", "name": "dig", "parameters": {}}],
            [{"name": "dig", "input_schema": {}}],
            '[{"name": "dig", "parameters": {}}]',
        ],
    )
    def test_tools_are_part_of_a_prompt(self, tmp_path, tools):
        rows = [{"messages": [{"role": "user", "content": "hi"}], "tools": tools}, {"input": "hi", "tools": tools}]
        assert texts(read_rows(tmp_path, rows)) == ["<tool>dig<user>hi<assistant>"] * 2
        functions = [{"name": "dig", "parameters": {}}]
        assert texts(read_rows(tmp_path, [{"prompt": "hi", "functions": functions}])) == [
            "<tool>dig<user>hi<assistant>"
        ]

    @pytest.mark.parametrize(
        "ask",
        [
            lambda it: {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": it}}]}]},
            lambda it: {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": it}]}]},
            lambda it: {"input": [{"role": "user", "content": [{"type": "input_file", "file_data": it}]}]},
            lambda it: {"messages": [{"role": "user", "content": [{"type": "input_audio", "text": None, "data": it}]}]},
            lambda it: {"messages": [{"role": "user", "content": [{"type": "unheard of", "x": {"y": [it]}}]}]},
            lambda it: {"messages": [{"role": "user", "content": "", "images": [it]}]},
            lambda it: {"prompt": "", "image": it},
            lambda it: {"prompt": "", "multi_modal_data": {"image": it}},
        ],
    )
    def test_what_is_no_text_is_told_apart_by_its_content(self, tmp_path, ask):
        one, same, other = texts(read_rows(tmp_path, [ask("AAAA"), ask("AAAA"), ask("BBBB")]))
        assert one == same != other

    def test_a_mark_of_a_part_is_not_its_content(self, tmp_path):
        part = {"type": "image", "source": {"data": "AAAA"}}
        rows = [
            {"messages": [{"role": "user", "content": [each]}]}
            for each in (part, {**part, "cache_control": {"type": "ephemeral"}})
        ]
        assert len(set(texts(read_rows(tmp_path, rows)))) == 1

    def test_an_instruction_and_what_it_is_about(self, tmp_path):
        rows = [{"instruction": "Translate.", "input": "sea", "output": "mare"}, {"instruction": "Sing.", "input": ""}]
        assert texts(read_rows(tmp_path, rows)) == ["Translate.\n\nsea", "Sing."]

    def test_what_ends_with_a_question_is_one_request(self, tmp_path):
        talk = [{"role": name, "content": name} for name in ("user", "assistant", "user")]
        assert len(read_rows(tmp_path, [{"messages": talk}]).requests) == 1

    @pytest.mark.parametrize(
        ("row", "problem"),
        [
            ({"prompt": ""}, "its prompt is empty"),
            ({"prompt": 5}, "prompt is 5; it must be text or token ids"),
            ({"prompt": [1, -1]}, "it must be text or token ids"),
            ({"messages": "hi"}, "it must be a list of messages"),
            ({"messages": [{"content": "x"}]}, "a message has the role None"),
            ({"messages": [{"role": "user", "content": 3}]}, "a message has the content 3"),
            ({"conversations": [{"from": "gpt", "value": "only"}]}, "nobody asks anything in it"),
            ({"conversations": []}, "it has neither a prompt nor messages"),
            ({"prompt": "hi", "system": 5}, "system is 5; it must be text"),
            ({"prompt": "hi", "tools": "dig"}, "tools is 'dig'; it must be a list of tools"),
            ({"prompt": "hi", "tools": [{"function": 5}]}, "it must be a list of tools"),
            ({"prompt": [1, 2], "system": "Be brief."}, "whose place nobody knows"),
        ],
    )
    def test_what_is_no_request(self, tmp_path, row, problem):
        trace = read_rows(tmp_path, [{"prompt": "fine"}, row])
        assert len(trace.requests) == 1
        assert problem in problems(trace)[2]


class TestFiles:
    @pytest.mark.parametrize("begin", [b"", b"\xef\xbb\xbf"])
    @pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n \r\n"])
    def test_marks_and_ends_of_lines(self, tmp_path, begin, end):
        lines = [json.dumps(row).encode() for row in block_rows(5)]
        plain = read_text(tmp_path, b"\n".join(lines))
        trace = read_text(tmp_path, begin + end.join(lines) + end)
        assert [each.prompt for each in trace.requests] == [each.prompt for each in plain.requests]
        assert not trace.faults

    def test_gzip_by_what_is_in_it(self, tmp_path):
        text = "".join(json.dumps(row) + "\n" for row in block_rows(50)).encode()
        assert len(read_text(tmp_path, gzip.compress(text), "named otherwise").requests) == 50

    def test_a_file_that_breaks_off(self, tmp_path):
        packed = gzip.compress("".join(json.dumps(row) + "\n" for row in block_rows(500)).encode())
        with pytest.raises(TraceError, match=r"is damaged after line \d+: .*; copy it again"):
            read_text(tmp_path, packed[: len(packed) // 2])

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"\x28\xb5\x2f\xfd1234", "zstd; unpack it"),
            ("{}".encode("utf-16"), "save it as UTF-8"),
        ],
    )
    def test_what_is_not_read(self, tmp_path, content, message):
        with pytest.raises(ConfigError, match=message):
            read_text(tmp_path, content)

    @pytest.mark.parametrize("content", [b"", b"\n \r\n"])
    def test_an_empty_one(self, tmp_path, content):
        with pytest.raises(TraceError, match="is empty"):
            read_text(tmp_path, content)

    def test_none(self, tmp_path):
        for path in (tmp_path, tmp_path / "missing"):
            with pytest.raises(ConfigError, match="cannot be read"):
                read(path)


class TestFaults:
    GOOD = json.dumps({"timestamp": 1, "input_length": 1000, "output_length": 1, "hash_ids": [1, 2]})

    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            ("{oops", "it is no JSON"),
            ("[1, 2]", "it must be an object"),
            ("null", "it must be an object"),
            ("[" * 100_000, "it is no JSON"),
            ('{"input_length": -5, "hash_ids": []}', "input_length is -5"),
            ('{"input_length": 2.5, "hash_ids": []}', "input_length is 2.5"),
            ('{"input_length": true, "hash_ids": []}', "input_length is True"),
            ('{"input_length": NaN, "hash_ids": []}', "input_length is nan"),
            ('{"input_length": 1e300, "hash_ids": []}', "input_length is 1e+300"),
            ('{"input_length": 2147483647, "hash_ids": []}', "input_length is 2147483647; no model has more than"),
            (
                '{"input_length": 5, "output_length": 2147483647, "hash_ids": []}',
                "output_length is 2147483647; no model",
            ),
            ('{"input_length": 0, "hash_ids": []}', "its prompt is empty"),
            ('{"input_length": 600, "hash_ids": "ab"}', "hash_ids is 'ab'; it must be a list"),
            ('{"input_length": 600, "hash_ids": [1, null]}', "hash_ids has None"),
            ('{"input_length": 600, "hash_ids": [1, 2.5]}', "hash_ids has 2.5"),
            ('{"input_length": 600, "hash_ids": [1, {}]}', "hash_ids has {}"),
            ('{"hash_ids": [1]}', "it has no input_length"),
            ('{"input_length": 600}', "it has no hash_ids"),
            ('{"input_length": 600, "timestamp": "soon", "hash_ids": [1]}', "timestamp is 'soon'"),
            ('{"input_length": 600, "tenant": [], "hash_ids": [1]}', "the tenant is []"),
        ],
    )
    def test_a_line_that_is_no_request_is_left_out_and_told(self, tmp_path, line, problem):
        text = f"{self.GOOD}\n\n{line}\n{self.GOOD}\n"
        trace = read_text(tmp_path, text)
        assert len(trace.requests) == 2
        assert problem in problems(trace)[3]
        with pytest.raises(TraceError, match="line 3: "):
            read_text(tmp_path, text, strict=True)

    def test_nothing_but_such_lines(self, tmp_path):
        with pytest.raises(TraceError, match=r"has no request that can be replayed \(line 1: "):
            read_text(tmp_path, "{oops\n{oops\n")

    def test_the_first_requests_only(self, tmp_path):
        assert len(read_rows(tmp_path, block_rows(30), most_requests=7).requests) == 7
