// Puts the parts of the page together: what the feed says goes to every one of them.

import { KeyNeeded } from "./api.js";
import { Charts } from "./charts.js";
import { byId, element, reconcile, setAttribute, setText } from "./dom.js";
import { Feed } from "./feed.js";
import { Hours } from "./hours.js";
import { KeyDialog } from "./key.js";
import { Leases } from "./leases.js";
import { updateMemory } from "./memory.js";
import { Pages } from "./pages.js";
import { Playground } from "./playground.js";
import { Requests } from "./requests.js";
import { SpentDialog } from "./spent.js";
import { Tiers } from "./tiers.js";
import { Tree } from "./tree.js";
import { partsOf, updateUsage } from "./usage.js";
import { bytes, clockTime, count, percent } from "./words.js";

const root = document.documentElement;
const pages = new Pages();
const leases = new Leases();
const charts = new Charts();
const hours = new Hours();
const tiers = new Tiers();
const spent = new SpentDialog();
const requests = new Requests((request) => spent.open(request));
const tree = new Tree(() => root.dataset.connection === "live");
const playground = new Playground((error) => error instanceof KeyNeeded && dialog.ask());
const dialog = new KeyDialog(() => feed.retry());
const feed = new Feed({ onEvent, onState });

function onEvent(event) {
  showHeader(event);
  pages.update(event);
  leases.update(event);
  charts.update(event);
  hours.update(event);
  updateUsage(event);
  updateMemory(event);
  tiers.update(event);
  requests.update(event);
  spent.update((id) => requests.find(id));
}

function onState(state, reason) {
  if (state === "refused") dialog.ask();
  if (root.dataset.connection === state) return;
  setAttribute(root, "data-connection", state);
  const lost = `Connection lost at ${clockTime(Date.now() / 1000)}, trying again`;
  setText(byId("connection"), { live: "Live", lost, refused: "An API key is needed" }[state]);
  byId("connection").title = reason;
  if (state !== "live") return;
  tree.refresh();
  // Without its models the playground says so itself when it is used.
  playground.loadModels().catch(() => {});
}

function showHeader(event) {
  const { cache } = event;
  const figures = [
    ["Hit rate", percent(cache.hit_rate)],
    ["Tokens from cache", count(cache.hit_tokens)],
    ["In flight", count(event.requests.length)],
    ...(event.sees_all ? figuresOfAll(event) : []),
  ];
  setText(byId("model-name"), event.model);
  reconcile(byId("figures"), figures, {
    key: ([name]) => name,
    create: ([name]) => element("div", {}, element("dt", { text: name }), element("dd")),
    update: (node, [, value]) => setText(node.lastElementChild, value),
  });
}

/** What one tenant is not told, since others have a part in it. */
function figuresOfAll({ cache, groups, memory }) {
  return [
    ...partsOf(groups).map(({ title, share }) => [title, percent(share)]),
    ["Evicted pages", count(cache.evicted_pages)],
    ...(cache.omitted_tokens ? [["Left out of running", leftOut(cache)]] : []),
    ["Process", bytes(memory.process)],
  ];
}

/** By compression: tokens that running sequences have no slot for, and the share they are of all. */
function leftOut({ omitted_tokens, running_tokens }) {
  return `${count(omitted_tokens)} · ${percent(omitted_tokens / running_tokens)}`;
}

function showTheme() {
  const isDark = root.dataset.theme === "dark";
  setText(byId("theme-button"), isDark ? "Light" : "Dark");
  setAttribute(byId("theme-button"), "aria-label", isDark ? "Use light colours" : "Use dark colours");
}

byId("theme-button").addEventListener("click", () => document.dispatchEvent(new Event("themetoggle")));
document.addEventListener("themechange", showTheme);
showTheme();
feed.run();
