// Texts that begin alike, cut to where they part: pages end anywhere, so siblings often share their first words.

const LEAST_CUT = 16;
const LEAST_SHOWN = 24;

/** Each of `texts` from where no other is like it any more. */
export function distinct(texts) {
  const sorted = [...texts].sort();
  // What a text shares with any other, it shares with a neighbour in order.
  const shared = new Map();
  sorted.forEach((text, index) => {
    const next = sorted[index + 1] ?? "";
    const length = commonLength(text, next);
    shared.set(text, Math.max(shared.get(text) ?? 0, length));
    shared.set(next, Math.max(shared.get(next) ?? 0, length));
  });
  return texts.map((text) => from(text, shared.get(text)));
}

function commonLength(first, second) {
  let length = 0;
  while (length < first.length && first[length] === second[length]) length += 1;
  return length;
}

function from(text, start) {
  const latest = Math.min(start, text.length - LEAST_SHOWN);
  const cut = text.lastIndexOf(" ", latest) + 1;
  return cut < LEAST_CUT ? text : `… ${text.slice(cut)}`;
}
