// What an operator looks at first: is it well, how much is carried, what comes next, what does it cost.

import { badge, button, el, link, note, section } from "../elements.js";
import { chart } from "../charts.js";
import { MEASURES, judged, linesOf, oldestFirst, pointsOf } from "../measures.js";
import { ask } from "../session.js";
import { table } from "../tables.js";
import { NO_DATA, age, count, local, when } from "../words.js";
import { costs, headroom } from "./capacity.js";
import { help } from "./runbooks.js";
import { statusBadge } from "./statuses.js";

const LIVE_EVERY_S = 15;
const SLOW_EVERY_S = 60;
const FRESH_MINUTES = 5; // what is older is not live
const MINUTE_MS = 60000;
const RANGES = [
  ["1", "last hour"],
  ["6", "last 6 hours"],
  ["24", "last day"],
  ["168", "last week"],
];
// where in the console a finding is looked at
const PAGE_OF = {
  "provider events": "#/events?status=unmatched",
  payments: "#/payments?which=unknown",
  reconciliation: "#/reconciliations",
  partitions: "#/partitions",
  backups: "#/backups",
};
const POINTS_MOST = 720; // of one chart
const ROWS_MOST = 1000; // of one answer
const MOVES_UP_TO_HOURS = 24; // a week is shown as it was

export const overview = {
  title: "Overview",
  async show({ query, signal, every }) {
    const phases = await ask("v1/ops/phases", {}, signal);
    const hours = RANGES.some(([value]) => value === query.get("hours")) ? query.get("hours") : "1";
    const parts = {
      live: live(() => tiles(phases, signal)),
      alerts: live(() => alerts(signal)),
      findings: live(() => findings(signal)),
      process: live(() => processState(signal)),
      outlook: live(() => outlook(phases, signal)),
      cost: live(() => costs(phases, "railway", signal)),
      charts: live(() => charts(Number(hours), phases, signal)),
    };
    await Promise.all(Object.values(parts).map((part) => part.refresh()));
    return [
      section("Now", updates(every, parts, Number(hours) <= MOVES_UP_TO_HOURS), parts.live.node),
      section("Alerts", parts.alerts.node),
      section("What is wrong, and what to do", parts.findings.node),
      section("Phase, headroom and what comes next", parts.outlook.node),
      section("Cost", note("By Railway's prices, wherever this runs: ", link("#/capacity", "those of others"), "."), parts.cost.node),
      section("The last minutes", ranges(hours), parts.charts.node),
      section("This process", parts.process.node),
    ];
  },
};

/** A part of the page that is made anew in its place; what cannot be asked says so and leaves the others alone. */
function live(make) {
  const node = el("div", { class: "live" });
  const refresh = async () => {
    try {
      node.replaceChildren(...[await make()].flat(Infinity).filter(Boolean));
    } catch (problem) {
      if (problem.name !== "AbortError") node.replaceChildren(el("p", { class: "problem" }, `${NO_DATA}: ${problem.text ?? problem}`));
    }
  };
  return { node, refresh };
}

/** Nothing moves for whoever does not want it to. */
function updates(every, parts, chartsMove) {
  const quick = [parts.live, parts.alerts, parts.process];
  const slow = [parts.findings, parts.outlook, ...(chartsMove ? [parts.charts] : [])];
  let stops = [];
  const begin = () => {
    stops = [
      every(LIVE_EVERY_S, () => quick.forEach((part) => part.refresh())),
      // what somebody has opened or points at is not taken away under their hands
      every(SLOW_EVERY_S, () => slow.filter((part) => !part.node.querySelector("details[open]") && !part.node.matches(":hover")).forEach((part) => part.refresh())),
    ];
  };
  const toggle = button("Stop updating", () => {
    const stopping = stops.length > 0;
    stops.forEach((stop) => stop());
    stops = [];
    if (!stopping) begin();
    toggle.textContent = stopping ? "Go on updating" : "Stop updating";
  }, { class: "quiet" });
  begin();
  return el("p", {}, toggle);
}

/** The minutes of the last hours, oldest first, as many requests as that takes. */
async function lastMinutes(hours, signal) {
  const from = new Date(Date.now() - hours * 60 * MINUTE_MS).toISOString();
  const found = [];
  let to;
  for (;;) {
    const { items } = await ask("v1/ops/minutes", { from, to, limit: ROWS_MOST }, signal);
    found.push(...items);
    if (items.length < ROWS_MOST) return oldestFirst(found);
    to = items[items.length - 1].at;
  }
}

