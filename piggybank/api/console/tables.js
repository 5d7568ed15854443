// Tables with a caption and headings, and lists that go on by a cursor.

import { button, el, newId, tell } from "./elements.js";
import { NO_DATA } from "./words.js";

/** `columns`: `{ name, of, number }`; what `of` makes of a row is text or an element. An empty table says so. */
export function table(caption, columns, rows, empty = NO_DATA) {
  const body = el("tbody", {}, rows.length === 0 ? el("tr", {}, el("td", { colspan: columns.length }, empty)) : rows.map((row) => line(columns, row)));
  const head = el("thead", {}, el("tr", {}, columns.map((column) => el("th", { scope: "col", class: column.number ? "number" : null }, column.name))));
  const id = newId("caption");
  const made = el("table", {}, el("caption", { id }, caption), head, body);
  return el("div", { class: "table", role: "region", "aria-labelledby": id, tabindex: "0" }, made);
}

/** A table that asks `load(cursor)` for `{ items, next_cursor }`, a page at a time; `more(page)` may say something of the page. */
export async function pages(caption, columns, load, { empty = NO_DATA, more = () => null } = {}) {
  const first = await load(undefined);
  const shown = table(caption, columns, first.items, empty);
  const body = shown.querySelector("tbody");
  let cursor = first.next_cursor;
  let rows = first.items.length;
  const said = el("div", {}, more(first));
  const next = button("Show more", async () => {
    next.disabled = true;
    try {
      const page = await load(cursor);
      if (rows === 0 && page.items.length > 0) body.replaceChildren();
      const added = page.items.map((row) => line(columns, row));
      body.append(...added);
      rows += page.items.length;
      cursor = page.next_cursor;
      said.replaceChildren(...[more(page)].filter(Boolean));
      next.hidden = !cursor;
      tell(page.items.length === 0 ? "Nothing more on this page." : `${page.items.length} more, ${rows} in all.`);
      (added[0]?.querySelector("a") ?? shown).focus();
    } catch (problem) {
      tell(problem.text ?? String(problem));
    } finally {
      next.disabled = false;
    }
  });
  next.hidden = !cursor;
  return el("div", {}, shown, said, next);
}

/** A cell knows its heading: on a phone a row is a card, and each value has its name beside it. */
function line(columns, row) {
  return el("tr", {}, columns.map((column) => cell(column, [column.of(row)].flat(Infinity).filter((part) => part !== null && part !== undefined && part !== ""))));
}

function cell(column, parts) {
  return el("td", { class: column.number ? "number" : null, "data-name": column.name }, parts.length === 0 ? null : el("span", {}, parts));
}
