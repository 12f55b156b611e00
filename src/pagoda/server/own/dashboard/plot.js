// Drawing of values by time of day on one canvas: axes, and dots, lines or columns between them.

const FONT = "11px";
const TOP = 8;
const RIGHT = 10;
const BOTTOM = 18;
const LEAST_GAP = 8; // between two labels

export class Plot {
  #canvas;
  #left;
  #context = null;
  #width = 0;
  #height = 0;
  #times;
  #scale;

  /** There is room of `left` CSS pixels for the numbers beside the axis. */
  constructor(canvas, left) {
    this.#canvas = canvas;
    this.#left = left;
  }

  /** How many columns of so many CSS pixels there is room for, 0 if the plot is not seen. */
  columns(pixels) {
    return Math.max(Math.floor((this.#canvas.parentElement.clientWidth - this.#left - RIGHT) / pixels), 0);
  }

  /** How many numbers there is room for beside the axis. */
  get mostTicks() {
    return Math.max(Math.floor((this.#canvas.parentElement.clientHeight - TOP - BOTTOM) / 16) + 1, 2);
  }

  /** Draws empty axes; false if nobody sees them. `tick` and `clock` write values and times. */
  begin({ times, scale, tick, clock }) {
    const box = this.#canvas.parentElement;
    [this.#width, this.#height] = [box.clientWidth, box.clientHeight];
    if (!this.#width || !this.#height) return false;
    [this.#times, this.#scale] = [times, scale];
    this.#context = fresh(this.#canvas, this.#width, this.#height);
    this.#drawTicks(tick);
    this.#drawTimes(clock);
    return true;
  }

  dots(points, colourOf) {
    const context = this.#context;
    context.lineWidth = 1.25;
    for (const point of points) {
      context.beginPath();
      context.arc(this.#x(point.time), this.#y(point.value), 2.5, 0, 2 * Math.PI);
      context.fillStyle = context.strokeStyle = property(colourOf(point));
      if (point.isFilled) context.fill();
      else context.stroke();
    }
  }

  line(points) {
    const context = this.#context;
    context.strokeStyle = property("--text");
    context.lineWidth = 1.5;
    context.beginPath();
    for (const point of points) context.lineTo(this.#x(point.time), this.#y(point.value));
    context.stroke();
  }

  /** Values of equal parts of the time, null where there is none. What is not 0 is seen, however small. */
  bars(values, colour) {
    const context = this.#context;
    const bottom = this.#height - BOTTOM;
    const wide = (this.#width - this.#left - RIGHT) / values.length;
    context.fillStyle = property(colour);
    values.forEach((value, index) => {
      if (!value) return;
      const high = Math.max(bottom - this.#y(value), 1.5);
      context.fillRect(this.#left + index * wide, bottom - high, Math.max(wide - 0.5, 1), high);
    });
  }

  #x(time) {
    const { first, last } = this.#times;
    return this.#left + ((this.#width - this.#left - RIGHT) * (time - first)) / (last - first);
  }

  #y(value) {
    return TOP + (this.#height - TOP - BOTTOM) * (1 - this.#scale.share(value));
  }

  #drawTicks(tick) {
    const context = this.#context;
    context.strokeStyle = property("--line");
    context.fillStyle = property("--muted");
    context.lineWidth = 1;
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const value of this.#scale.ticks) {
      const at = Math.round(this.#y(value)) + 0.5;
      context.beginPath();
      context.moveTo(this.#left, at);
      context.lineTo(this.#width - RIGHT, at);
      context.stroke();
      context.fillText(tick(value), this.#left - 6, at);
    }
  }

  #drawTimes(clock) {
    const context = this.#context;
    const { first, last } = this.#times;
    const times = [first, (first + last) / 2, last];
    const texts = times.map(clock);
    const needed = texts.reduce((sum, text) => sum + context.measureText(text).width + LEAST_GAP, 0);
    const hasRoom = needed <= this.#width - this.#left - RIGHT;
    context.textBaseline = "alphabetic";
    ["left", "center", "right"].forEach((align, index) => {
      if (index === 1 && !hasRoom) return;
      context.textAlign = align;
      context.fillText(texts[index], this.#x(times[index]), this.#height - 4);
    });
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
  context.font = `${FONT} ${getComputedStyle(canvas).fontFamily}`;
  return context;
}
