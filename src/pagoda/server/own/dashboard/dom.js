// Elements, kept in place: what has not changed is not touched, so nothing flickers and focus stays.

/** A new element with attributes; `text` is only ever text. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") made.textContent = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

export const byId = (id) => document.getElementById(id);

export function setText(node, text) {
  const wanted = String(text);
  if (node.textContent !== wanted) node.textContent = wanted;
}

export function setAttribute(node, name, value) {
  const wanted = String(value);
  if (node.getAttribute(name) !== wanted) node.setAttribute(name, wanted);
}

/**
 * Makes the children of `parent` those of `items`, in order. An item keeps the element of its key, which `create(item)`
 * makes once and `update(element, item)` fills.
 */
export function reconcile(parent, items, { key, create, update }) {
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  const kept = new Set();
  items.forEach((item, index) => {
    const name = key(item);
    let child = old.get(name);
    if (child === undefined) {
      child = create(item);
      child.dataset.key = name;
    }
    kept.add(child);
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] ?? null);
    update(child, item);
  });
  for (const child of [...parent.children]) if (!kept.has(child)) child.remove();
  // An element that is moved loses its focus.
  if (focused !== null && focused.isConnected && document.activeElement !== focused) focused.focus();
}

/** A row of a table: `cells` are the classes of its cells. */
export function row(cells) {
  return element("tr", {}, ...cells.map((name) => element("td", { class: name })));
}
