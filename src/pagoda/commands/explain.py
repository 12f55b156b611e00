"""`pagoda explain`: why a prompt missed, of two files or of a request that a running server has served.

A report quotes no prompt unless `--show-text` asks for that. No model is loaded.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from pagoda.analysis.cost import Rates
from pagoda.analysis.explain import SEPARATE, Reuse, explain, find
from pagoda.analysis.namespaces import differing_parts
from pagoda.analysis.rehearsal import Rehearsal
from pagoda.checkpoint.configuration import read_config
from pagoda.checkpoint.directory import checkpoint_directory
from pagoda.commands.asking import ask_explanation
from pagoda.commands.extras import need
from pagoda.commands.identities import find_identities
from pagoda.commands.reading import read_text
from pagoda.commands.report import Rows, table
from pagoda.config import EngineConfig
from pagoda.errors import ConfigError, ModelError, ModelNotFoundError
from pagoda.layouts.spec import CacheSpec
from pagoda.models.plain_tokenizer import load_plain_tokenizer
from pagoda.planning.checkpoint import facts_from_config
from pagoda.planning.facts import MachineFacts
from pagoda.planning.memory import plan_memory
from pagoda.units import format_seconds

EMBEDDED_MODEL = Path(__file__).parents[1] / "assets" / "tiny"
# Of memory that would hold the snapshots of recurrent states; how far these lie apart depends on it.
USUAL_CACHE_NBYTES = 4 << 30
MOST_TOKENS = 1 << 20
USUAL_PAGE_TOKENS = 32
PLAIN_NOTE = "its config.json says nothing of what its layers keep, so all of them are taken to attend to all tokens"


def run(arguments: Namespace) -> int:
    rates = Rates(arguments.prefill_rate, arguments.price_input, arguments.price_cached)
    _check(arguments)
    report = _of_files(arguments, rates) if arguments.files else ask_explanation(arguments, rates)
    if arguments.json:
        sys.stdout.write(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    else:
        show(report, Console())
    return 0


def _check(arguments: Namespace) -> None:
    """Raises ConfigError where nobody can tell what is asked."""
    num_servers = len(arguments.url)
    if arguments.identity is not None and num_servers:
        raise ConfigError("There are --url and --identity; ask two servers, or give what they have answered before.")
    if arguments.files and arguments.request_id is not None:
        raise ConfigError("There are files and a --request-id; give two files, or --url and --request-id.")
    if num_servers == 1 and not arguments.files:
        return
    if len(arguments.files) != 2:
        raise ConfigError("Give two files, the earlier request and the later one, or one --url and --request-id.")
    if num_servers not in (0, 2):
        raise ConfigError(
            "With two files give --url twice, the server of the earlier one first; or none, for one and the same."
        )


def _of_files(arguments: Namespace, rates: Rates) -> dict[str, Any]:
    need("fastapi", "orjson")
    from pagoda.commands.request_file import RequestFiles

    model = arguments.model or EMBEDDED_MODEL
    tokenizer = load_plain_tokenizer(arguments.tokenizer or model)
    if tokenizer is None:
        raise ConfigError(f"There is no tokenizer in {arguments.tokenizer or model}; give one with --tokenizer.")
    identities = find_identities(arguments)
    template = None if arguments.chat_template is None else read_text(arguments.chat_template)
    texts = [read_text(file) for file in arguments.files]
    with closing(RequestFiles(tokenizer, MOST_TOKENS, template)) as files:
        earlier, later = files.read(texts, [str(file) for file in arguments.files])
    told_page_tokens = identities[1].page_tokens if identities else 0
    page_tokens = arguments.block_size or told_page_tokens or USUAL_PAGE_TOKENS
    rehearsal, note = _rehearsal(Path(model), page_tokens)
    read = rehearsal.resumed_tokens(earlier.token_ids, later.token_ids)
    parts = differing_parts(*identities) if identities else ()
    finding = find(earlier, later, read, with_context=arguments.show_text, parts=parts)
    reuse = Reuse(len(later.token_ids), 0 if finding.cause in SEPARATE else read, page_tokens)
    return explain(finding, reuse, rates).as_json() | {"page_tokens": page_tokens, "note": note}


def _rehearsal(model: Path, page_tokens: int) -> tuple[Rehearsal, str | None]:
    """Of the model's layers; with a note if nobody can tell what they are."""
    try:
        facts = facts_from_config(read_config(checkpoint_directory(model)), MachineFacts(None))
        config = EngineConfig(block_size=page_tokens, kv_cache_memory_bytes=USUAL_CACHE_NBYTES)
        states = plan_memory(facts, MachineFacts(None), config).states
    except ModelNotFoundError:
        return Rehearsal(CacheSpec((), ()), page_tokens), PLAIN_NOTE
    except ModelError as error:
        return Rehearsal(CacheSpec((), ()), page_tokens), f"{error} So all layers are taken to attend to all tokens."
    return Rehearsal(facts.spec, page_tokens, None if states is None else states.interval_tokens), None


def show(report: Mapping[str, Any], console: Console) -> None:
    """A report for people."""
    console.print(f"[bold]{escape(report['sentence'])}[/]")
    rows = [*_place_rows(report), *_token_rows(report), *_cost_rows(report), *_name_rows(report)]
    console.print(table([(name, escape(text)) for name, text in rows]))
    console.print(f"[bold]What to change:[/] {escape(report['advice'])}")
    if report.get("note"):
        console.print(f"[dim]Note: {escape(report['note'])}[/]")


def _place_rows(report: Mapping[str, Any]) -> Rows:
    place, context = report["place"], report["context"]
    rows = [("cause", report["cause"])]
    rows += [
        (f"  {part['name']}", f"{part['earlier'] or 'none'} and {part['later'] or 'none'}") for part in report["parts"]
    ]
    if place is not None:
        rows.append(("first missed token", f"{place['token']:,}: page {place['page']:,}, token {place['page_offset']}"))
        message = "" if place["message"] is None else f", message {place['message']} ({place['role']})"
        rows.append(("section", f"{place['section']}{message}"))
    if context is not None:
        rows += [(f"  {name}", repr(context[name])) for name in ("before", "earlier", "later")]
    return rows


def _token_rows(report: Mapping[str, Any]) -> Rows:
    rows = [("prompt tokens", f"{report['prompt_tokens']:,}")]
    if report["earlier_tokens"] is not None:
        rows.append(("  of the earlier one", f"{report['earlier_tokens']:,}"))
    return [
        *rows,
        ("  read from pages", f"{report['reused_tokens']:,}"),
        ("  computed", f"{report['computed_tokens']:,}"),
        ("  missed", f"{report['missed_tokens']:,} could have been read as well"),
    ]


def _cost_rows(report: Mapping[str, Any]) -> Rows:
    rows = []
    if report["missed_seconds"]:
        rows.append(("time for what was missed", format_seconds(report["missed_seconds"])))
    if report["missed_price"] is not None:
        rows.append(("price of the prompt", f"{report['price']:.6f}"))
        rows.append(("  due to what was missed", f"{report['missed_price']:.6f}"))
    return rows


def _name_rows(report: Mapping[str, Any]) -> Rows:
    vendor = report["vendor"]
    return [
        (f"called by {name}", vendor[key] or "-") for name, key in (("OpenAI", "openai"), ("Anthropic", "anthropic"))
    ]