async function tiles(phases, signal) {
  const minutes = await lastMinutes(1, signal);
  const newest = minutes[minutes.length - 1];
  const fresh = newest !== undefined && Date.now() - Date.parse(newest.at) < FRESH_MINUTES * MINUTE_MS;
  const shown = MEASURES.map((measure) => tile(measure, fresh ? newest : null, phases));
  const said = newest === undefined ? `${NO_DATA}: no minute was recorded in the last hour; a worker records each one.` : `The minute of ${local(new Date(newest.at))}.`;
  return [el("ul", { class: "tiles" }, shown), note(fresh || newest === undefined ? said : `${said} Nothing newer is recorded: does a worker run?`)];
}

function tile(measure, minute, phases) {
  const value = minute === null ? null : measure.of(minute);
  const { kind, word, against } = judged(measure, value, phases);
  const more = minute !== null && value !== null && measure.more ? measure.more(minute) : "";
  return el(
    "li",
    { class: `tile ${kind}${value === null || value === undefined ? " empty" : ""}`, "data-measure": measure.id },
    el("span", { class: "name" }, measure.name),
    el("span", { class: "value" }, measure.shown(value)),
    word ? badge(kind, word) : null,
    el("span", { class: "hint" }, [more, against].filter(Boolean).join("; ")),
  );
}

async function alerts(signal) {
  const { items } = await ask("v1/ops/alerts", { state: "firing" }, signal);
  const columns = [
    { name: "Alert", of: (row) => row.name },
    { name: "Severity", of: (row) => statusBadge(row.severity) },
    { name: "What", of: (row) => row.message },
    { name: "Since", of: (row) => when(row.since) },
    { name: "What to do", of: help },
  ];
  return table("Alerts that fire now", columns, items, "None fires.");
}

async function findings(signal) {
  const found = await ask("v1/ops/doctor", {}, signal);
  const columns = [
    { name: "Check", of: (row) => row.name },
    { name: "Result", of: (row) => statusBadge(row.result) },
    { name: "Found", of: (row) => row.found },
    { name: "What to do", of: (row) => (PAGE_OF[row.name] ? [row.do, " ", link(PAGE_OF[row.name], "Show them")] : row.do) },
  ];
  const wrong = found.items.filter((item) => item.result !== "ok");
  const well = found.items.filter((item) => item.result === "ok");
  return [
    table("What the doctor finds", columns, wrong, `Nothing: ${well.length} checks are well.`),
    el("details", {}, el("summary", {}, `${well.length} checks that are well`), table("Checks that are well", columns.slice(0, 3), well)),
    note(`Looked at ${local(new Date(found.looked_at))}. ${found.says}`),
  ];
}

async function outlook(phases, signal) {
  const found = await ask("v1/ops/capacity", {}, signal);
  return [...headroom(found, phases), el("p", {}, link("#/capacity", "Growth, forecast and cost"))];
}

async function charts(hours, phases, signal) {
  const minutes = thinned(await lastMinutes(hours, signal), Math.ceil((hours * 60) / POINTS_MOST));
  const shown = MEASURES.filter((measure) => measure.id !== "disk");
  return el("div", { class: "charts" }, shown.map((measure) => chart(measure.name, pointsOf(measure, minutes), measure.shown, linesOf(measure, phases))));
}

/** Every nth minute is enough for a screen. */
const thinned = (minutes, step) => (step <= 1 ? minutes : minutes.filter((_, index) => index % step === 0));

function ranges(hours) {
  const links = RANGES.map(([value, text]) => el("li", {}, el("a", { href: `#/overview?hours=${value}`, "aria-current": value === hours ? "true" : null }, text)));
  return el("nav", { "aria-label": "Time shown" }, el("ul", { class: "tabs" }, links));
}

async function processState(signal) {
  const found = await ask("v1/ops/status", {}, signal);
  const stores = Object.entries(found.stores).map(([name, answers]) => el("li", {}, `${name} `, badge(answers ? "good" : "critical", answers ? "answers" : "away")));
  const facts = [
    ["Version", found.version],
    ["Up for", age(found.uptime_s)],
    ["Ready", found.ready ? "yes" : found.reasons.join(", ")],
    ["Provider", found.provider.mode === "simulator" ? "SIMULATOR" : (found.provider.mode ?? NO_DATA)],
    ["Wrong signatures", count(found.provider.wrong_signatures)],
    ["Commands that wait", count(found.ledger_waiting)],
    ["Events that wait", count(found.outbox?.waiting)],
  ];
  return [
    el("dl", { class: "facts" }, facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
    el("ul", { class: "inline", "aria-label": "Stores" }, stores),
  ];
}
