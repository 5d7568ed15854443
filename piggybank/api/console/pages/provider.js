// The provider's side of the books: its events, and the nightly comparisons.

import { button, el, facts, link, note, section, tell } from "../elements.js";
import { confirm, filters } from "../forms.js";
import { ask, send } from "../session.js";
import { pages, table } from "../tables.js";
import { count, id, local, money, when } from "../words.js";
import { statusBadge } from "./statuses.js";

const STATUSES = ["new", "applied", "ignored", "unmatched", "hint"];

export const eventColumns = [
  { name: "Received", of: (row) => link(`#/events/${row.id}`, when(row.received_at)) },
  { name: "Type", of: (row) => row.event_type },
  { name: "Status", of: (row) => statusBadge(row.status) },
  { name: "Note", of: (row) => row.note },
  { name: "Attempts", of: (row) => count(row.attempts), number: true },
  { name: "Payment", of: (row) => (row.payment_id ? link(`#/payments/${row.payment_id}`, row.payment_id) : "none") },
];

export const events = {
  title: "Provider events",
  async show({ query, signal }) {
    const fields = [
      { name: "status", label: "Status", options: [["", "all"], ...STATUSES.map((status) => [status, status])] },
      { name: "object_id", label: "The provider's id", maxlength: 200 },
    ];
    const asked = { status: query.get("status"), object_id: query.get("object_id") };
    return [
      filters("events", fields, query),
      note("Unmatched ones name nothing of ours: ", link("#/events?status=unmatched", "show only those"), "."),
      await pages("Events, newest first", eventColumns, (cursor) => ask("v1/ops/provider-events", { ...asked, cursor }, signal), { empty: "No event." }),
    ];
  },
};

export const event = {
  title: "Provider event",
  async show({ id: eventId, signal, again }) {
    const one = await ask(`v1/ops/provider-events/${encodeURIComponent(eventId)}`, {}, signal);
    const replay = async () => {
      let found;
      const done = await confirm({
        title: "Apply this event again?",
        text: "At any age: nothing of it happens twice.",
        action: "Apply it again",
        act: async () => {
          found = await send("POST", `v1/ops/provider-events/${encodeURIComponent(eventId)}/replay`);
        },
      });
      if (!done) return;
      await again();
      tell(`It is ${found.status} now. ${found.note}`);
    };
    const dismiss = async () => {
      const done = await confirm({
        title: "Dismiss this event?",
        text: "It is no concern of ours: it posts nothing, and no alert counts it any more. Money that is not ours is paid back in the provider's dashboard first.",
        action: "Dismiss it",
        fields: [{ name: "note", label: "Why", required: true, maxlength: 500 }],
        act: (body) => send("POST", `v1/ops/provider-events/${encodeURIComponent(eventId)}/dismiss`, { body }),
      });
      if (!done) return;
      await again();
      tell("It is dismissed.");
    };
    return [
      facts([
        ["Type", one.event_type],
        ["Status", statusBadge(one.status)],
        ["Note", one.note || undefined],
        ["Provider", one.provider],
        ["The provider's id", id(one.object_id)],
        ["Payment", one.payment_id ? link(`#/payments/${one.payment_id}`, one.payment_id) : undefined],
        ["Attempts", count(one.attempts)],
        ["Received", when(one.received_at)],
        ["Changed", when(one.updated_at)],
        ["Id", id(one.id)],
      ]),
      el("p", {}, button("Apply again", replay), one.status === "unmatched" ? [" ", button("Dismiss", dismiss, { class: "quiet" })] : null),
      section("As it came", el("pre", { tabindex: "0", role: "region", "aria-label": "Body of the event" }, pretty(one.body))),
    ];
  },
};

export const reconciliations = {
  title: "Reconciliations",
  async show({ signal }) {
    const columns = [
      { name: "From", of: (row) => link(`#/reconciliations/${row.id}`, local(new Date(row.since))) },
      { name: "Until", of: (row) => when(row.until) },
      { name: "Status", of: (row) => statusBadge(row.status) },
      { name: "Rows", of: (row) => count(row.rows), number: true },
      { name: "Matched", of: (row) => count(row.matched), number: true },
      { name: "Mended", of: (row) => count(row.mended), number: true },
      { name: "Differences", of: (row) => count(row.items_count), number: true },
      { name: "Note", of: (row) => row.note },
    ];
    return [
      note("Our book against the provider's statement, made each night and by ", el("code", {}, "piggybank provider reconcile"), "."),
      await pages("Comparisons, newest first", columns, (cursor) => ask("v1/ops/reconciliations", { cursor }, signal), { empty: "None was made yet." }),
    ];
  },
};

export const reconciliation = {
  title: "Reconciliation",
  async show({ id: runId, signal }) {
    const { reconciliation: run, items } = await ask(`v1/ops/reconciliations/${encodeURIComponent(runId)}`, {}, signal);
    const columns = [
      { name: "Kind", of: (row) => row.kind },
      { name: "What", of: (row) => row.what },
      { name: "What to do", of: (row) => row.what_to_do },
      { name: "Ours", of: (row) => (row.ours === null ? "none" : money(row.ours, row.currency)), number: true },
      { name: "Theirs", of: (row) => (row.theirs === null ? "none" : money(row.theirs, row.currency)), number: true },
      { name: "Payment", of: (row) => (row.payment_id ? link(`#/payments/${row.payment_id}`, row.payment_id) : "none") },
      { name: "The provider's id", of: (row) => row.provider_id },
    ];
    return [
      facts([
        ["From", when(run.since)],
        ["Until", when(run.until)],
        ["Status", statusBadge(run.status)],
        ["Rows of the statement", count(run.rows)],
        ["Matched", count(run.matched)],
        ["Mended just then", count(run.mended)],
        ["Note", run.note || undefined],
        ["Provider", run.provider],
        ["Finished", when(run.finished_at)],
      ]),
      table("What differs", columns, items, "Nothing: both books say the same."),
    ];
  },
};

function pretty(body) {
  try {
    return JSON.stringify(JSON.parse(body), null, 2);
  } catch {
    return body;
  }
}
