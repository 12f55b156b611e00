// Recent requests as charts want them: points, and a line through the last of them.

import { median } from "./words.js";

const MOST_REMEMBERED = 240; // as the server
const WINDOW = 20;

export class History {
  ended = [];

  /** An `event` of the feed; the first of a connection has all that the server remembers. */
  update(event) {
    const before = event.number === 0 ? [] : this.ended;
    this.ended = [...before, ...event.recent].slice(-MOST_REMEMBERED);
  }

  /** Points of one number of each request; those that were mostly cached are filled. */
  points(of) {
    const points = this.ended.map((each) => ({ time: each.time, value: of(each), isFilled: share([each]) > 0.5 }));
    return points.filter((point) => point.value !== null);
  }
}

/** The part of the prompt tokens of `ended` that was cached. */
export function share(ended) {
  const prompt = ended.reduce((sum, each) => sum + each.prompt_tokens, 0);
  return prompt ? ended.reduce((sum, each) => sum + each.cached_tokens, 0) / prompt : 0;
}

/** For every one of `items` what `summary` makes of it and those before it. */
export function trailing(items, summary) {
  return items.map(({ time }, index) => {
    const start = Math.max(index + 1 - WINDOW, 0);
    return { time, value: summary(items.slice(start, index + 1)) };
  });
}

export const medians = (points) => trailing(points, (some) => median(some.map((point) => point.value)));
