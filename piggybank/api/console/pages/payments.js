// Payments that need a look, one payment, and what two operators say became of it.

import { button, el, facts, link, metadata, note, section, tell } from "../elements.js";
import { confirm, filters } from "../forms.js";
import { ask, send } from "../session.js";
import { pages } from "../tables.js";
import { id, money, when } from "../words.js";
import { eventColumns } from "./provider.js";
import { statusBadge } from "./statuses.js";

const WHICH = [
  ["unknown", "unknown: nobody can tell"],
  ["open", "under way"],
  ["differing", "paid otherwise than asked"],
];

export const paymentColumns = [
  { name: "When", of: (row) => link(`#/payments/${row.id}`, when(row.created_at)) },
  { name: "Kind", of: (row) => row.kind },
  { name: "Status", of: (row) => statusBadge(row.status) },
  { name: "Amount", of: (row) => money(row.amount, row.currency), number: true },
  { name: "Paid", of: (row) => money(row.paid, row.currency), number: true },
  { name: "Through", of: (row) => row.provider ?? row.method },
  { name: "Reference", of: (row) => row.reference },
  { name: "Failure", of: (row) => row.failure },
];

export const payments = {
  title: "Payments",
  async show({ query, signal }) {
    const which = query.get("which") || "unknown";
    const columns = [...paymentColumns, { name: "Account", of: (row) => link(`#/accounts/${row.account_id}`, row.account_id) }];
    return [
      filters("payments", [{ name: "which", label: "Which", options: WHICH }], new URLSearchParams({ which })),
      await pages("Payments through the provider, newest first", columns, (cursor) => ask("v1/ops/payments", { which, cursor }, signal), {
        empty: "None.",
      }),
      note("All payments of an account are on the account's page; one is found by its id under Users and accounts."),
    ];
  },
};

export const payment = {
  title: "Payment",
  async show({ id: paymentId, signal, again, me }) {
    const one = await ask(`v1/payments/${encodeURIComponent(paymentId)}`, {}, signal);
    const amount = (value) => money(value, one.currency);
    const events = await pages("Events of the provider about it, newest first", eventColumns, (cursor) => ask("v1/ops/provider-events", { payment_id: paymentId, cursor }, signal), {
      empty: "None.",
    });
    return [
      facts([
        ["Kind", one.kind],
        ["Status", statusBadge(one.status)],
        ["Amount", amount(one.amount)],
        ["Paid", amount(one.paid)],
        ["Held", amount(one.held)],
        ["Refunded", amount(one.refunded)],
        ["Charged back", amount(one.charged_back)],
        ["Through", one.provider ?? one.method],
        ["The provider's id", one.provider_id],
        ["Failure", one.failure ?? undefined],
        ["Account", link(`#/accounts/${one.account_id}`, one.account_id)],
        ["Transaction", one.transaction_id ? link(`#/transactions/${one.transaction_id}`, one.transaction_id) : undefined],
        ["Refund of", one.refund_of ? link(`#/payments/${one.refund_of}`, one.refund_of) : undefined],
        ["Begun", when(one.created_at)],
        ["Changed", when(one.updated_at)],
        ["Reference", one.reference],
        ["Description", one.description],
        ["Metadata", metadata(one.metadata)],
        ["Id", id(one.id)],
      ]),
      one.status === "unknown" ? await resolving(one, again, me, signal) : null,
      section("What the provider told", events),
      el("p", {}, link(`#/audit?target=${one.id}`, "What operators did with it")),
    ];
  },
};

/** The first operator proposes, another one confirms: what was said so far is in the audit log. */
async function resolving(one, again, me, signal) {
  const said = (await ask("v1/ops/audit", { target: `payment:${one.id}`, action: "payment.resolve", limit: 1 }, signal)).items[0];
  const proposal = said && said.action === "payment.resolve.propose" ? said : null;
  const mine = proposal?.actor === `user:${me.id}`;
  const act = async () => {
    const fields = [
      {
        name: "outcome",
        label: "What became of it",
        value: proposal?.details.outcome ?? "failed",
        options: [
          ["failed", "failed: no money has moved, and none will"],
          ["completed", "completed: the money has moved"],
        ],
      },
      { name: "note", label: "How you know", required: true, maxlength: 500 },
    ];
    let answer;
    const done = await confirm({
      title: "Resolve this payment?",
      text: "Money may have moved, so two operators must say the same. The first proposes; when another one confirms, it is posted.",
      action: "Say so",
      fields,
      act: async (body) => {
        answer = await send("POST", `v1/ops/payments/${encodeURIComponent(one.id)}/resolve`, { body });
      },
    });
    if (!done) return;
    await again();
    tell(answer.confirmed_by ? "It is resolved." : "You have proposed it; another operator must confirm.");
  };
  const waiting = proposal
    ? note(
        `${proposal.actor_name ?? proposal.actor} proposed "${proposal.details.outcome}": ${proposal.details.note}. `,
        mine ? "Another operator must confirm." : "You may confirm it, or say otherwise.",
      )
    : note("Ask the provider what became of it, then say so here. Nothing is sent again.");
  return section("Nobody knows what became of it", waiting, button("Resolve", act));
}
