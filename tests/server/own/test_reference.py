"""The API page: its files need nothing from elsewhere, its examples are answered, and a browser shows it all."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

import pagoda
from pagoda import LLM
from pagoda.server.own.examples import EXAMPLES
from server.running import MODEL, MOST_SECONDS, Running, running

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
FOLDER = Path(pagoda.__file__).parent / "server" / "own" / "reference"
FILES = sorted(path.name for path in FOLDER.iterdir())


def test_the_page_is_served_without_a_key_and_runs_nothing_else(llm: LLM) -> None:
    with running(llm, api_key=("secret",)) as server:
        for path, name in [("/docs", "index.html"), *((f"/docs/{name}", name) for name in FILES)]:
            answer = server.get(path)
            assert answer.content == (FOLDER / name).read_bytes()
            assert "script-src 'self'" in answer.headers["content-security-policy"]
        for path in ("/docs/", "/docs/nothing.js", "/docs/..%2fwebpage.py", "/docs/%2e%2e/webpage.py"):
            assert server.get(path).status_code == 404


@pytest.mark.parametrize("name", FILES)
def test_its_files_name_no_other_host(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert "//" not in re.sub(r"(?m)(^|\s)//.*$", "", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|<style|\sstyle=", text)


def bodies(server: Running) -> dict[str, Any]:
    paths = server.get("/openapi.json").json()["paths"]
    return {path: methods["post"].get("requestBody") for path, methods in paths.items() if "post" in methods}


def test_every_body_has_an_example(server: Running) -> None:
    with_body = {path for path, body in bodies(server).items() if body}
    assert with_body == EXAMPLES.keys()


@pytest.mark.parametrize("path", EXAMPLES)
def test_an_example_is_answered(server: Running, path: str) -> None:
    example = bodies(server)[path]["content"]["application/json"]["example"]
    assert example.get("model", MODEL) == MODEL
    if "{name}" in path:  # of what another example makes
        made = path.partition("/{name}")[0]
        assert server.post(made, EXAMPLES[made] | {"model": MODEL}).status_code == 200
        path = path.replace("{name}", EXAMPLES[made]["name"])
    assert server.post(path, example).status_code == 200


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed; CHROMIUM names one")
def test_a_browser_shows_routes_fields_and_examples(server: Running) -> None:
    problems: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(server.url + "/docs#post--v1-chat-completions", timeout=1000 * MOST_SECONDS)
        chat = page.locator("section", has=page.locator("#post--v1-chat-completions"))
        chat.locator("pre").wait_for()
        assert f"curl -X POST {server.url}/v1/chat/completions" in chat.inner_text()
        assert {"messages", "temperature"} <= set(chat.locator("td:first-child").all_inner_texts())
        target = chat.get_by_role("link", name="Message").get_attribute("href")
        assert page.locator(f"[id='{target[1:]}']").count() == 1
        described = server.get("/openapi.json").json()["paths"]
        assert page.locator("#routes section").count() == sum(map(len, described.values()))
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        browser.close()
    assert problems == []
