// Cells on a canvas, painted into one image that is put there at once. Shapes tell states apart as well as colours do.

import { colour, STATES } from "./states.js";

const LARGEST_CELL = 20;
const SMALLEST_WITH_SHAPES = 6;
const OPEN = 1;
const LEASED = 4;

/** As many cells as there are pages, as large as `height` CSS pixels allow. */
export class Grid {
  #canvas;
  #height;
  #states = new Uint8Array();
  #image = null;
  #pixels = null;
  #cell = 1;
  #ratio = 1;
  #colours = [];
  #onLayout;

  columns = 1;

  constructor(canvas, height, onLayout) {
    this.#canvas = canvas;
    this.#height = height;
    this.#onLayout = onLayout;
    new ResizeObserver(() => this.#layOut()).observe(canvas.parentElement ?? canvas);
  }

  get length() {
    return this.#states.length;
  }

  state(page) {
    return this.#states[page];
  }

  set(states) {
    const isNew = states.length !== this.#states.length;
    this.#states = states;
    if (isNew) this.#layOut();
    else this.repaint();
  }

  /** Some pages, as [page, state]. */
  change(changes) {
    for (const [page, state] of changes) {
      this.#states[page] = state;
      this.#paint(page);
    }
    if (changes.length) this.#show();
  }

  repaint() {
    if (this.#image === null) return;
    this.#readColours();
    this.#pixels.fill(0);
    for (let page = 0; page < this.length; page += 1) this.#paint(page);
    this.#show();
  }

  /** The page at a place in CSS pixels. */
  at(x, y) {
    const column = Math.floor((x * this.#ratio) / this.#cell);
    const page = Math.floor((y * this.#ratio) / this.#cell) * this.columns + column;
    return column >= 0 && column < this.columns && page >= 0 && page < this.length ? page : null;
  }

  /** Where a page is, in CSS pixels. */
  box(page) {
    if (page >= this.length) return null;
    const size = this.#cell / this.#ratio;
    return { x: (page % this.columns) * size, y: Math.floor(page / this.columns) * size, size };
  }

  #layOut() {
    const frame = this.#canvas.parentElement;
    if (frame === null || frame.clientWidth === 0 || this.length === 0) return;
    this.#ratio = devicePixelRatio;
    const width = Math.floor(frame.clientWidth * this.#ratio);
    const rowsOf = (cell) => Math.ceil(this.length / Math.floor(width / cell));
    let cell = Math.floor(LARGEST_CELL * this.#ratio);
    while (cell > 1 && rowsOf(cell) * cell > this.#height * this.#ratio) cell -= 1;
    this.#cell = cell;
    this.columns = Math.floor(width / cell);
    this.#canvas.width = width;
    this.#canvas.height = rowsOf(cell) * cell;
    this.#canvas.style.width = `${width / this.#ratio}px`;
    this.#canvas.style.height = `${this.#canvas.height / this.#ratio}px`;
    this.#image = new ImageData(this.#canvas.width, this.#canvas.height);
    this.#pixels = new Uint32Array(this.#image.data.buffer);
    this.repaint();
    this.#onLayout();
  }

  #readColours() {
    // Bytes of a pixel are red, green, blue, opacity; all machines with browsers are little-endian.
    this.#colours = STATES.map(({ name }) => {
      const [red, green, blue] = colour(`--${name}`);
      return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
    });
  }

  #paint(page) {
    if (this.#image === null) return;
    const state = this.#states[page];
    const size = this.#cell - (this.#cell > 3 ? Math.ceil(this.#cell / 10) : 0);
    const left = (page % this.columns) * this.#cell;
    const top = Math.floor(page / this.columns) * this.#cell;
    this.#fill(left, top, size, this.#colours[state]);
    if (this.#cell < SMALLEST_WITH_SHAPES * this.#ratio) return;
    const inset = Math.floor(size * (state === OPEN ? 0.25 : 0.34));
    if (state === OPEN || state === LEASED) this.#fill(left + inset, top + inset, size - 2 * inset, 0);
  }

  #fill(left, top, size, value) {
    for (let y = top; y < top + size; y += 1) {
      const start = y * this.#canvas.width + left;
      this.#pixels.fill(value, start, start + size);
    }
  }

  #show() {
    if (this.#image !== null) this.#canvas.getContext("2d").putImageData(this.#image, 0, 0);
  }
}
