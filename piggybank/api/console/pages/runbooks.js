// The page of an alert: what it means, what to look at, what to do.

import { el, link, section } from "../elements.js";
import { ask } from "../session.js";

const ALERT = /^([A-Z][a-z]+){2,}$/; // between backticks: another page

/** The text of a page, with its code, and links to the other pages that it names. */
export function worded(text) {
  return text.split("`").map((part, index) => {
    if (index % 2 === 0) return part;
    return ALERT.test(part) ? link(`#/runbooks/${part}`, part) : el("code", {}, part);
  });
}

const steps = (kind, lines) => el(kind, {}, lines.map((line) => el("li", {}, worded(line))));

/** What to do about an alert, and where there is more; also on the overview. */
export function help(alert) {
  return [alert.do.length > 0 ? steps("ul", alert.do) : null, link(`#/runbooks/${alert.name}`, `Runbook of ${alert.name}`)];
}

export const runbook = {
  title: "Runbook",
  async show({ id, signal }) {
    const page = await ask(`v1/ops/runbooks/${encodeURIComponent(id)}`, {}, signal);
    return [
      el("p", { class: "lead" }, el("strong", {}, `${page.name}. `), worded(page.means)),
      section("What to look at", steps("ul", page.look)),
      section("What to do", steps("ul", page.do)),
      el("p", {}, link("#/overview", "Alerts that fire now")),
    ];
  },
};
