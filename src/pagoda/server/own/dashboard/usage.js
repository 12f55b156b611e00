// How full the cache is: a page that is idle is kept for later hits, and free for whoever needs it more.

import { byId, element, reconcile, setText } from "./dom.js";
import { count, percent } from "./words.js";

const PARTS = [
  { name: "in-use", label: "In use", title: "Pages in use", of: (group) => group.open + group.in_transit + group.in_use },
  { name: "idle", label: "Idle, kept for later hits", title: "Pages idle", of: (group) => group.idle },
  { name: "free", label: "Free", title: "Pages free", of: (group) => group.free },
];

/** Of all groups together: of each part its pages, and the share they are of all. */
export function partsOf(groups) {
  const total = groups.reduce((sum, group) => sum + group.total, 0);
  return PARTS.map((part) => {
    const pages = groups.reduce((sum, group) => sum + part.of(group), 0);
    return { ...part, pages, share: total ? pages / total : 0 };
  });
}

export function updateUsage(event) {
  byId("usage").hidden = !event.sees_all;
  if (!event.sees_all) return;
  const parts = partsOf(event.groups);
  const key = (part) => part.name;
  reconcile(byId("usage-bar"), parts, {
    key,
    create: (part) => element("span", { class: part.name }),
    update: (node, part) => {
      node.style.width = `${100 * part.share}%`;
    },
  });
  reconcile(byId("usage-amounts"), parts, { key, create, update });
}

function create(part) {
  const swatch = element("span", { class: `swatch ${part.name}` });
  return element("div", { "data-part": part.name }, element("dt", {}, swatch, part.label), element("dd"));
}

function update(node, part) {
  setText(node.lastElementChild, `${count(part.pages)} · ${percent(part.share)}`);
}
