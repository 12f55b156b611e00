// What a page can be, in the order of the server's numbers.

export const STATES = [
  { name: "free", label: "free", of: (counts) => counts.free },
  { name: "open", label: "open", of: (counts) => counts.open },
  { name: "in-use", label: "in use", of: (counts) => counts.in_use },
  { name: "idle", label: "idle", of: (counts) => counts.idle - counts.leased },
  { name: "leased", label: "leased", of: (counts) => counts.leased },
  { name: "in-transit", label: "in transit", of: (counts) => counts.in_transit },
];

/** The colour of a custom property as [red, green, blue]. */
export function colour(name) {
  const text = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((start) => Number.parseInt(text.slice(start, start + 2), 16));
}
