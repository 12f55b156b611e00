// What lives below the page pools: of each tier how full it is, what moves up and down, and what is wrong with it.

import { byId, element, reconcile, setText } from "./dom.js";
import { bytes, count } from "./words.js";

export class Tiers {
  #before = new Map(); // of each tier when it was told last: its counters, and the time

  update(event) {
    byId("tiers-panel").hidden = !event.tiers.length;
    reconcile(byId("tiers"), event.tiers, {
      key: (tier) => tier.name,
      create: () => this.#create(),
      update: (node, tier) => this.#show(node, tier, event.time),
    });
  }

  #create() {
    const bar = element("div", { class: "stack", "aria-hidden": "true" }, element("span", { class: "idle" }));
    return element("article", {}, element("h3"), bar, element("p", { class: "note" }), element("p", { class: "fault" }));
  }

  #show(node, tier, time) {
    const [title, bar, amounts, fault] = node.children;
    const isTold = tier.bytes !== undefined; // to tenants it is not
    setText(title, tier.name);
    setText(fault, tier.fault ?? "");
    fault.hidden = !tier.fault;
    bar.hidden = !isTold || !tier.limit;
    amounts.hidden = !isTold;
    if (!isTold) return;
    bar.firstElementChild.style.width = `${tier.limit ? Math.min((100 * tier.bytes) / tier.limit, 100) : 0}%`;
    setText(amounts, [...held(tier), ...this.#rates(tier, time), ...losses(tier)].join(" · "));
  }

  #rates(tier, time) {
    const before = this.#before.get(tier.name);
    // Tiers are asked about once a second, so what is told twice is no rest.
    if (!before || time - before.time >= 2) this.#before.set(tier.name, { ...tier, time, rates: rates(before, tier, time) });
    return this.#before.get(tier.name).rates;
  }
}

function held(tier) {
  const limit = tier.limit ? ` of ${bytes(tier.limit)}` : "";
  return [`${bytes(tier.bytes)}${limit}`, `${count(tier.records)} pages`, `${count(tier.loaded_records)} loaded`];
}

function rates(before, tier, time) {
  if (!before) return [];
  const perSecond = (name) => Math.max(tier[name] - before[name], 0) / (time - before.time);
  return [`up ${bytes(perSecond("loaded_bytes"))}/s`, `down ${bytes(perSecond("written_bytes"))}/s`];
}

/** What did not go as it should, if anything. */
function losses(tier) {
  const names = ["skipped", "refused", "damaged", "errors"];
  return names.filter((name) => tier[name]).map((name) => `${count(tier[name])} ${name}`);
}
