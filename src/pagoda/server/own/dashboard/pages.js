// The page maps: one canvas for each layer group, one cell for each page, with a legend and a tooltip.

import { byId, element, reconcile, setAttribute, setText } from "./dom.js";
import { Grid } from "./grid.js";
import { STATES } from "./states.js";
import { bytes, count } from "./words.js";

// In CSS pixels: all maps, and each.
const MOST_HEIGHT = 260;
const LEAST_HEIGHT = 64;

/** All groups. */
export class Pages {
  #maps = new Map();

  constructor() {
    document.addEventListener("themechange", () => this.#maps.forEach((map) => map.grid.repaint()));
  }

  update(event) {
    const groups = event.groups.map((group, index) => ({ ...group, key: `${index} ${group.name}` }));
    const height = Math.max(MOST_HEIGHT / groups.length, LEAST_HEIGHT);
    reconcile(byId("groups"), groups, {
      key: (group) => group.key,
      create: (group) => this.#create(group, height),
      update: () => {},
    });
    byId("pages-note").hidden = event.sees_all;
    groups.forEach((group, index) => {
      const map = this.#maps.get(group.key);
      map.describe(group, event.page_stride);
      map.reveal(event.sees_all);
      if (!event.sees_all) return;
      map.count(group);
      if (event.type === "state") map.grid.set(decode(event.pages[index]));
      else map.grid.change(event.changed_pages[index]);
      map.refresh();
    });
  }

  #create(group, height) {
    const map = new PageMap(height);
    this.#maps.set(group.key, map);
    return map.root;
  }
}

/** One group. */
class PageMap {
  #title = element("h3", {}, element("span"), element("small"));
  #counts = STATES.map(() => element("b"));
  #tip = element("p", { class: "tip", role: "tooltip", hidden: "" });
  #marker = element("span", { class: "marker", hidden: "" });
  #frame;
  #legend;
  #canvas = element("canvas", { tabindex: "0", role: "slider", "aria-valuemin": "0" });
  #stride = 1;
  #chosen = null;

  constructor(height) {
    const legend = STATES.map(({ name, label }, state) => {
      const swatch = element("span", { class: `swatch ${name}` });
      return element("li", { "data-state": name }, swatch, `${label} `, this.#counts[state]);
    });
    this.#frame = element("div", { class: "map" }, this.#canvas, this.#marker, this.#tip);
    this.#legend = element("ul", { class: "legend" }, ...legend);
    this.root = element("article", {}, this.#title, this.#frame, this.#legend);
    this.grid = new Grid(this.#canvas, height, () => this.refresh());
    this.#canvas.addEventListener("pointermove", (event) => this.#choose(this.grid.at(event.offsetX, event.offsetY)));
    this.#canvas.addEventListener("pointerleave", () => this.#choose(null));
    this.#canvas.addEventListener("focus", () => this.#choose(this.#chosen ?? 0));
    this.#canvas.addEventListener("blur", () => this.#choose(null));
    this.#canvas.addEventListener("keydown", (event) => this.#onKey(event));
  }

  describe(group, stride) {
    this.#stride = stride;
    const tokens = group.page_tokens > 1 ? ` of ${count(group.page_tokens)} tokens` : "";
    const every = stride > 1 ? `; 1 in ${count(stride)} shown` : "";
    setText(this.#title.firstElementChild, `${group.name} · ${group.format}`);
    setText(this.#title.lastElementChild, ` ${count(group.total)} pages${tokens}, ${bytes(group.page_nbytes)}${every}`);
    setAttribute(this.#canvas, "aria-label", `Pages of ${group.name}`);
  }

  /** Show which pages are what, or how many there are alone. */
  reveal(isShown) {
    this.#frame.hidden = this.#legend.hidden = !isShown;
  }

  count(group) {
    STATES.forEach(({ of }, state) => setText(this.#counts[state], count(of(group))));
  }

  /** What is said of the chosen page. */
  refresh() {
    const page = this.#chosen;
    const box = page === null ? null : this.grid.box(page);
    this.#tip.hidden = this.#marker.hidden = box === null;
    setAttribute(this.#canvas, "aria-valuemax", Math.max(this.grid.length - 1, 0));
    setAttribute(this.#canvas, "aria-valuenow", page ?? 0);
    if (box === null) return;
    const text = `Page ${count(page * this.#stride)}: ${STATES[this.grid.state(page)].label}`;
    setText(this.#tip, text);
    setAttribute(this.#canvas, "aria-valuetext", text);
    const size = `${box.size}px`;
    Object.assign(this.#marker.style, { left: `${box.x}px`, top: `${box.y}px`, width: size, height: size });
    const left = Math.min(box.x, this.#canvas.clientWidth - this.#tip.offsetWidth);
    Object.assign(this.#tip.style, { left: `${Math.max(left, 0)}px`, top: `${box.y + box.size + 4}px` });
  }

  #choose(page) {
    this.#chosen = page;
    this.refresh();
  }

  #onKey(event) {
    const last = this.grid.length - 1;
    const now = this.#chosen ?? 0;
    const targets = {
      ArrowLeft: now - 1,
      ArrowRight: now + 1,
      ArrowUp: now - this.grid.columns,
      ArrowDown: now + this.grid.columns,
      Home: 0,
      End: last,
    };
    if (!(event.key in targets)) return;
    event.preventDefault();
    this.#choose(Math.min(Math.max(targets[event.key], 0), last));
  }
}

const decode = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
