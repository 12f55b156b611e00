// Where values are on an axis, and the round numbers beside it. Knows nothing of canvases.

/** From 0 to a round number that is not below `most`. `share` says how far up a value is, 1 is the top. */
export function linear(most) {
  const ticks = most > 0 ? roundNumbers(most) : [0, 1];
  return { ticks, share: (value) => value / ticks.at(-1) };
}

/** Powers of ten at equal distances, and all of `values` between: one that is much larger flattens no others. */
export function logarithmic(values, mostTicks) {
  const positive = values.filter((value) => value > 0);
  if (!positive.length) return logarithmic([1], mostTicks);
  const low = 10 ** Math.floor(Math.log10(Math.min(...positive) * 1.000001));
  const top = Math.max(roundedUp(Math.max(...positive)), 10 * low);
  const share = (value) => Math.max(Math.log10(value / low) / Math.log10(top / low), 0);
  return { ticks: logarithmicTicks(low, top, mostTicks), share };
}

function roundNumbers(most) {
  const power = 10 ** Math.floor(Math.log10(most / 2));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((each) => each * 2 >= most * 0.999) ?? most;
  const ticks = [0, step];
  while (ticks.at(-1) < most * 0.999) ticks.push(step * ticks.length);
  return ticks.map(exact);
}

/** 1, 2 or 5 times a power of ten, not below `value`. */
function roundedUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= value * 0.999999);
}

/** As many as there is room for: 1, 2 and 5 times each power of ten, or the powers alone, or some of them. */
function logarithmicTicks(low, top, mostTicks) {
  const decades = Math.floor(Math.log10(top / low) + 0.000001);
  const powers = Array.from({ length: decades + 1 }, (_, index) => low * 10 ** index);
  const all = powers.flatMap((power) => [power, 2 * power, 5 * power]).filter((tick) => tick <= top * 1.000001);
  if (all.length <= mostTicks) return all.map(exact);
  const step = Math.ceil(decades / Math.max(mostTicks - 1, 1));
  return powers.filter((_, index) => index % step === 0).map(exact);
}

const exact = (value) => Number(value.toPrecision(6));
