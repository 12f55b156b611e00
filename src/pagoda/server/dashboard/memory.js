// Memory by kind: pages by state in bytes, and the process. Who may not see these sees how much there is.

import { byId, element, reconcile, setText } from "./dom.js";
import { STATES } from "./states.js";
import { bytes } from "./words.js";

export function updateMemory(event) {
  const rows = [{ name: "", label: "all pages", nbytes: event.memory.pages }];
  byId("memory-bar").hidden = !event.sees_all;
  if (event.sees_all) {
    const kinds = kindsOf(event.groups);
    rows.unshift(...kinds);
    rows.push({ name: "", label: "process", nbytes: event.memory.process });
    showBar(kinds, kinds.reduce((sum, kind) => sum + kind.nbytes, 0));
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

// What is used comes first, so that the free part is at the right end.
function showBar(kinds, all) {
  const [free, ...used] = kinds;
  reconcile(byId("memory-bar"), [...used, free], {
    key: (kind) => kind.name,
    create: (kind) => element("span", { class: kind.name }),
    update: (node, kind) => {
      node.style.width = all ? `${(100 * kind.nbytes) / all}%` : "0";
    },
  });
}

function create(kind) {
  const swatch = kind.name ? [element("span", { class: `swatch ${kind.name}` })] : [];
  return element("div", {}, element("dt", {}, ...swatch, kind.label), element("dd"));
}

function update(node, kind) {
  setText(node.lastElementChild, bytes(kind.nbytes));
}
