// API keys: make one, which is shown once, and revoke one.

import { button, el, link, note, section, tell } from "../elements.js";
import { confirm, field, values } from "../forms.js";
import { ask, send } from "../session.js";
import { pages } from "../tables.js";
import { id, when } from "../words.js";

const SCOPES = {
  "users:read": "Read every user.",
  "users:write": "Create users for others.",
  "accounts:read": "Read every account, its history, its payments and the reports.",
  "accounts:write": "Open, change, freeze, unfreeze and close accounts.",
  "ledger:write": "Move money: direct deposits and withdrawals, transfers, batches, reversals.",
  "payments:write": "Complete and cancel payments.",
  "ops:read": "Read the state of the installation, its open payments and events without their bodies, but not the audit log.",
  "metrics:read": "Read the metrics, and nothing else.",
};

export const keys = {
  title: "API keys",
  async show({ signal, again }) {
    const columns = [
      { name: "Name", of: (row) => row.name },
      { name: "Ends with", of: (row) => el("code", {}, row.hint) },
      { name: "Scopes", of: (row) => row.scopes.join(", ") },
      { name: "Made", of: (row) => when(row.created_at) },
      { name: "By", of: (row) => (row.created_by ? link(`#/users/${row.created_by}`, "an operator") : "the command line") },
      { name: "Id", of: (row) => id(row.id) },
      { name: "Act", of: (row) => button("Revoke", () => revoke(row, again), { class: "quiet", "aria-label": `Revoke ${row.name}` }) },
    ];
    const made = el("div", { "aria-live": "polite" });
    const list = el("div", {}, await listed(columns, signal));
    return [
      note("A team's own backend signs in with a key. Only its hash is kept: the key itself is shown once, here."),
      section("A new key", form(made, async () => list.replaceChildren(await listed(columns, signal))), made),
      section("Keys in force", list),
    ];
  },
};

const listed = (columns, signal) => pages("API keys, newest first", columns, (cursor) => ask("v1/api-keys", { cursor }, signal), { empty: "None." });

function form(made, reload) {
  const problem = el("p", { class: "problem", role: "alert", hidden: true });
  const boxes = Object.entries(SCOPES).map(([scope, about]) => {
    const box = el("input", { type: "checkbox", name: "scope", value: scope, id: `scope-${scope}` });
    return el("div", { class: "check" }, box, el("label", { for: `scope-${scope}` }, el("code", {}, scope), ` ${about}`));
  });
  const submit = button("Make the key", null, { type: "submit" });
  const one = el("form", { class: "narrow" }, problem, field({ name: "name", label: "Name", required: true, maxlength: 200 }));
  one.append(el("fieldset", {}, el("legend", {}, "What it may do"), boxes), submit);
  one.addEventListener("submit", async (event) => {
    event.preventDefault();
    problem.hidden = true;
    submit.disabled = true;
    try {
      const scopes = new FormData(one).getAll("scope");
      const key = await send("POST", "v1/api-keys", { body: { name: values(one).name, scopes } });
      one.reset();
      made.replaceChildren(shownOnce(key));
      made.querySelector("input").focus();
      await reload();
    } catch (cause) {
      problem.textContent = cause.text ?? String(cause);
      problem.hidden = false;
    } finally {
      submit.disabled = false;
    }
  });
  return one;
}

function shownOnce(key) {
  const shown = field({ name: "token", label: `The key "${key.name}": copy it now, it is not shown again`, value: key.token, readonly: true, class: "token" });
  const copy = button("Copy", async () => {
    try {
      await navigator.clipboard.writeText(key.token);
      tell("Copied.");
    } catch {
      shown.querySelector("input").select();
      tell("The browser does not let a page copy here. It is selected: copy it by hand.");
    }
  });
  return el("div", { class: "once" }, shown, copy);
}

async function revoke(row, again) {
  const text = "Whoever uses it is refused from now on. There is no way back.";
  const done = await confirm({ title: `Revoke "${row.name}"?`, text, action: "Revoke", act: () => send("DELETE", `v1/api-keys/${encodeURIComponent(row.id)}`) });
  if (!done) return;
  await again();
  tell(`"${row.name}" is revoked.`);
}
