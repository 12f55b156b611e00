// The prefix tree: rows that open and close. What is open, and where the focus is, outlasts every refresh.

import { json } from "./api.js";
import { byId, element, reconcile, setAttribute, setText } from "./dom.js";
import { distinct } from "./excerpt.js";
import { count, short } from "./words.js";

const MOST_BRANCHES = 200;
const REFRESH_MS = 2000;

export class Tree {
  #root = byId("tree");
  #roots = [];
  #rows = [];
  #open = new Set();
  #chosen = null;
  #isWanted;

  /** `isWanted` says whether it is worth asking the server now. */
  constructor(isWanted) {
    this.#isWanted = isWanted;
    this.#root.addEventListener("keydown", (event) => this.#onKey(event));
    this.#root.addEventListener("click", (event) => this.#onClick(event));
    this.#root.addEventListener("focusin", (event) => this.#choose(event.target.dataset.key));
    setInterval(() => this.refresh(), REFRESH_MS);
  }

  async refresh() {
    if (document.hidden || !this.#isWanted()) return;
    try {
      this.#roots = (await json(`v1/kv/tree?limit=${MOST_BRANCHES}`)).roots;
    } catch {
      return; // the feed says what is wrong
    }
    this.#show();
  }

  #show() {
    this.#rows = [...rowsOf(this.#roots, this.#open)];
    if (!this.#rows.some((row) => row.key === this.#chosen)) this.#chosen = this.#rows[0]?.key ?? null;
    reconcile(this.#root, this.#rows, { key: (row) => row.key, create, update: (node, row) => this.#fill(node, row) });
    byId("no-tree").hidden = this.#rows.length > 0;
    setText(byId("tree-text"), this.#rows.find((row) => row.key === this.#chosen)?.text ?? "");
  }

  #fill(node, row) {
    const [text, ...numbers] = node.children;
    const { hits, tokens, pages, in_use: inUse, leased } = row.branch;
    const names = ["hits", "tokens", "pages", "in use", "leased"];
    setText(text.lastElementChild, row.excerpt);
    const values = [hits, tokens, pages, inUse, leased];
    values.forEach((value, index) => setText(numbers[index], value === undefined ? "" : short(value)));
    const counts = names.map((name, index) => `${numbers[index].textContent} ${name}`);
    text.style.paddingLeft = `${row.level - 1}em`;
    setAttribute(node, "aria-label", hits === undefined ? row.text : `${row.text}: ${counts.join(", ")}`);
    setAttribute(node, "aria-level", row.level);
    setAttribute(node, "aria-posinset", row.position);
    setAttribute(node, "aria-setsize", row.size);
    setAttribute(node, "aria-selected", row.key === this.#chosen);
    setAttribute(node, "tabindex", row.key === this.#chosen ? 0 : -1);
    if (row.isLeaf) node.removeAttribute("aria-expanded");
    else setAttribute(node, "aria-expanded", row.isOpen);
  }

  #choose(key) {
    if (key === undefined || key === this.#chosen) return;
    this.#chosen = key;
    this.#show();
  }

  #focus(row) {
    if (row === undefined) return;
    this.#choose(row.key);
    this.#root.children[this.#rows.indexOf(this.#rows.find(({ key }) => key === row.key))].focus();
  }

  #toggle(row, isOpen) {
    if (isOpen) this.#open.add(row.key);
    else this.#open.delete(row.key);
    this.#show();
  }

  #onClick(event) {
    const node = event.target.closest("[role=treeitem]");
    const row = this.#rows.find(({ key }) => key === node?.dataset.key);
    if (row === undefined) return;
    this.#focus(row);
    if (!row.isLeaf) this.#toggle(row, !row.isOpen);
  }

  #onKey(event) {
    const index = this.#rows.findIndex(({ key }) => key === this.#chosen);
    const row = this.#rows[index];
    if (row === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    const actions = {
      ArrowDown: () => this.#focus(this.#rows[index + 1]),
      ArrowUp: () => this.#focus(this.#rows[index - 1]),
      Home: () => this.#focus(this.#rows[0]),
      End: () => this.#focus(this.#rows.at(-1)),
      ArrowRight: () => this.#onRight(row, index),
      ArrowLeft: () => this.#onLeft(row),
      Enter: () => !row.isLeaf && this.#toggle(row, !row.isOpen),
      " ": () => !row.isLeaf && this.#toggle(row, !row.isOpen),
    };
    if (!(event.key in actions)) return;
    event.preventDefault();
    actions[event.key]();
  }

  #onRight(row, index) {
    if (row.isLeaf) return;
    if (row.isOpen) this.#focus(this.#rows[index + 1]);
    else this.#toggle(row, true);
  }

  #onLeft(row) {
    if (row.isOpen) this.#toggle(row, false);
    else this.#focus(this.#rows.find(({ key }) => key === row.parent));
  }
}

/** The rows that are seen. One namespace without a name needs no row of its own. */
function* rowsOf(roots, open) {
  const isPlain = roots.length === 1 && !roots[0].tenant && !roots[0].salted;
  const items = isPlain ? roots[0].branches : roots.map(namespaceBranch);
  yield* branchRows(items, { open, level: 1, parent: "", hidden: isPlain ? roots[0].hidden : 0 });
}

function namespaceBranch(root, index) {
  const text = `Tenant ${root.tenant || "without a name"}${root.salted ? ", salted" : ""}`;
  return { id: `namespace ${index} ${root.tenant}`, text, children: root.branches, hidden: root.hidden };
}

function* branchRows(branches, { open, level, parent, hidden }) {
  const size = branches.length + (hidden ? 1 : 0);
  const areRoots = branches.some(({ start }) => start === 0);
  const excerpts = distinct(branches.map(shown), { withBeginning: areRoots });
  for (const [index, branch] of branches.entries()) {
    const key = `${parent}/${branch.id}`;
    const isLeaf = branch.children.length === 0 && !branch.hidden;
    const isOpen = !isLeaf && open.has(key);
    const texts = { text: shown(branch), excerpt: excerpts[index] };
    yield { key, parent, level, size, branch, isLeaf, isOpen, position: index + 1, ...texts };
    if (isOpen) yield* branchRows(branch.children, { open, level: level + 1, parent: key, hidden: branch.hidden });
  }
  if (!hidden) return;
  const text = `${count(hidden)} more that saved less`;
  const row = { key: `${parent}/hidden`, parent, level, size, branch: {}, isLeaf: true, isOpen: false };
  yield { ...row, position: size, text, excerpt: text };
}

const shown = (branch) => branch.text ?? `${branch.tokens} tokens after the first ${branch.start}`;

function create() {
  const text = element("span", { class: "text" }, element("span", { class: "caret" }), element("span"));
  const numbers = Array.from({ length: 5 }, () => element("span", { class: "number" }));
  return element("li", { role: "treeitem" }, text, ...numbers);
}
