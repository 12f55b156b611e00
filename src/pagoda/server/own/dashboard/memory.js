// Memory by kind: pages by state in bytes, and the process. Who may not see these sees how much there is.

import { byId, element, reconcile, setText } from "./dom.js";
import { STATES } from "./states.js";
import { bytes } from "./words.js";

export function updateMemory(event) {
  const rows = [{ name: "", label: "all pages", nbytes: event.memory.pages }];
  if (event.sees_all) {
    rows.unshift(...kindsOf(event.groups));
    rows.push({ name: "", label: "process", nbytes: event.memory.process });
  }
  reconcile(byId("memory"), rows, { key: (kind) => kind.label, create, update });
}

function kindsOf(groups) {
  return STATES.map(({ name, label, of }) => ({
    name,
    label: `pages ${label}`,
    nbytes: groups.reduce((sum, group) => sum + of(group) * group.page_nbytes, 0),
  }));
}

function create(kind) {
  const swatch = kind.name ? [element("span", { class: `swatch ${kind.name}` })] : [];
  return element("div", {}, element("dt", {}, ...swatch, kind.label), element("dd"));
}

function update(node, kind) {
  setText(node.lastElementChild, bytes(kind.nbytes));
}
