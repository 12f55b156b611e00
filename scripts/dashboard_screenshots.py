"""Takes the pictures of docs/dashboard.md and docs/timing.md from a server with traffic.

That is prompts that share beginnings, chats and pins.

    pagoda serve --port 8300 --kv-cache-memory-bytes 24MiB &
    python scripts/dashboard_screenshots.py http://127.0.0.1:8300

Needs playwright, Pillow and a Chromium (`CHROMIUM`, by default /usr/bin/chromium); it downloads nothing.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from io import BytesIO
from pathlib import Path

import httpx2
from PIL import Image
from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parent.parent / "docs" / "images"
MODEL = "pagoda-tiny"
SECONDS = 240  # so that the last hours have something to show
RULES = "You are the librarian of a small town by the sea. Answer kindly and briefly; name the book and its shelf. " * 4
HOUSE = "The room was a pleasant one, at the top of the house, overlooking the sea, on which the moon was shining. " * 5
SUBJECTS = ("sea stories", "maps of the coast", "a book of birds", "songs", "old letters")
TURNS = ("Once upon a time there was an old man who lived by the sea, and he", "One evening he")


class Traffic:
    """Clients that ask until they are stopped."""

    def __init__(self, url: str) -> None:
        self._client = httpx2.Client(base_url=url, timeout=120)
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=client) for client in (self._chat, self._chat, self._complete)]

    def __enter__(self) -> Traffic:
        self._post("/v1/kv/pin", {"messages": [{"role": "system", "content": RULES}], "ttl_seconds": 1800})
        self._post("/v1/kv/pin", {"prompt": HOUSE, "ttl_seconds": 900})
        self._post("/v1/kv/pin", {"prompt": "A list of all ships that left the harbour. " * 12, "ttl_seconds": 420})
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _post(self, path: str, body: dict[str, object]) -> dict[str, object]:
        return self._client.post(path, json={"model": MODEL, **body}).raise_for_status().json()

    def _chat(self) -> None:
        """Conversations of three turns under one system prompt."""
        while not self._stopped.is_set():
            messages = [{"role": "system", "content": RULES}]
            for subject in random.sample(SUBJECTS, 3):
                messages.append({"role": "user", "content": f"Where do I find {subject}?"})
                length = random.randint(30, 160)
                answer = self._post("/v1/chat/completions", {"messages": messages, "max_tokens": length})
                messages.append(answer["choices"][0]["message"])
                if self._stopped.wait(random.random()):
                    return

    def _complete(self) -> None:
        """Texts with a common beginning, and now and then one that nobody has asked before."""
        while not self._stopped.is_set():
            words = " ".join(random.choices(HOUSE.split() + RULES.split(), k=random.randint(20, 200)))
            start = HOUSE if random.random() < 0.7 else ""
            self._post("/v1/completions", {"prompt": start + words, "max_tokens": random.randint(20, 240)})
            self._stopped.wait(random.random())


def talk(page: Page) -> None:
    """Two turns in the playground, and an open branch of the tree."""
    page.click("#playground summary")
    page.fill("#chat-temperature", "0.4")
    page.fill("#chat-tokens", "64")
    page.click("#playground summary")
    for turn, question in enumerate(TURNS):
        page.fill("#chat-message", question)
        page.press("#chat-message", "Enter")
        page.locator("#conversation .note", has_text="cached").nth(turn).wait_for(timeout=60_000)
    page.locator("#tree [aria-expanded=false]").first.click()


def save(screenshot: bytes, name: str) -> None:
    picture = Image.open(BytesIO(screenshot)).convert("RGB").quantize(256, kmeans=3, dither=Image.Dither.NONE)
    picture.save(IMAGES / name, optimize=True)


def main(url: str) -> None:
    browser_path = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    with sync_playwright() as playwright, Traffic(url):
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme="light")
        page.goto(url)
        time.sleep(SECONDS)
        talk(page)
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme)
            page.locator("#requests tr").nth(1).wait_for(timeout=60_000)
            save(page.screenshot(), f"dashboard-{theme}.png")
        page.emulate_media(color_scheme="light")
        page.locator("#ended button").first.click()
        save(page.locator("#spent-dialog").screenshot(), "request.png")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
