"""What tests of the page have in common: which browser there is, requests that fill the page, what is on a canvas."""

from __future__ import annotations

import os
import shutil
from typing import Any

from playwright.sync_api import Page, expect

from server.running import MODEL, MOST_SECONDS, Running

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
MOST_MS = 1000 * MOST_SECONDS
expect.set_options(timeout=MOST_MS)

STORY = "The room was a pleasant one, at the top of the house, overlooking the sea. " * 4
SHIPS = " I looked out and saw the ships." * 4
BOOK = " She sat down and read a book." * 4


def open_live(page: Page, url: str) -> None:
    page.goto(url)
    expect(page.locator("#connection")).to_have_text("Live")


def complete(server: Running, prompt: str, headers: dict[str, str] | None = None, **more: Any) -> None:
    asked = {"model": MODEL, "prompt": prompt, "max_tokens": 2, **more}
    assert server.post("/v1/completions", asked, headers=headers).is_success


def call(page: Page, module: str, function: str, *arguments: Any) -> Any:
    """What a function of one of the page's modules returns."""
    code = f"(given) => import('/dashboard/{module}.js').then((module) => module.{function}(...given))"
    return page.evaluate(code, list(arguments))


# Before the page is opened: `drawn` has the texts on each canvas, with their boxes.
RECORD_DRAWN_TEXTS = """
window.drawn = new Map();
const { clearRect, fillText } = CanvasRenderingContext2D.prototype;
Object.assign(CanvasRenderingContext2D.prototype, {
  clearRect(...box) {
    drawn.set(this.canvas, []);
    return clearRect.apply(this, box);
  },
  fillText(text, x, y) {
    const width = this.measureText(text).width;
    const left = x - { left: 0, start: 0, center: width / 2, right: width }[this.textAlign];
    const top = y - (this.textBaseline === "middle" ? 5 : 9);
    drawn.get(this.canvas).push({ text, left, right: left + width, top, bottom: top + 10 });
    return fillText.call(this, text, x, y);
  },
});
"""

# Pairs of texts that are seen one over the other, and texts on canvases that are cut off.
COLLISIONS = """() => {
  const cut = (first, second) => ({
    left: Math.max(first.left, second.left),
    right: Math.min(first.right, second.right),
    top: Math.max(first.top, second.top),
    bottom: Math.min(first.bottom, second.bottom),
  });
  const seen = (node, box) => {
    for (let each = node; each !== document.body; each = each.parentElement) {
      if (getComputedStyle(each).overflowX !== "visible") box = cut(box, each.getBoundingClientRect());
    }
    return box;
  };
  const found = [];
  const texts = [];
  for (const node of document.querySelectorAll("main *, header *")) {
    // Heads of tables stay over the rows that go on behind them.
    if (!node.checkVisibility({ visibilityProperty: true }) || node.closest(".hidden-label, option, th")) continue;
    for (const part of node.childNodes) {
      if (part.nodeType !== Node.TEXT_NODE || !part.data.trim()) continue;
      const range = document.createRange();
      range.selectNode(part);
      const boxes = [...range.getClientRects()];
      texts.push(...boxes.map((box) => ({ text: part.data, box: seen(node, box), part })));
    }
  }
  for (const [canvas, written] of drawn) {
    const { left, top, right, bottom } = canvas.getBoundingClientRect();
    for (const each of written) {
      const box = { left: each.left + left, right: each.right + left, top: each.top + top, bottom: each.bottom + top };
      if (box.left < left || box.right > right || box.top < top - 1 || box.bottom > bottom) found.push([each.text]);
      texts.push({ text: each.text, box, part: each });
    }
  }
  texts.forEach((first, index) => {
    for (const second of texts.slice(index + 1)) {
      const { left, right, top, bottom } = cut(first.box, second.box);
      if (first.part !== second.part && right - left > 0.5 && bottom - top > 2) found.push([first.text, second.text]);
    }
  });
  return found;
}"""
