// Samples of some seconds each as so many equal parts of a time. Where there is no sample nothing happened.

/** Means: what each sample counts for goes to the parts it lies in, none of it lost. */
export function means(samples, times, count, of) {
  const width = (times.last - times.first) / count;
  const sums = new Array(count).fill(0);
  for (const [index, sample, seconds] of overlaps(samples, times, count)) sums[index] += (of(sample) * seconds) / width;
  return sums;
}

/** The highest values; null where no sample has one. */
export function highest(samples, times, count, of) {
  const found = new Array(count).fill(null);
  for (const [index, sample] of overlaps(samples, times, count)) {
    const value = of(sample);
    if (value !== null) found[index] = Math.max(found[index] ?? value, value);
  }
  return found;
}

/** Every part and every sample that lies in it for some seconds. */
function* overlaps(samples, { first, last }, count) {
  const width = (last - first) / count;
  for (const sample of samples) {
    const start = Math.max(sample.time - sample.seconds, first);
    const end = Math.min(sample.time, last);
    for (let index = Math.floor((start - first) / width); index < count && first + index * width < end; index += 1) {
      const seconds = Math.min(end, first + (index + 1) * width) - Math.max(start, first + index * width);
      if (seconds > 0) yield [index, sample, seconds];
    }
  }
}
