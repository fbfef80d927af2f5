// DOM helpers; readable formats of numbers.

export const $ = (id) => document.getElementById(id);

export function make(kind, className, ...content) {
  const element = document.createElement(kind);
  if (className) element.className = className;
  element.append(...content.filter((part) => part !== null && part !== undefined));
  return element;
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function duration(seconds) {
  const whole = Math.round(seconds);
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  if (hours >= 48) return `${Math.floor(hours / 24)} days`;
  if (hours) return `${hours} h ${minutes} min`;
  if (minutes && !rest) return `${minutes} min`;
  return minutes ? `${minutes} min ${rest} s` : `${rest} s`;
}

export function bytes(count) {
  return count >= 1e9 ? `${(count / 2 ** 30).toFixed(1)} GiB` : `${(count / 2 ** 20).toFixed(0)} MiB`;
}

// Steps a second.
export const speed = (n) => (n >= 1 ? n.toFixed(1) : n.toFixed(3));
export const known = (value) => value !== null && value !== undefined;

// Replace only changed rows, to keep focus, selection and scroll position.
const shown = new WeakMap();
export function fill(element, values, build) {
  const key = JSON.stringify(values);
  if (shown.get(element) === key) return;
  shown.set(element, key);
  element.replaceChildren(...build(values));
}
