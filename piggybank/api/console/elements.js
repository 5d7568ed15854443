// Elements out of text: the only way in which anything gets onto the page. Text stays text, so no name or description is ever markup.

/** `el("a", { href: "#/users", class: "quiet", onclick: go }, "Users", [more])`; null children and attributes are left out. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export const link = (href, ...children) => el("a", { href }, ...children);

export const button = (text, onclick, attributes = {}) => el("button", { type: "button", onclick, ...attributes }, text);

export const note = (...children) => el("p", { class: "note" }, ...children);

export const section = (title, ...children) => el("section", {}, el("h2", {}, title), ...children);

/** Names and values, one under the other. */
export function facts(pairs) {
  const shown = pairs.filter(([, value]) => value !== undefined);
  return el("dl", { class: "facts" }, shown.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value ?? "none"))));
}

/** A word with a colour, never a colour alone. */
export const badge = (kind, text) => el("span", { class: `badge ${kind}` }, text);

/** The names and values that a team keeps with a thing. */
export function metadata(pairs) {
  const known = Object.entries(pairs ?? {});
  return known.length === 0 ? undefined : el("ul", { class: "plain" }, known.map(([name, value]) => el("li", {}, `${name}: ${value}`)));
}

let ids = 0;

export const newId = (prefix) => `${prefix}-${(ids += 1)}`;

/** Tell it to those who see the page and to those who hear it. */
export function tell(text) {
  const news = document.getElementById("news");
  news.textContent = "";
  news.textContent = text;
  news.classList.add("shown");
  clearTimeout(tell.timer);
  tell.timer = setTimeout(() => news.classList.remove("shown"), 8000);
}
