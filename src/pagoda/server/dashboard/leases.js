// Leases and what is left of them. The page counts down by itself; the feed puts it right.

import { byId, element, reconcile, row, setAttribute, setText } from "./dom.js";
import { bytes, countdown, short } from "./words.js";

export class Leases {
  #leases = [];

  constructor() {
    setInterval(() => this.#show(), 1000);
  }

  update(event) {
    const now = performance.now();
    this.#leases = event.leases.map((lease, index) => ({
      ...lease,
      key: String(index),
      endsAt: now + 1000 * lease.expires_in_seconds,
    }));
    this.#show();
  }

  #show() {
    reconcile(byId("leases"), this.#leases, { key: (lease) => lease.key, create, update });
    byId("no-leases").hidden = this.#leases.length > 0;
  }
}

function create() {
  const made = row(["left", "number", "number", "number", "tenant"]);
  const bar = element("div", { class: "stack" }, element("span", { class: "leased" }));
  made.firstElementChild.append(element("div", {}, element("b"), bar));
  return made;
}

function update(node, lease) {
  const [left, tokens, size, hits, tenant] = node.children;
  const seconds = (lease.endsAt - performance.now()) / 1000;
  const [clock, bar] = left.firstElementChild.children;
  setText(clock, countdown(seconds));
  bar.firstElementChild.style.width = `${Math.min((100 * Math.max(seconds, 0)) / lease.ttl_seconds, 100)}%`;
  setText(tokens, short(lease.tokens));
  setText(size, bytes(lease.bytes));
  setText(hits, short(lease.hits));
  setText(tenant, lease.tenant || "—");
  setAttribute(tenant, "title", lease.tenant);
}
