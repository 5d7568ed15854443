// Everybody's transactions, with filters; and one of them.

import { el, facts, link, metadata, note } from "../elements.js";
import { filters } from "../forms.js";
import { ask } from "../session.js";
import { pages, table } from "../tables.js";
import { currencies, id, local, minor, moment, money, when } from "../words.js";

export const KINDS = [
  "deposit",
  "withdrawal",
  "transfer_in",
  "transfer_out",
  "refund",
  "chargeback",
  "chargeback_reversal",
  "payout_return",
  "reversal",
  "adjustment",
  "fee",
];
const MINOR_UNIT_USUAL = 2; // of amounts that are looked for in no currency

export const periodFields = [
  { name: "from", label: "From", type: "datetime-local" },
  { name: "to", label: "Before", type: "datetime-local" },
];

export const periodOf = (query) => ({ from: moment(query.get("from")), to: moment(query.get("to")) });

export const transactionColumns = [
  { name: "When", of: (row) => link(`#/transactions/${row.id}`, when(row.created_at)) },
  { name: "Kind", of: (row) => row.kind },
  { name: "Amount", of: (row) => money(row.amount, row.currency, row.minor_unit), number: true },
  { name: "Balance after", of: (row) => money(row.balance_after, row.currency, row.minor_unit), number: true },
  { name: "Account", of: (row) => link(`#/accounts/${row.account_id}`, row.account_id) },
  { name: "Reference", of: (row) => row.reference },
  { name: "Description", of: (row) => row.description },
];

export const transactions = {
  title: "Transactions",
  async show({ query, signal }) {
    const fields = [
      { name: "kind", label: "Kind", options: [["", "all"], ...KINDS.map((kind) => [kind, kind])] },
      { name: "currency", label: "Currency", options: [["", "all"], ...currencies().map((code) => [code, code])] },
      { name: "least", label: "Amount from", inputmode: "decimal", maxlength: 20 },
      { name: "most", label: "Amount to", inputmode: "decimal", maxlength: 20 },
      { name: "reference", label: "Reference", maxlength: 128 },
      ...periodFields,
    ];
    const form = filters("transactions", fields, query);
    const digits = await digitsOf(query.get("currency"), signal);
    const [least, most] = ["least", "most"].map((name) => (query.get(name) ? minor(query.get(name), digits) : ""));
    if (Number.isNaN(least) || Number.isNaN(most)) return [form, el("p", { class: "problem", role: "alert" }, `Give amounts with ${digits} decimals at most, like 12.50.`)];
    const asked = {
      ...periodOf(query),
      kind: query.get("kind"),
      currency: query.get("currency"),
      reference: query.get("reference"),
      min_amount: least,
      max_amount: most,
    };
    return [
      form,
      await pages("Transactions of everybody, newest first", transactionColumns, (cursor) => ask("v1/ops/transactions", { ...asked, cursor }, signal), {
        empty: "No transaction in what was looked at.",
        more: lookedAt,
      }),
    ];
  },
};

export const transaction = {
  title: "Transaction",
  async show({ id: transactionId, signal }) {
    const one = await ask(`v1/transactions/${encodeURIComponent(transactionId)}`, {}, signal);
    const legs = one.transfer_id ? (await ask(`v1/transfers/${encodeURIComponent(one.transfer_id)}`, {}, signal)).legs : [];
    return [
      facts([
        ["Kind", one.kind],
        ["Amount", money(one.amount, one.currency)],
        ["Balance after", money(one.balance_after, one.currency)],
        ["Account", link(`#/accounts/${one.account_id}`, one.account_id)],
        ["When", when(one.created_at)],
        ["Number in the account", String(one.sequence)],
        ["Payment", one.payment_id ? link(`#/payments/${one.payment_id}`, one.payment_id) : undefined],
        ["Reverses", one.reverses ? link(`#/transactions/${one.reverses}`, one.reverses) : undefined],
        ["Reference", one.reference],
        ["Description", one.description],
        ["Metadata", metadata(one.metadata)],
        ["Id", id(one.id)],
      ]),
      legs.length > 0 ? table("Both sides of the transfer", transactionColumns, legs) : null,
    ];
  },
};

function lookedAt(page) {
  const said = [];
  if (page.looked_until) said.push(`Looked at everything back to ${local(new Date(page.looked_until))}.`);
  if (page.archived_until) said.push(`What is older than ${local(new Date(page.archived_until))} is in the archive's files.`);
  return said.length === 0 ? null : note(said.join(" "));
}

async function digitsOf(currency, signal) {
  if (!currency) return MINOR_UNIT_USUAL;
  const found = (await ask("v1/currencies", {}, signal)).items.find((one) => one.code === currency);
  return found?.minor_unit ?? MINOR_UNIT_USUAL;
}
