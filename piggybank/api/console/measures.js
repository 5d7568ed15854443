// What is measured each minute, how it is written and what it is held against: one table for tiles and charts.

import { count, ms, percent, rate } from "./words.js";

const SECONDS_A_MINUTE = 60;

const part = (value, of) => (value === null || value === undefined || !of ? null : value / of);
const aSecond = (value, minute) => part(value, SECONDS_A_MINUTE * (minute.minutes ?? 1));

/**
 * `of(minute)`: the value or null; `threshold`: a name in the table of thresholds, `goal`: of goals, `below`: worse is less;
 * `absent(phase)`: why there can be none.
 */
export const MEASURES = [
  { id: "requests", name: "Requests", of: (minute) => aSecond(minute.requests, minute), shown: rate },
  { id: "transactions", name: "Transactions", of: (minute) => aSecond(minute.transactions, minute), shown: rate, limit: (phase) => phase.tps_peak },
  { id: "p95", name: "Response time, p95", of: (minute) => minute.p95_ms, shown: ms, threshold: "p95_ms", goal: "p95_ms" },
  { id: "errors", name: "Error rate", of: (minute) => part(minute.errors, minute.requests), shown: percent, threshold: "error_rate", goal: "error_rate" },
  { id: "hits", name: "Cache hit rate", of: (minute) => minute.cache_hit_ratio, shown: percent, threshold: "cache_hit_rate", goal: "cache_hit_rate", below: true },
  {
    id: "lag",
    name: "Replica lag",
    of: (minute) => minute.replica_lag_ms,
    shown: ms,
    goal: "lag_ms",
    absent: (phase) => (phase.replicas === 0 ? "this phase has no replicas" : null),
  },
  { id: "cpu", name: "Database CPU", of: (minute) => minute.db_cpu_ratio, shown: percent, threshold: "database_cpu" },
  {
    id: "connections",
    name: "Connections",
    of: (minute) => part(minute.connections, minute.max_connections),
    shown: percent,
    goal: "connections_used",
    more: (minute) => `${count(minute.connections)} of ${count(minute.max_connections)}`,
  },
  { id: "memory", name: "Cache memory", of: (minute) => minute.cache_memory_ratio, shown: percent, goal: "cache_memory_used" },
  { id: "disk", name: "Disk free", of: (minute) => minute.disk_free_ratio, shown: percent },
];

/** What a value is worth: `{ kind, word, against }`, with the numbers that it is held against. */
export function judged(measure, value, table) {
  const threshold = table.thresholds.find((one) => one.name === measure.threshold);
  const goal = table.goals[measure.goal];
  const phase = table.phases[table.current].phase;
  const against = [];
  if (goal !== undefined) against.push(`goal ${measure.below ? "above" : "below"} ${measure.shown(goal)}`);
  if (measure.limit) against.push(`this phase carries ${measure.shown(measure.limit(phase))}`);
  if (threshold) against.push(`warning at ${measure.shown(threshold.warning)}, critical at ${measure.shown(threshold.critical)}`);
  const said = { against: against.join("; ") };
  if (value === null || value === undefined) return { kind: "plain", word: "", against: measure.absent?.(phase) ?? said.against };
  const worse = (limit) => (measure.below ? value < limit : value > limit);
  if (threshold && worse(threshold.critical)) return { ...said, kind: "critical", word: "critical" };
  const warning = threshold ? threshold.warning : (goal ?? measure.limit?.(phase));
  if (warning === undefined) return { ...said, kind: "plain", word: "" };
  return worse(warning) ? { ...said, kind: "warning", word: "warning" } : { ...said, kind: "good", word: "well" };
}

/** The lines that a chart draws across. */
export function linesOf(measure, table) {
  const threshold = table.thresholds.find((one) => one.name === measure.threshold);
  if (threshold) {
    return [
      { name: "warning", kind: "warning", value: threshold.warning },
      { name: "critical", kind: "critical", value: threshold.critical },
    ];
  }
  const goal = table.goals[measure.goal];
  return goal === undefined ? [] : [{ name: "goal", kind: "goal", value: goal }];
}

/** The last minutes, oldest first; a minute of which nothing is known is not there. */
export const oldestFirst = (minutes) => [...minutes].sort((one, other) => Date.parse(one.at) - Date.parse(other.at));

export const pointsOf = (measure, minutes) => minutes.map((minute) => ({ at: new Date(minute.at), value: measure.of(minute) }));
