// Requests in flight: how much of each prompt was cached, and how far they are.

import { byId, element, reconcile, row, setText } from "./dom.js";
import { percent, seconds, short } from "./words.js";

export function updateRequests(event) {
  reconcile(byId("requests"), event.requests, { key: (each) => each.id, create, update });
  byId("no-requests").hidden = event.requests.length > 0;
}

function create() {
  const made = row(["state", "share", "number", "number", "number", "number"]);
  const bar = element("span", { class: "cached" });
  made.children[1].append(element("div", { class: "stack" }, bar, element("span", { class: "computed" })));
  return made;
}

function update(node, each) {
  const [state, share, cached, prompt, output, time] = node.children;
  const part = each.prompt_tokens ? each.cached_tokens / each.prompt_tokens : 0;
  const [cachedBar, computedBar] = share.firstElementChild.children;
  const isWaiting = each.state === "waiting";
  node.title = each.preemptions ? `${each.id}, preempted ${each.preemptions} times` : each.id;
  setText(state, each.state);
  cachedBar.style.width = `${100 * part}%`;
  computedBar.style.width = isWaiting ? "0" : `${100 * (1 - part)}%`;
  setText(cached, isWaiting ? "" : percent(part));
  setText(prompt, short(each.prompt_tokens));
  setText(output, short(each.output_tokens));
  setText(time, seconds(each.seconds));
}
