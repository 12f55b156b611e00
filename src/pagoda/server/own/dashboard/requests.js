// Requests in flight and those that ended last: how much of each prompt was cached, and how far they are or came.

import { byId, element, reconcile, row, setAttribute, setText } from "./dom.js";
import { History } from "./history.js";
import { percent, seconds, short } from "./words.js";

const MOST_ENDED = 60;
const ENDINGS = { stop: "done", length: "cut off", abort: "cancelled", error: "failed" };

export class Requests {
  #history = new History();
  #shown = new Map();

  /** `onChoice` is called with the request that somebody wants to know more of. */
  constructor(onChoice) {
    byId("requests-table").addEventListener("click", (event) => {
      const chosen = this.#shown.get(event.target.closest("tbody tr")?.dataset.key);
      if (chosen !== undefined) onChoice(chosen);
    });
  }

  update(event) {
    this.#history.update(event);
    const ended = this.#history.ended.slice(-MOST_ENDED).reverse().map(ending);
    this.#shown = new Map([...ended, ...event.requests].map((each) => [each.id, each]));
    reconcile(byId("requests"), event.requests, { key: (each) => each.id, create, update });
    reconcile(byId("ended"), ended, { key: (each) => each.id, create, update });
    byId("no-requests").hidden = event.requests.length > 0;
  }

  /** What is known of a request by now. */
  find(id) {
    return this.#shown.get(id);
  }
}

const ending = (each) => ({ ...each, state: ENDINGS[each.finish_reason] ?? "ended" });

function create() {
  const made = row(["state", "share", "number", "number", "number", "number"]);
  const bar = element("span", { class: "cached" });
  made.firstElementChild.append(element("button", { type: "button" }));
  made.children[1].append(element("div", { class: "stack" }, bar, element("span", { class: "computed" })));
  return made;
}

function update(node, each) {
  const [state, share, cached, prompt, output, time] = node.children;
  const part = each.prompt_tokens ? each.cached_tokens / each.prompt_tokens : 0;
  const [cachedBar, computedBar] = share.firstElementChild.children;
  const isWaiting = each.state === "waiting";
  const title = each.preemptions ? `${each.id}, preempted ${each.preemptions} times` : each.id;
  setAttribute(node, "title", `${title}: where its time went`);
  setText(state.firstElementChild, each.state);
  setAttribute(state.firstElementChild, "aria-label", `${each.state}: where the time of ${each.id} went`);
  cachedBar.style.width = `${100 * part}%`;
  computedBar.style.width = isWaiting ? "0" : `${100 * (1 - part)}%`;
  setText(cached, isWaiting ? "" : percent(part));
  setText(prompt, short(each.prompt_tokens));
  setText(output, short(each.output_tokens));
  setText(time, each.seconds === null ? "" : seconds(each.seconds));
}
