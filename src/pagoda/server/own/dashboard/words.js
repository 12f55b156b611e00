// Numbers as people read them.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export const count = (number) => Math.round(number).toLocaleString("en-US");

const compactly = new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 1 });

/** Where there is little room. */
export const short = (number) => (number < 100_000 ? count(number) : compactly.format(number));

/** Where there is less. */
export const compact = (number) => (number < 10_000 ? String(number) : compactly.format(number));

export function bytes(number) {
  let unit = 0;
  while (number >= 1024 && unit < UNITS.length - 1) {
    number /= 1024;
    unit += 1;
  }
  return `${number < 10 && unit > 0 ? number.toFixed(1) : Math.round(number)} ${UNITS[unit]}`;
}

export function percent(share) {
  if (share > 0 && share < 0.005) return "< 1 %"; // nothing is 0 %
  return `${(100 * share).toFixed(share > 0.1 && share < 0.9995 ? 1 : 0)} %`;
}

export function seconds(number) {
  if (number < 1) return `${Math.round(number * 1000)} ms`;
  return number < 60 ? `${number.toFixed(1)} s` : countdown(number);
}

/** 4:05, 1:00:00, 2 d 3:04:05. */
export function countdown(number) {
  const left = Math.max(Math.ceil(number), 0);
  const two = (value) => String(value).padStart(2, "0");
  const [days, hours, minutes] = [Math.floor(left / 86400), Math.floor(left / 3600) % 24, Math.floor(left / 60) % 60];
  const tail = `${two(left % 60)}`;
  const clock = days || hours ? `${hours}:${two(minutes)}:${tail}` : `${minutes}:${tail}`;
  return days ? `${days} d ${clock}` : clock;
}

export const clockTime = (time) => new Date(time * 1000).toLocaleTimeString("en-GB");
export const clockMinutes = (time) => clockTime(time).slice(0, 5);

/** 14:35:10, 27 Nov 14:35: with the day where it is not within so many hours that nobody doubts it. */
export function until(time, now) {
  if (time - now < 12 * 3600) return clockTime(time);
  const day = new Date(time * 1000).toLocaleDateString("en-GB", { day: "numeric", month: "short" });
  return `${day} ${clockMinutes(time)}`;
}

export function median(numbers) {
  const sorted = [...numbers].sort((first, second) => first - second);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
