// The last hours, from the samples that the server keeps: they are there again after a reload.

import { highest, means } from "./columns.js";
import { byId, element, setAttribute, setText } from "./dom.js";
import { Plot } from "./plot.js";
import { linear, logarithmic } from "./scale.js";
import { clockMinutes, compact, count, seconds } from "./words.js";

const LEFT = 48;
const COLUMN_PIXELS = 3;
const LEAST_SECONDS = 600;
const MOST_SECONDS = 6 * 3600; // as the server
const RECENT_SECONDS = 15; // a sample, and some more until it is here

const rate = (value) => (value < 10 && value > 0 ? value.toFixed(1) : count(value));
const scaleOf = (values) => linear(Math.max(...values, 0));

export class Hours {
  #samples = [];
  #times = null;
  #charts = [
    new Chart("Tokens/s", { of: (each) => each.tokens_per_second, summary: means, format: rate }),
    new Chart("Requests/s", { of: (each) => each.requests_per_second, summary: means, format: rate }),
    new Chart("First token p95", {
      of: (each) => each.ttft_p95_seconds,
      summary: highest,
      format: seconds,
      scale: logarithmic,
      tick: (value) => (value < 1 ? `${1000 * value} ms` : `${compact(value)} s`),
      quiet: null,
    }),
    new Chart("Waiting", { of: (each) => each.waiting, summary: highest, format: count }),
    new Chart("Running", { of: (each) => each.running, summary: highest, format: count }),
    new Chart("Errors/min", {
      of: (each) => (60 * each.errors) / each.seconds,
      summary: means,
      format: rate,
      colour: "--bad",
    }),
  ];

  constructor() {
    byId("hours").append(...this.#charts.map((chart) => chart.root));
    document.addEventListener("themechange", () => this.#draw());
    new ResizeObserver(() => this.#draw()).observe(byId("hours"));
  }

  /** An `event` of the feed; the first of a connection has all that the server remembers. */
  update(event) {
    const range = Math.min(Math.max(event.uptime_seconds, LEAST_SECONDS), MOST_SECONDS);
    const before = event.number === 0 ? [] : this.#samples;
    this.#times = { first: event.time - range, last: event.time };
    this.#samples = [...before, ...event.hours].filter((each) => each.time > this.#times.first);
    const errors = this.#samples.reduce((sum, each) => sum + each.errors, 0);
    const span = range < 3600 ? `${Math.floor(range / 60)} min` : `${(range / 3600).toFixed(1)} h`;
    const failed = `${count(errors)} ${errors === 1 ? "error" : "errors"}`;
    setText(byId("hours-note"), `The last ${span} · ${failed} · first token on a logarithmic axis`);
    this.#draw();
  }

  #draw() {
    if (this.#times === null) return; // nothing has been heard yet
    for (const chart of this.#charts) chart.draw(this.#samples, this.#times);
  }
}

class Chart {
  #canvas = element("canvas", { role: "img" });
  #latest = element("span", { class: "latest" });
  #plot = new Plot(this.#canvas, LEFT);
  #title;
  #options;

  constructor(title, options) {
    this.#title = title;
    this.#options = { scale: scaleOf, tick: compact, colour: "--hit", quiet: 0, ...options };
    const heading = element("h3", {}, title, this.#latest);
    this.root = element("article", { class: "chart" }, heading, element("div", {}, this.#canvas));
  }

  draw(samples, times) {
    const { of, summary, scale, tick, colour } = this.#options;
    const values = summary(samples, times, Math.max(this.#plot.columns(COLUMN_PIXELS), 1), of);
    this.#describe(samples, times);
    const axis = scale(values, this.#plot.mostTicks);
    if (this.#plot.begin({ times, scale: axis, tick, clock: clockMinutes })) this.#plot.bars(values, colour);
  }

  #describe(samples, times) {
    const { of, format, quiet } = this.#options;
    const last = samples.at(-1);
    const isRecent = last !== undefined && times.last - last.time < RECENT_SECONDS;
    const value = isRecent ? of(last) : quiet;
    const now = value === null ? "—" : format(value);
    setText(this.#latest, now);
    setAttribute(this.#canvas, "aria-label", `${this.#title}: ${now} now, ${format(Math.max(...samples.map(of), 0))} at most`);
  }
}
