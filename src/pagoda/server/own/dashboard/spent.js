// Where the time of one request went: by the clock, by what it cost, and in words. Kept up to date while it is open.

import { byId, element, reconcile, setText } from "./dom.js";
import { count, percent, seconds } from "./words.js";

const WALL = {
  queue: "Queue",
  promotion: "From other tiers",
  prefill: "Prefill",
  decode: "Decode",
  waiting: "Between its steps",
};
const WORK = {
  match: "Lookup in the cache",
  promotion: "From other tiers",
  prefill: "Prefill",
  decode: "Decode",
  sampling: "Sampling",
  detokenise: "Making text",
  structured: "Structured output",
};

export class SpentDialog {
  #dialog = byId("spent-dialog");
  #id = null;

  constructor() {
    byId("spent-close").addEventListener("click", () => this.#dialog.close());
    this.#dialog.addEventListener("click", (event) => event.target === this.#dialog && this.#dialog.close());
    this.#dialog.addEventListener("close", () => (this.#id = null));
  }

  open(request) {
    this.#id = request.id;
    this.#show(request);
    if (!this.#dialog.open) this.#dialog.showModal();
  }

  /** `find` gives what is known of a request by now, undefined of one that nobody remembers. */
  update(find) {
    const request = this.#id === null ? undefined : find(this.#id);
    if (request !== undefined) this.#show(request);
  }

  #show(request) {
    const { wall, work, verdict } = request.spent;
    const total = Object.values(wall).reduce((sum, each) => sum + each, 0);
    setText(byId("spent-id"), `${request.id}, ${request.state}`);
    reconcile(byId("spent-verdict"), verdict, {
      key: (sentence) => sentence,
      create: (sentence) => element("li", { text: sentence }),
      update: () => {},
    });
    showParts("wall", parts(WALL, wall, (value) => `${brief(value)} · ${percent(total ? value / total : 0)}`));
    byId("spent-cost").hidden = work.prefill === undefined; // what others do is not shown to everybody
    if (!byId("spent-cost").hidden) showParts("work", parts(WORK, work, brief));
    setText(byId("spent-total"), brief(total));
    const computed = request.prompt_tokens - request.cached_tokens;
    const tokens = { cached: request.cached_tokens, computed: request.state === "waiting" ? 0 : computed };
    showParts("tokens", parts({ cached: "From the cache", computed: "Computed" }, tokens, count));
    setText(byId("spent-tokens-total"), `${count(request.prompt_tokens)} tokens, ${count(request.output_tokens)} generated`);
  }
}

const parts = (names, values, format) =>
  Object.entries(names).map(([name, title]) => ({ name, title, value: values[name], text: format(values[name]) }));

/** As short as can be told apart: 12 µs, 340 ms, 1.2 s. */
const brief = (value) => (value > 0 && value < 0.001 ? `${Math.ceil(1e6 * value)} µs` : seconds(value));

/** A bar, if there is one of this name, and the numbers beside names. */
function showParts(name, shown) {
  const total = shown.reduce((sum, { value }) => sum + value, 0);
  const bar = byId(`spent-${name}-bar`);
  const key = (each) => each.name;
  if (bar !== null) {
    reconcile(bar, shown, {
      key,
      create: (each) => element("span", { class: each.name }),
      update: (node, each) => (node.style.width = `${total ? (100 * each.value) / total : 0}%`),
    });
  }
  reconcile(byId(`spent-${name}`), shown, {
    key,
    create: (each) => {
      const swatch = bar === null ? "" : element("span", { class: `swatch ${each.name}` });
      return element("div", {}, element("dt", {}, swatch, each.title), element("dd"));
    },
    update: (node, each) => setText(node.lastElementChild, each.text),
  });
}
