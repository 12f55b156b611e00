"""Asks a running server why one of its requests missed."""

from __future__ import annotations

import json
from argparse import Namespace
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import Request, urlopen

from pagoda.analysis.cost import Rates
from pagoda.errors import ConfigError, RequestError

SECONDS = 30.0


def ask_server(arguments: Namespace, rates: Rates) -> dict[str, Any]:
    """The report on `--request-id`. Raises ConfigError for what cannot be asked, RequestError for what is refused."""
    if arguments.request_id is None:
        raise ConfigError("There is no --request-id; give the id of a response, as chatcmpl-..., resp_... or msg_....")
    if urlsplit(arguments.url).scheme not in ("http", "https"):
        raise ConfigError(f"--url is {arguments.url!r}; give the server's address, as http://localhost:8000.")
    asked: dict[str, Any] = {"request_id": arguments.request_id}
    if arguments.show_text:
        asked["include_text"] = "true"
    given = {"prefill_rate": rates.prefill, "price_input": rates.input, "price_cached": rates.cached}
    asked |= {name: value for name, value in given.items() if value is not None}
    address = f"{arguments.url.rstrip('/')}/v1/kv/explain?{urlencode(asked)}"
    headers = {} if arguments.api_key is None else {"Authorization": f"Bearer {arguments.api_key}"}
    return _answer(Request(address, headers=headers), arguments.url)  # noqa: S310 - the scheme is checked


def _answer(request: Request, url: str) -> dict[str, Any]:
    try:
        with urlopen(request, timeout=SECONDS) as response:  # noqa: S310 - likewise
            report: dict[str, Any] = json.load(response)
            return report
    except HTTPError as error:
        raise RequestError(_message(error)) from error
    except (URLError, OSError, ValueError) as error:
        raise RequestError(
            f"{url} does not answer as a server of Pagoda does: {error}; is it running there?"
        ) from error


def _message(error: HTTPError) -> str:
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"The server answers {error.code}; is it one of Pagoda?"
