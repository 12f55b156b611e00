// Charts of values by time of day: a dot for each request, a line for the last 20 together.

import { byId, element, setAttribute, setText } from "./dom.js";
import { History, medians, share, trailing } from "./history.js";
import { clockTime } from "./words.js";

const MARGIN = { left: 46, right: 10, top: 8, bottom: 18 };
const LEAST_SECONDS = 60;
const MOST_SECONDS = 900;
const short = (value) => value.toFixed(value < 10 ? 1 : 0);

export class Charts {
  #history = new History();
  #now = 0;
  #charts = [
    new Chart("Time to first token", "ms", { format: short, tick: String, summary: "median" }),
    new Chart("Decoding", "tokens/s", { format: short, tick: String, summary: "median" }),
    new Chart("Cached part of prompts", "%", {
      format: (value) => short(100 * value),
      tick: (value) => String(100 * value),
      summary: "together",
      most: 1,
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
  #title;
  #unit;
  #options;

  constructor(title, unit, options) {
    this.#title = title;
    this.#unit = unit;
    this.#options = options;
    const heading = element("h3", {}, title, element("small", { text: ` ${unit}, by time of day` }), this.#latest);
    this.root = element("article", { class: "chart" }, heading, element("div", {}, this.#canvas));
  }

  draw(times, points, line) {
    const seen = (point) => point.time >= times.first;
    const [dots, trend] = [points.filter(seen), line.filter(seen)];
    this.#describe(dots, trend);
    const box = this.#canvas.parentElement;
    const [width, height] = [box.clientWidth, box.clientHeight];
    if (!width || !height) return;
    const context = fresh(this.#canvas, width, height);
    const ticks = ticksUpTo(this.#options.most ?? Math.max(...dots.map((point) => point.value), 0));
    const [wide, high] = [width - MARGIN.left - MARGIN.right, height - MARGIN.top - MARGIN.bottom];
    const x = (time) => MARGIN.left + (wide * (time - times.first)) / (times.last - times.first);
    const y = (value) => MARGIN.top + high * (1 - value / ticks.at(-1));
    drawAxes(context, { width, height, ticks, times, x, y, tick: this.#options.tick });
    drawDots(context, dots, x, y);
    drawLine(context, trend, x, y);
  }

  #describe(dots, trend) {
    const { format, summary } = this.#options;
    const [together, last] = [trend.at(-1)?.value, dots.at(-1)?.value];
    const values = last === undefined ? "no requests yet" : `${summary} ${format(together)} · last ${format(last)}`;
    setText(this.#latest, values);
    setAttribute(this.#canvas, "aria-label", `${this.#title} in ${this.#unit}: ${values}`);
  }
}

const property = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);

/** The context of a canvas of so many CSS pixels, empty. Its size is only set anew when it has changed. */
function fresh(canvas, width, height) {
  const ratio = devicePixelRatio;
  const [wide, high] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== wide || canvas.height !== high) Object.assign(canvas, { width: wide, height: high });
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  context.font = `11px ${getComputedStyle(canvas).fontFamily}`;
  return context;
}

/** 0 and round numbers, up to one that is not below `most`. */
function ticksUpTo(most) {
  if (!(most > 0)) return [0, 1];
  const power = 10 ** Math.floor(Math.log10(most / 2));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((each) => each * 2 >= most * 0.999) ?? most;
  const ticks = [0, step];
  while (ticks.at(-1) < most * 0.999) ticks.push(step * ticks.length);
  return ticks.map((tick) => Number(tick.toPrecision(6)));
}

function drawAxes(context, { width, height, ticks, times, x, y, tick }) {
  context.strokeStyle = property("--line");
  context.fillStyle = property("--muted");
  context.lineWidth = 1;
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (const value of ticks) {
    const at = Math.round(y(value)) + 0.5;
    context.beginPath();
    context.moveTo(MARGIN.left, at);
    context.lineTo(width - MARGIN.right, at);
    context.stroke();
    context.fillText(tick(value), MARGIN.left - 6, at);
  }
  context.textBaseline = "alphabetic";
  const labels = [[times.first, "left"], [(times.first + times.last) / 2, "center"], [times.last, "right"]];
  for (const [time, align] of labels) {
    context.textAlign = align;
    context.fillText(clockTime(time), x(time), height - 4);
  }
}

function drawDots(context, points, x, y) {
  context.lineWidth = 1.25;
  for (const point of points) {
    context.beginPath();
    context.arc(x(point.time), y(point.value), 2.5, 0, 2 * Math.PI);
    context.fillStyle = context.strokeStyle = property(point.isHit ? "--hit" : "--miss");
    if (point.isHit) context.fill();
    else context.stroke();
  }
}

function drawLine(context, points, x, y) {
  context.strokeStyle = property("--text");
  context.lineWidth = 1.5;
  context.beginPath();
  for (const point of points) context.lineTo(x(point.time), y(point.value));
  context.stroke();
}
