// Users and accounts: find somebody, see what they have and what happened to it, freeze and unfreeze.

import { button, el, facts, link, metadata, note, section, tell } from "../elements.js";
import { confirm, filters } from "../forms.js";
import { Problem, ask, send } from "../session.js";
import { pages } from "../tables.js";
import { count, id, money, when } from "../words.js";
import { paymentColumns } from "./payments.js";
import { KINDS, periodFields, periodOf, transactionColumns } from "./transactions.js";
import { statusBadge } from "./statuses.js";

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;
// what an id may be the id of: where to ask, and the page that shows it
const THINGS = [
  ["v1/users", "users"],
  ["v1/accounts", "accounts"],
  ["v1/payments", "payments"],
  ["v1/transactions", "transactions"],
];

export const nameOf = (user) => user.name ?? user.email ?? user.external_id ?? user.id;

const userColumns = [
  { name: "Name", of: (row) => link(`#/users/${row.id}`, nameOf(row)) },
  { name: "E-mail", of: (row) => row.email },
  { name: "Your id", of: (row) => row.external_id },
  { name: "Role", of: (row) => row.role },
  { name: "Since", of: (row) => when(row.created_at) },
];

const accountColumns = [
  { name: "Account", of: (row) => link(`#/accounts/${row.id}`, row.name ?? row.external_id ?? row.id) },
  { name: "Status", of: (row) => statusBadge(row.status) },
  { name: "Balance", of: (row) => money(row.balance, row.currency, row.minor_unit), number: true },
  { name: "Available", of: (row) => money(row.available, row.currency, row.minor_unit), number: true },
  { name: "Transactions", of: (row) => count(row.transactions_count), number: true },
  { name: "Since", of: (row) => when(row.created_at) },
];

const foundColumns = accountColumns.toSpliced(1, 0, { name: "Owner", of: (row) => link(`#/users/${row.user_id}`, row.user_id) });

export const users = {
  title: "Users and accounts",
  async show({ query, signal }) {
    const search = (query.get("search") ?? "").trim();
    const hint = "How a name, an e-mail address or your own id begins; or the id of a user, account, payment or transaction";
    const form = filters("users", [{ name: "search", label: "Find", type: "search", maxlength: 200, hint }], query);
    if (UUID.test(search)) {
      const address = await addressOf(search.toLowerCase(), signal);
      if (address !== null) {
        window.location.replace(address);
        return [form, note("Found.")];
      }
    }
    const people = pages("Users, newest first", userColumns, (cursor) => ask("v1/users", { search, cursor }, signal), {
      empty: search ? "Nobody is called that." : "There are no users yet.",
    });
    const accounts = pages("Accounts, newest first", foundColumns, (cursor) => ask("v1/accounts", { search, cursor }, signal), {
      empty: search ? "No account is called that, nor does its owner." : "There are no accounts yet.",
    });
    return [form, ...(await Promise.all([people, accounts]))];
  },
};

export const user = {
  title: "User",
  async show({ id: userId, signal }) {
    const one = await ask(`v1/users/${encodeURIComponent(userId)}`, {}, signal);
    const accounts = await pages("Accounts, newest first", accountColumns, (cursor) => ask("v1/accounts", { user_id: userId, cursor }, signal), {
      empty: "No account yet.",
    });
    return [
      facts([
        ["Name", one.name],
        ["E-mail", one.email],
        ["Your id", one.external_id],
        ["Role", one.role],
        ["Since", when(one.created_at)],
        ["Id", id(one.id)],
        ["Metadata", metadata(one.metadata)],
      ]),
      section("Accounts", accounts),
      el("p", {}, link(`#/audit?target=${one.id}`, "What was done to this user")),
    ];
  },
};

export const account = {
  title: "Account",
  async show({ id: accountId, query, signal, again }) {
    const one = await ask(`v1/accounts/${encodeURIComponent(accountId)}`, {}, signal);
    const amount = (value) => money(value, one.currency, one.minor_unit);
    const asked = { ...periodOf(query), kind: query.get("kind"), reference: query.get("reference") };
    const history = await pages(
      "Transactions of the account, newest first",
      transactionColumns.filter((column) => column.name !== "Account"),
      (cursor) => ask(`v1/accounts/${encodeURIComponent(accountId)}/transactions`, { ...asked, cursor }, signal),
      { empty: "No transaction." },
    );
    const under = await pages("Payments of the account, newest first", paymentColumns, (cursor) => ask(`v1/accounts/${encodeURIComponent(accountId)}/payments`, { cursor }, signal), {
      empty: "No payment.",
    });
    const fields = [
      { name: "kind", label: "Kind", options: [["", "all"], ...KINDS.map((kind) => [kind, kind])] },
      { name: "reference", label: "Reference", maxlength: 128 },
      ...periodFields,
    ];
    return [
      facts([
        ["Balance", amount(one.balance)],
        ["Held", amount(one.held)],
        ["Owed", amount(one.owed)],
        ["Available", amount(one.available)],
        ["Status", statusBadge(one.status)],
        ["Name", one.name],
        ["Owner", link(`#/users/${one.user_id}`, one.user_id)],
        ["Your id", one.external_id],
        ["Version", count(one.version)],
        ["Transactions", count(one.transactions_count)],
        ["Since", when(one.created_at)],
        ["Id", id(one.id)],
        ["Metadata", metadata(one.metadata)],
      ]),
      freezing(one, again),
      section("History", filters(`accounts/${accountId}`, fields, query), history),
      section("Payments", under),
      el("p", {}, link(`#/audit?target=${one.id}`, "What was done to this account")),
    ];
  },
};

function freezing(one, again) {
  if (one.status === "closed") return note("This account is closed, for good.");
  const freezes = one.status === "active";
  const verb = freezes ? "freeze" : "unfreeze";
  const text = freezes
    ? "Every request on the account is refused from now on. What the provider settles is still posted."
    : "The account takes requests again.";
  const act = async () => {
    const title = freezes ? "Freeze this account?" : "Unfreeze this account?";
    const done = await confirm({ title, text, action: freezes ? "Freeze" : "Unfreeze", act: () => send("POST", `v1/accounts/${encodeURIComponent(one.id)}/${verb}`) });
    if (!done) return;
    await again();
    tell(freezes ? "The account is frozen." : "The account takes requests again.");
  };
  return el("p", {}, button(freezes ? "Freeze" : "Unfreeze", act, { class: freezes ? "danger" : null }));
}

async function addressOf(wanted, signal) {
  for (const [path, page] of THINGS) {
    try {
      await ask(`${path}/${encodeURIComponent(wanted)}`, {}, signal);
      return `#/${page}/${wanted}`;
    } catch (problem) {
      if (!(problem instanceof Problem) || problem.status !== 404) throw problem;
    }
  }
  return null;
}
