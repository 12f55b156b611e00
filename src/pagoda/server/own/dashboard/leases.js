// Leases: what each keeps, until when, and what is left of it. The page counts down by itself; the feed puts it right.

import { byId, element, reconcile, row, setAttribute, setText } from "./dom.js";
import { bytes, countdown, short, until } from "./words.js";

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
      until: until(event.time + lease.expires_in_seconds, event.time),
    }));
    this.#show();
  }

  #show() {
    reconcile(byId("leases"), this.#leases, { key: (lease) => lease.key, create, update });
    byId("no-leases").hidden = this.#leases.length > 0;
    const areNamed = this.#leases.some((lease) => lease.tenant);
    byId("leases-panel").classList.toggle("without-tenants", !areNamed);
  }
}

function create() {
  const made = row(["what", "number", "number", "number", "tenant"]);
  const bar = element("div", { class: "stack" }, element("span", { class: "leased" }));
  const left = element("div", { class: "left" }, element("span"), element("b"), bar);
  made.firstElementChild.append(element("div", { class: "text" }), left);
  return made;
}

function update(node, lease) {
  const [what, tokens, size, hits, tenant] = node.children;
  const [text, left] = what.children;
  const [end, clock, bar] = left.children;
  const seconds = (lease.endsAt - performance.now()) / 1000;
  setText(text, lease.text ?? `${short(lease.tokens)} tokens`);
  setAttribute(text, "title", lease.text ?? "");
  setText(end, `until ${lease.until}`);
  setText(clock, countdown(seconds));
  bar.firstElementChild.style.width = `${Math.min((100 * Math.max(seconds, 0)) / lease.ttl_seconds, 100)}%`;
  setText(tokens, short(lease.tokens));
  setText(size, bytes(lease.bytes));
  setText(hits, short(lease.hits));
  setText(tenant, lease.tenant || "—");
  setAttribute(tenant, "title", lease.tenant);
}
