// Numbers, amounts and times, as people read them. What nobody knows is "no data", never 0.

import { el } from "./elements.js";

export const NO_DATA = "no data";

const minorUnits = new Map();

export function know(currencies) {
  for (const currency of currencies) minorUnits.set(currency.code, currency.minor_unit);
}

export const currencies = () => [...minorUnits.keys()];

/** Whole minor units by whole-number arithmetic; a currency that nobody knows the digits of is left in minor units. */
export function money(amount, currency, minorUnit = minorUnits.get(currency)) {
  if (amount === null || amount === undefined) return NO_DATA;
  if (minorUnit === undefined) return `${count(amount)} minor units ${currency}`;
  const digits = String(Math.abs(amount)).padStart(minorUnit + 1, "0");
  const whole = digits.slice(0, digits.length - minorUnit).replace(/\B(?=(\d{3})+$)/g, ",");
  const part = minorUnit === 0 ? "" : `.${digits.slice(-minorUnit)}`;
  return `${amount < 0 ? "-" : ""}${whole}${part} ${currency}`;
}

/** Minor units out of what a person typed, `12.50`; NaN where it is no amount. */
export function minor(text, minorUnit) {
  const found = /^(\d+)(?:[.](\d+))?$/.exec(text.trim().replaceAll(",", ""));
  if (!found || (found[2] ?? "").length > minorUnit) return NaN;
  return Number(found[1] + (found[2] ?? "").padEnd(minorUnit, "0"));
}

export const count = (value) => known(value, (number) => number.toLocaleString("en", { maximumFractionDigits: 0 }));
export const rate = (value, unit = "/s") => known(value, (number) => `${short(number)}${unit}`);
export const percent = (value) => known(value, (number) => `${short(100 * number)}%`);
export const ms = (value) => known(value, (number) => `${short(number)} ms`);
export const dollars = (value) => known(value, (number) => `$${number.toLocaleString("en", { maximumFractionDigits: 3 })}`);
export const dollarsAUser = (value) => known(value, (number) => `$${number.toFixed(3)}`);
export const yesNo = (value) => known(value, (truth) => (truth ? "yes" : "no"));

export function bytes(value) {
  return known(value, (number) => {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    const power = number < 1024 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(number) / 10));
    return `${short(number / 1024 ** power)} ${units[power]}`;
  });
}

export function short(number) {
  const size = Math.abs(number);
  const digits = Number.isInteger(number) || size >= 100 ? 0 : size >= 1 ? 1 : 3;
  return number.toLocaleString("en", { minimumFractionDigits: 0, maximumFractionDigits: digits });
}

/** A moment in this browser's time, to the second; the element has it in UTC. */
export function when(text) {
  if (text === null || text === undefined) return "never";
  return el("time", { datetime: text, title: new Date(text).toISOString() }, local(new Date(text)));
}

export function local(date) {
  const two = (number) => String(number).padStart(2, "0");
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}

export function age(seconds) {
  return known(seconds, (number) => {
    if (number < 90) return `${short(Math.round(number))} s`;
    if (number < 5400) return `${Math.round(number / 60)} min`;
    return number < 129600 ? `${Math.round(number / 3600)} h` : `${Math.round(number / 86400)} days`;
  });
}

/** What is typed into a field of day and time, in this browser's time, as the API wants it. */
export const moment = (typed) => (typed ? new Date(typed).toISOString() : "");

export const id = (text) => (text === null || text === undefined ? "none" : el("code", { class: "id" }, text));

/** With a capital letter and a full stop. */
export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

function known(value, shown) {
  return value === null || value === undefined || Number.isNaN(value) ? NO_DATA : shown(value);
}
