// Texts that begin alike, without what they share: pages end anywhere, so siblings often share their first words.

const LEAST_LEFT_OUT = 16;
const LEAST_SHOWN = 24;
const BEGINNING = 16;

/** Each of `texts` from where no other is like it any more; before that its beginning, if nothing above it says that. */
export function distinct(texts, { withBeginning }) {
  const sorted = [...texts].sort();
  // What a text shares with any other, it shares with a neighbour in order.
  const shared = new Map();
  sorted.forEach((text, index) => {
    const next = sorted[index + 1] ?? "";
    const length = commonLength(text, next);
    shared.set(text, Math.max(shared.get(text) ?? 0, length));
    shared.set(next, Math.max(shared.get(next) ?? 0, length));
  });
  return texts.map((text) => shortened(text, shared.get(text), withBeginning ? beginningOf(text) : ""));
}

function commonLength(first, second) {
  let length = 0;
  while (length < first.length && first[length] === second[length]) length += 1;
  return length;
}

function beginningOf(text) {
  const end = text.lastIndexOf(" ", BEGINNING);
  return `${text.slice(0, end > 0 ? end : BEGINNING)} `;
}

function shortened(text, numShared, beginning) {
  const latest = Math.min(numShared, text.length - LEAST_SHOWN);
  const from = text.lastIndexOf(" ", latest) + 1;
  return from - beginning.length < LEAST_LEFT_OUT ? text : `${beginning}… ${text.slice(from)}`;
}
