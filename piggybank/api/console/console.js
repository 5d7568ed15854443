// The console: who is signed in, which page the address names, and the frame around it.

import { signInPage } from "./pages/sign_in.js";
import { account, user, users } from "./pages/users.js";
import { audit } from "./pages/audit.js";
import { backups, partitions } from "./pages/storage.js";
import { capacity } from "./pages/capacity.js";
import { event, events, reconciliation, reconciliations } from "./pages/provider.js";
import { keys } from "./pages/keys.js";
import { overview } from "./pages/overview.js";
import { payment, payments } from "./pages/payments.js";
import { queue } from "./pages/queue.js";
import { runbook } from "./pages/runbooks.js";
import { transaction, transactions } from "./pages/transactions.js";
import { button, el, link, tell } from "./elements.js";
import { ask, isSignedIn, signOut, whenSignedOut, whoAmI } from "./session.js";
import { know } from "./words.js";

/** In the order of the menu; a page with `menu` is in it. `:id` is a part of the address that the page gets. */
const PAGES = [
  { path: "overview", menu: "Overview", page: overview },
  { path: "users", menu: "Users and accounts", page: users },
  { path: "users/:id", page: user },
  { path: "accounts/:id", page: account },
  { path: "transactions", menu: "Transactions", page: transactions },
  { path: "transactions/:id", page: transaction },
  { path: "payments", menu: "Payments", page: payments },
  { path: "payments/:id", page: payment },
  { path: "events", menu: "Provider events", page: events },
  { path: "events/:id", page: event },
  { path: "reconciliations", menu: "Reconciliations", page: reconciliations },
  { path: "reconciliations/:id", page: reconciliation },
  { path: "capacity", menu: "Capacity and cost", page: capacity },
  { path: "partitions", menu: "Partitions", page: partitions },
  { path: "backups", menu: "Backups", page: backups },
  { path: "queue", menu: "Queue and jobs", page: queue },
  { path: "keys", menu: "API keys", page: keys },
  { path: "audit", menu: "Audit log", page: audit },
  { path: "runbooks/:id", page: runbook },
];
const HOME = "overview";
const UP = new Set([".", ".."]); // no ids, and the one thing that encodeURIComponent leaves as it is

const element = (id) => document.getElementById(id);

let me = null;
let leaving = new AbortController(); // ends what the page before still waits for
let timers = [];

async function start() {
  element("skip").addEventListener("click", () => element("main").focus());
  element("menu").addEventListener("click", () => openMenu(element("menu").getAttribute("aria-expanded") !== "true"));
  element("sign-out").addEventListener("click", async () => {
    const ended = await signOut();
    me = null;
    await go();
    tell(ended ? "You are signed out." : "This tab has forgotten your session, but the server did not confirm that it has ended: it may be good for 7 days. Sign in and out again.");
  });
  whenSignedOut(() => {
    me = null;
    go();
    tell("Your session has ended. Sign in again.");
  });
  element("links").append(...PAGES.filter((one) => one.menu).map((one) => el("li", {}, link(`#/${one.path}`, one.menu))));
  window.addEventListener("hashchange", go);
  if (isSignedIn()) await enter(() => whoAmI());
  await go();
}

async function enter(come) {
  try {
    me = await come();
    if (me !== null) know((await ask("v1/currencies")).items);
  } catch (problem) {
    if (problem.status !== 401) tell(problem.text);
  }
}

async function go() {
  leaving.abort();
  leaving = new AbortController();
  timers.forEach(clearInterval);
  timers = [];
  document.querySelectorAll("dialog").forEach((dialog) => dialog.close());
  element("bar").hidden = me === null;
  element("who").textContent = me === null ? "" : (me.name ?? me.email ?? "");
  openMenu(false);
  if (me === null) {
    await show("Sign in", "", () => signInPage(arrive));
    return;
  }
  const [address, asked] = (window.location.hash.replace(/^#\//, "") || HOME).split("?", 2);
  const found = match(address);
  const context = { id: found?.id, query: new URLSearchParams(asked), signal: leaving.signal, me, every, again: go };
  if (found === null) await show("Not here", address, () => [el("p", {}, "There is no such page. ", link(`#/${HOME}`, "Overview"))]);
  else await show(found.page.title, address, () => found.page.show(context));
}

async function arrive(user) {
  await enter(async () => user);
  await go();
}

function match(address) {
  const parts = address.split("/");
  for (const { path, page } of PAGES) {
    const wanted = path.split("/");
    if (wanted.length === parts.length && wanted.every((part, index) => (part === ":id" ? !UP.has(parts[index]) : part === parts[index]))) {
      const id = wanted.indexOf(":id");
      return { page, id: id < 0 ? undefined : parts[id] };
    }
  }
  return null;
}

/** The title at once, what `make` answers when it is there; a page that was left in between is not shown any more. */
async function show(title, address, make) {
  const signal = leaving.signal;
  const main = element("main");
  const heading = el("h1", { tabindex: "-1" }, title);
  document.title = `${title} - piggybank console`;
  element("links").querySelectorAll("a").forEach((one) => {
    const here = one.getAttribute("href") === `#/${address.split("/")[0]}`;
    if (here) one.setAttribute("aria-current", "page");
    else one.removeAttribute("aria-current");
  });
  main.setAttribute("aria-busy", "true");
  main.replaceChildren(heading, el("p", { class: "note" }, "Loading ..."));
  heading.focus();
  let made;
  try {
    made = await make();
  } catch (problem) {
    if (signal.aborted) return;
    made = [el("p", { class: "problem", role: "alert" }, problem.text ?? String(problem)), button("Try again", go)];
  }
  if (signal.aborted) return;
  while (heading.nextSibling) heading.nextSibling.remove(); // the heading stays, and the focus on it
  heading.after(...made.flat(Infinity).filter(Boolean));
  main.setAttribute("aria-busy", "false");
}

/** Do it every so many seconds until the page is left. */
function every(seconds, act) {
  const timer = setInterval(act, 1000 * seconds);
  timers.push(timer);
  return () => clearInterval(timer);
}

function openMenu(open) {
  element("menu").setAttribute("aria-expanded", String(open));
  element("bar").classList.toggle("open", open);
}

start();
