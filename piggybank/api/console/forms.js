// Forms with labels, filters that live in the address, and a question before what cannot be taken back.

import { button, el, newId } from "./elements.js";

/** A label and its field: `{ name, label, type, options, value, hint, .. }`, where `options` are `[value, text]`. */
export function field({ name, label, options, hint, value = "", ...attributes }) {
  const id = newId(name);
  const described = hint ? newId("hint") : null;
  const given = { id, name, "aria-describedby": described, ...attributes };
  const made = options
    ? el("select", given, options.map(([option, text]) => el("option", { value: option, selected: option === value }, text)))
    : el("input", { type: "text", autocomplete: "off", spellcheck: "false", value, ...given });
  return el("div", { class: "field" }, el("label", { for: id }, label), made, hint ? el("p", { class: "hint", id: described }, hint) : null);
}

export const values = (form) => Object.fromEntries(new FormData(form));

/** Filters: pressing the button writes them into the address, and the page is shown anew from there. */
export function filters(path, fields, query) {
  const form = el("form", { class: "filters", role: "search", "aria-label": "Filters" });
  form.append(...fields.map((one) => field({ ...one, value: query.get(one.name) ?? "" })), button("Show", null, { type: "submit" }));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const given = Object.entries(values(form)).filter(([, value]) => value !== "");
    const next = `#/${path}${given.length === 0 ? "" : `?${new URLSearchParams(given)}`}`;
    if (next === window.location.hash) window.dispatchEvent(new HashChangeEvent("hashchange"));
    else window.location.hash = next;
  });
  return form;
}

/** Ask before it is done; what `act` does may fail, and then the question stays with the reason. Resolves to true when it was done. */
export function confirm({ title, text, action, act, fields = [] }) {
  return new Promise((resolve) => {
    const heading = newId("question");
    const problem = el("p", { class: "problem", role: "alert", hidden: true });
    const yes = button(action, null, { type: "submit" });
    const form = el("form", { method: "dialog" }, el("h2", { id: heading }, title), el("p", {}, text), fields.map(field), problem);
    form.append(el("div", { class: "buttons" }, yes, button("Leave it", () => dialog.close(), { class: "quiet" })));
    const dialog = el("dialog", { "aria-labelledby": heading }, form);
    let done = false;
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      yes.disabled = true;
      problem.hidden = true;
      try {
        await act(values(form));
        done = true;
        dialog.close();
      } catch (cause) {
        problem.textContent = cause.text ?? String(cause);
        problem.hidden = false;
        yes.disabled = false;
      }
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(done);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
