// Capacity planning: what is carried against the limits of the phase, when each is reached, and what the phases cost.

import { badge, el, note, section } from "../elements.js";
import { chart, day as utcDay } from "../charts.js";
import { filters } from "../forms.js";
import { ask } from "../session.js";
import { table } from "../tables.js";
import { NO_DATA, bytes, count, dollars, dollarsAUser, percent, rate, sentence, short } from "../words.js";

const DAYS = [
  ["7", "a week"],
  ["30", "30 days"],
  ["90", "90 days"],
  ["400", "all"],
];
const PROVIDERS = [
  ["railway", "Railway"],
  ["aws", "AWS"],
];

export const capacity = {
  title: "Capacity and cost",
  async show({ query, signal }) {
    const [days, provider] = [query.get("days") || "90", query.get("provider") || "railway"];
    const [found, phases] = await Promise.all([ask("v1/ops/capacity", { days }, signal), ask("v1/ops/phases", {}, signal)]);
    const fields = [
      { name: "days", label: "From the last", options: DAYS },
      { name: "provider", label: "Prices of", options: PROVIDERS },
    ];
    return [
      filters("capacity", fields, new URLSearchParams({ days, provider })),
      section("Where it stands", headroom(found, phases)),
      section("Forecast", await forecast(days, signal)),
      section("Day by day", charts(found, phases)),
      section("Cost", await costs(phases, provider, signal)),
    ];
  },
};

const figure = (value, unit) => (value === null || value === undefined ? NO_DATA : `${short(value)}${unit === "" || unit === "%" ? "" : " "}${unit}`);

/** What is not told, since nothing was measured, is left out: "no data" is said once a row. */
const told = (value, unit) => (value === null || value === undefined ? "" : figure(value, unit));
const meaning = (row) => (row.says === NO_DATA ? "" : row.says);

/** What is measured against what the phase carries; also on the overview. */
export function headroom(found, phases) {
  const columns = [
    { name: "Measure", of: (row) => row.name },
    { name: "Measured", of: (row) => figure(row.measured, row.unit), number: true },
    { name: "Limit", of: (row) => figure(row.limit, row.unit), number: true },
    { name: "Used", of: (row) => used(row), number: true },
    { name: "Growth a day", of: (row) => told(row.growth_a_day, row.unit), number: true },
    { name: "Reached", of: (row) => dated(row.reached_on ?? "") },
    { name: "What it means", of: meaning },
  ];
  const next = phases.phases[phases.current + 1];
  return [
    el("p", { class: "lead" }, el("strong", {}, `Phase ${found.phase}, ${found.phase_name}. `), sentence(found.says)),
    next && next.built ? note(`After it comes phase ${next.phase.number}, ${next.phase.name}: `, el("code", {}, `piggybank phase plan ${next.phase.number}`), " says what changes and how long writes wait.") : null,
    table(`Limits of phase ${found.phase}`, columns, found.limits),
  ];
}

function used(row) {
  if (row.used === null) return "";
  const kind = row.used >= 1 ? "critical" : row.used >= 0.8 ? "warning" : "good";
  return badge(kind, percent(row.used));
}

function charts(found, phases) {
  const phase = phases.phases[found.phase].phase;
  const points = (of) => found.days.map((day) => ({ at: new Date(`${day.day}T00:00:00Z`), value: of(day) }));
  const limit = (value) => [{ name: "limit of the phase", kind: "critical", value }];
  return el("div", { class: "charts" }, [
    chart("Transactions a day", points((day) => day.transactions), count, limit(phase.transactions_a_day), utcDay),
    chart("Busiest minute", points((day) => day.tps_peak), rate, limit(phase.tps_peak), utcDay),
    chart("Users", points((day) => day.users), count, limit(phase.users), utcDay),
    chart("Database size", points((day) => day.database_bytes), bytes, limit(phase.database_gib * 1024 ** 3), utcDay),
    chart("Connections", points((day) => day.connections), count, [], utcDay),
    chart("Cache hit rate", points((day) => day.cache_hit_rate), percent, [{ name: "goal", kind: "goal", value: phases.goals.cache_hit_rate }], utcDay),
  ]);
}

