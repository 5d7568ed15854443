// Who did what: operators, services and the command line.

import { el } from "../elements.js";
import { filters } from "../forms.js";
import { ask } from "../session.js";
import { pages } from "../tables.js";
import { when } from "../words.js";
import { periodFields, periodOf } from "./transactions.js";

export const audit = {
  title: "Audit log",
  async show({ query, signal }) {
    const fields = [
      { name: "action", label: "What, or how it begins", maxlength: 100, hint: "apikey. is all of API keys" },
      { name: "actor", label: "Who", maxlength: 100, hint: "user:<id>, key:<id> or cli" },
      { name: "target", label: "To what", maxlength: 100, hint: "its id" },
      ...periodFields,
    ];
    const asked = { ...periodOf(query), action: query.get("action"), actor: query.get("actor"), target: query.get("target") };
    const columns = [
      { name: "When", of: (row) => when(row.at) },
      { name: "Who", of: (row) => named(row.actor, row.actor_name) },
      { name: "What", of: (row) => row.action },
      { name: "To what", of: (row) => named(row.target, row.target_name) },
      { name: "Details", of: (row) => details(row.details) },
    ];
    return [
      filters("audit", fields, query),
      await pages("Acts, newest first", columns, (cursor) => ask("v1/ops/audit", { ...asked, cursor }, signal), { empty: "None." }),
    ];
  },
};

function named(part, name) {
  const shown = part === "cli" ? "the command line" : part;
  return name ? el("span", {}, name, " ", el("code", { class: "id" }, shown)) : shown;
}

function details(given) {
  const shown = (value) => (Array.isArray(value) ? value.join(" ") : value !== null && typeof value === "object" ? JSON.stringify(value) : value);
  const lines = Object.entries(given).map(([name, value]) => el("li", {}, `${name}: ${shown(value)}`));
  return lines.length === 0 ? null : el("ul", { class: "plain broken" }, lines);
}
