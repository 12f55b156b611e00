// Charts of the last requests by time of day: a dot for each, a line for the last 20 together.

import { byId, element, setAttribute, setText } from "./dom.js";
import { History, medians, share, trailing } from "./history.js";
import { Plot } from "./plot.js";
import { linear, logarithmic } from "./scale.js";
import { clockTime, compact } from "./words.js";

const LEFT = 46;
const LEAST_SECONDS = 60;
const MOST_SECONDS = 900;
const short = (value) => value.toFixed(value < 10 ? 1 : 0);

export class Charts {
  #history = new History();
  #now = 0;
  #charts = [
    new Chart("Time to first token", "ms", { format: short, tick: compact, summary: "median", scale: logarithmic }),
    new Chart("Decoding", "tokens/s", { format: short, tick: compact, summary: "median", scale: logarithmic }),
    new Chart("Cached part of prompts", "%", {
      format: (value) => short(100 * value),
      tick: (value) => String(100 * value),
      summary: "together",
      scale: () => linear(1),
    }),
  ];

  constructor() {
    const names = [["hit", "mostly cached"], ["miss", "mostly computed"], ["trend", "over the last 20"]];
    const items = names.map(([name, text]) => element("li", {}, element("span", { class: `swatch ${name}` }), text));
    byId("charts").append(element("ul", { class: "legend" }, ...items), ...this.#charts.map((chart) => chart.root));
    document.addEventListener("themechange", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(byId("charts"));
  }

  update(event) {
    this.#history.update(event);
    this.#now = event.time;
    this.draw();
  }

  draw() {
    if (!this.#now) return; // nothing has been heard yet
    const history = this.#history;
    const oldest = history.ended[0]?.time ?? this.#now;
    const range = Math.min(Math.max(this.#now - oldest, LEAST_SECONDS), MOST_SECONDS);
    const times = { first: this.#now - range, last: this.#now };
    const [first, decode, cached] = this.#charts;
    const ttft = history.points((each) => each.ttft_seconds && 1000 * each.ttft_seconds);
    const rates = history.points((each) => each.decode_tokens_per_second);
    first.draw(times, ttft, medians(ttft));
    decode.draw(times, rates, medians(rates));
    cached.draw(times, history.points((each) => share([each])), trailing(history.ended, share));
  }
}

class Chart {
  #canvas = element("canvas", { role: "img" });
  #latest = element("span", { class: "latest" });
  #plot = new Plot(this.#canvas, LEFT);
  #title;
  #unit;
  #options;

  constructor(title, unit, options) {
    this.#title = title;
    this.#options = options;
    this.#unit = options.scale === logarithmic ? `${unit}, logarithmic` : unit;
    const heading = element("h3", {}, element("span", {}, title, element("small", { text: ` ${this.#unit}` })));
    heading.append(this.#latest);
    this.root = element("article", { class: "chart" }, heading, element("div", {}, this.#canvas));
  }

  draw(times, points, line) {
    const seen = (point) => point.time >= times.first;
    const [dots, trend] = [points.filter(seen), line.filter(seen)];
    this.#describe(dots, trend);
    const scale = this.#options.scale(dots.map((point) => point.value), this.#plot.mostTicks);
    if (!this.#plot.begin({ times, scale, tick: this.#options.tick, clock: clockTime })) return;
    this.#plot.dots(dots, (point) => (point.isFilled ? "--hit" : "--miss"));
    this.#plot.line(trend);
  }

  #describe(dots, trend) {
    const { format, summary } = this.#options;
    const [together, last] = [trend.at(-1)?.value, dots.at(-1)?.value];
    const values = last === undefined ? "no requests yet" : `${summary} ${format(together)} · last ${format(last)}`;
    setText(this.#latest, values);
    setAttribute(this.#canvas, "aria-label", `${this.#title} in ${this.#unit}: ${values}`);
  }
}
