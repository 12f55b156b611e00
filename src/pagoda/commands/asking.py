"""Asks a running server why one of its requests missed, or what its pages are of."""

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
IDENTITY_SECONDS = 600.0  # all weights are read for it, a gigabyte in a second


def ask_explanation(arguments: Namespace, rates: Rates) -> dict[str, Any]:
    """The report on `--request-id`. Raises ConfigError for what cannot be asked, RequestError for what is refused."""
    if arguments.request_id is None:
        raise ConfigError("There is no --request-id; give the id of a response, as chatcmpl-..., resp_... or msg_....")
    asked: dict[str, Any] = {"request_id": arguments.request_id}
    if arguments.show_text:
        asked["include_text"] = "true"
    given = {"prefill_rate": rates.prefill, "price_input": rates.input, "price_cached": rates.cached}
    asked |= {name: value for name, value in given.items() if value is not None}
    (url,) = arguments.url
    report: dict[str, Any] = _answer(url, f"/v1/kv/explain?{urlencode(asked)}", arguments.api_key, SECONDS)
    return report


def ask_identity(url: str, key: str | None) -> Any:
    """What the pages of the server are of. Raises likewise."""
    return _answer(url, "/v1/kv/identity", key, IDENTITY_SECONDS)


def _answer(url: str, path: str, key: str | None, seconds: float) -> Any:
    if urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError(f"--url is {url!r}; give the server's address, as http://localhost:8000.")
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    request = Request(url.rstrip("/") + path, headers=headers)  # noqa: S310 - the scheme is checked
    try:
        with urlopen(request, timeout=seconds) as response:  # noqa: S310 - likewise
            return json.load(response)
    except HTTPError as error:
        raise RequestError(f"{url} refuses to say: {_message(error)}") from error
    except (URLError, OSError, ValueError) as error:
        raise RequestError(
            f"{url} does not answer as a server of Pagoda does: {error}; is it running there?"
        ) from error


def _message(error: HTTPError) -> str:
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"The server answers {error.code}; is it one of Pagoda?"