/** What it costs now and in each phase, by a dated table of prices beside the design's figures, and for each user; also on the overview. */
export async function costs(phases, provider, signal) {
  const found = await ask("v1/ops/cost", { provider }, signal);
  const { now } = found;
  const of = (number) => found.phases.find((one) => one.phase === number);
  const here = of(phases.current)?.usd_a_month;
  const rows = phases.phases.map((row) => ({ ...row, projected: of(row.phase.number) }));
  const against = ({ phase, projected }) => (projected === undefined || here === undefined || phase.number === phases.current ? "" : difference(projected.usd_a_month - here));
  const state = ({ phase, built }) => (phase.number === phases.current ? [" ", badge("good", "now")] : built ? null : [" ", badge("plain", "not built")]);
  const columns = [
    { name: "Phase", of: (row) => [`${row.phase.number} ${row.phase.name}`, state(row)] },
    { name: "Users", of: ({ phase }) => count(phase.users), number: true },
    { name: "Peak", of: ({ phase }) => rate(phase.tps_peak), number: true },
    { name: "A month", of: ({ projected }) => (projected ? dollars(Math.round(projected.usd_a_month)) : ""), number: true },
    { name: `Against phase ${phases.current}`, of: against, number: true },
    { name: "A user", of: ({ projected }) => (projected ? dollarsAUser(projected.usd_a_user) : ""), number: true },
    { name: "Design, a month", of: ({ cost }) => `${dollars(cost.usd_a_month)}${cost.and_more ? "+" : ""}`, number: true },
    { name: "Design, a user", of: ({ cost }) => dollarsAUser(cost.usd_a_user), number: true },
  ];
  const measured = now
    ? [
        el("strong", {}, `${dollars(now.usd_a_month)} a month now`),
        `, ${dollarsAUser(now.usd_a_user)} a user: ${count(now.users)} users and ${count(now.transactions_a_day)} transactions a day, as measured, in phase ${now.phase}.`,
      ]
    : `Now: ${NO_DATA}. It takes a whole day of records.`;
  return [
    el("p", { class: "lead" }, measured),
    table(`Cost of each phase at full load at ${found.title}, by prices read on ${found.read_on}`, columns, rows),
    note("US dollars, without tax; a machine of your own costs what it costs. ", el("code", {}, "piggybank cost"), " says the same."),
    now ? bill(`The bill of now, line by line`, now) : null,
    found.phases.map((one) => bill(`The bill of phase ${one.phase}`, one)),
  ];
}

const difference = (usd) => `${usd < 0 ? "-" : "+"}${dollars(Math.abs(Math.round(usd)))}`;

function bill(title, projection) {
  const columns = [
    { name: "What", of: (row) => row.what },
    { name: "A month", of: (row) => dollars(row.usd_a_month), number: true },
    { name: "Of", of: (row) => row.of },
  ];
  const why = projection.why.length === 0 ? null : el("ul", {}, projection.why.map((line) => el("li", {}, line)));
  return el("details", {}, el("summary", {}, title), table(title, columns, projection.parts), why);
}

/** Growth fitted to the history: when each limit is reached, between which days, and how long each phase carries it. */
async function forecast(days, signal) {
  const found = await ask("v1/ops/capacity/forecast", { days }, signal);
  const sure = percent(found.confidence);
  const reached = (row) => row.reached?.expected ?? "not within ten years";
  const between = (row) => (row.reached?.earliest ? `${row.reached.earliest} to ${row.reached.latest ?? "not within ten years"}` : "");
  const columns = [
    { name: "Measure", of: (row) => row.name },
    { name: "Measured", of: (row) => figure(row.measured, row.unit), number: true },
    { name: "Limit", of: (row) => figure(row.limit, row.unit), number: true },
    { name: "Growth", of: (row) => row.growth },
    { name: "A day", of: (row) => (row.growth === "compound" ? percent(row.growth_a_day) : told(row.growth_a_day, row.unit)), number: true },
    { name: "Reached about", of: (row) => (row.reached === null ? meaning(row) : dated(reached(row))) },
    { name: `Between (${sure})`, of: between },
  ];
  const phases = [
    { name: "Phase", of: (row) => `${row.phase} ${row.name}` },
    { name: "Carries it until", of: (row) => dated(reached(row)) },
    { name: `Between (${sure})`, of: between },
    { name: "Its first limit", of: (row) => row.first ?? "none comes near" },
  ];
  return [
    el("p", { class: "lead" }, sentence(found.says)),
    table(`When each limit is reached, from ${count(found.history_days)} days`, columns, found.limits),
    found.phases.length > 0 ? table("How long each phase carries it", phases, found.phases) : null,
  ];
}

const dated = (text) => (/^\d{4}-/.test(text) ? el("time", { datetime: text }, text) : text);
