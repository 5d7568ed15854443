// Lines over time, each with the same in words and as a table. Gaps stay gaps: what nobody recorded is not drawn as 0.

import { el } from "./elements.js";
import { table } from "./tables.js";
import { NO_DATA, local } from "./words.js";

const HEIGHT_PX = 180;
const ROWS_MOST = 60; // of the table: each is the most of a stretch
const GAP_STEPS = 2.5; // further apart than so many usual steps: something is missing between

const DAY_S = 86400;

/** Of points that are days in UTC. */
export const day = (date) => date.toISOString().slice(0, 10);

/**
 * `points`: `[{ at: Date, value: number or null }]`, oldest first; `shown` makes a value text; `lines`: `[{ value, name, kind }]`,
 * thresholds that are drawn across; `moment` makes a point's time text.
 */
export function chart(title, points, shown, lines = [], moment = local) {
  const known = points.filter((point) => point.value !== null && point.value !== undefined && Number.isFinite(point.value));
  const heading = el("figcaption", {}, title);
  if (known.length === 0) return el("figure", { class: "chart" }, heading, el("p", { class: "empty" }, NO_DATA));
  const words = inWords(known, points.length, shown, lines, moment);
  const readout = el("p", { class: "readout", "aria-hidden": "true" }, "\u00a0");
  const place = el("div", { class: "plot", role: "img", "aria-label": `${title}. ${words}` });
  draw(place, points, shown, lines, readout, moment);
  return el("figure", { class: "chart" }, heading, place, readout, el("p", { class: "words" }, words), asTable(title, known, shown, moment));
}

function inWords(known, all, shown, lines, moment) {
  const values = known.map((point) => point.value);
  const last = known[known.length - 1];
  const missing = all - known.length;
  const said = [
    `Last ${shown(last.value)} at ${moment(last.at)}`,
    `least ${shown(Math.min(...values))}`,
    `most ${shown(Math.max(...values))}`,
    ...lines.map((line) => `${line.name} ${shown(line.value)}`),
  ];
  if (missing > 0) said.push(`${missing} of ${all} points have ${NO_DATA}`);
  return `${said.join(", ")}.`;
}

/** Made when it is opened: a week has ten thousand minutes. */
function asTable(title, known, shown, moment) {
  const details = el("details", {}, el("summary", {}, "As a table"));
  details.addEventListener("toggle", () => {
    if (!details.open || details.childElementCount > 1) return;
    const size = Math.ceil(known.length / ROWS_MOST);
    const rows = [];
    for (let first = 0; first < known.length; first += size) {
      const part = known.slice(first, first + size);
      rows.push({ at: part[0].at, value: Math.max(...part.map((point) => point.value)) });
    }
    const columns = [
      { name: size === 1 ? "When" : "From", of: (row) => moment(row.at) },
      { name: size === 1 ? "Value" : "Most", of: (row) => shown(row.value), number: true },
    ];
    details.append(table(title, columns, rows.reverse()));
  });
  return details;
}

function draw(place, points, shown, lines, readout, moment) {
  const data = withGaps(points);
  let plot = null;
  let drawnFor = "";
  const paint = () => {
    const width = Math.floor(place.clientWidth);
    if (width === 0) return;
    const colours = colourNames();
    if (plot !== null && drawnFor === colours.line) {
      plot.setSize({ width, height: HEIGHT_PX });
      return;
    }
    plot?.destroy();
    drawnFor = colours.line;
    plot = new window.uPlot(options(width, data, shown, lines, readout, colours, moment), data, place);
  };
  new ResizeObserver(paint).observe(place);
  const scheme = window.matchMedia("(prefers-color-scheme: dark)");
  const repaint = () => (place.isConnected ? paint() : scheme.removeEventListener("change", repaint));
  scheme.addEventListener("change", repaint);
}

function options(width, data, shown, lines, readout, colours, moment) {
  const axis = { stroke: colours.quiet, grid: { stroke: colours.grid, width: 1 }, ticks: { stroke: colours.grid, width: 1 } };
  const most = Math.max(...data[1].filter((value) => value !== null), ...lines.map((line) => line.value));
  const least = Math.min(0, ...data[1].filter((value) => value !== null));
  return {
    width,
    height: HEIGHT_PX,
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false } },
    scales: { y: { range: [least, most > least ? most + (most - least) * 0.08 : least + 1] } },
    axes: [{ ...axis, size: 30, values: (_, ticks, __, ___, step) => ticks.map((tick) => hour(tick, step)) }, { ...axis, size: 64, values: (_, ticks) => ticks.map((tick) => shown(tick)) }],
    series: [{}, { stroke: colours.line, width: 2, points: { show: data[0].length < 3 } }],
    hooks: {
      draw: [(plot) => lines.forEach((line) => across(plot, line, colours[line.kind] ?? colours.quiet))],
      setCursor: [
        (plot) => {
          const value = plot.data[1][plot.cursor.idx];
          readout.textContent = value === null || value === undefined ? "\u00a0" : `${moment(new Date(1000 * plot.data[0][plot.cursor.idx]))}: ${shown(value)}`;
        },
      ],
    },
  };
}

/** `14:30`, or `11-24` where the axis goes by days. */
function hour(tick, step) {
  const text = local(new Date(1000 * tick));
  return step >= DAY_S ? text.slice(5, 10) : text.slice(11, 16);
}

function across(plot, line, colour) {
  const y = Math.round(plot.valToPos(line.value, "y", true));
  const { ctx, bbox } = plot;
  if (y < bbox.top || y > bbox.top + bbox.height) return;
  ctx.save();
  ctx.strokeStyle = colour;
  ctx.setLineDash([6, 4]);
  ctx.beginPath();
  ctx.moveTo(bbox.left, y);
  ctx.lineTo(bbox.left + bbox.width, y);
  ctx.stroke();
  ctx.restore();
}

/** Seconds and values; where points are missing an empty one stands between. */
function withGaps(points) {
  const times = points.map((point) => point.at.getTime() / 1000);
  const steps = times.slice(1).map((time, index) => time - times[index]).sort((one, other) => one - other);
  const usual = steps[Math.floor(steps.length / 2)] ?? 0;
  const xs = [];
  const ys = [];
  times.forEach((time, index) => {
    if (index > 0 && time - times[index - 1] > GAP_STEPS * usual) {
      xs.push((time + times[index - 1]) / 2);
      ys.push(null);
    }
    xs.push(time);
    ys.push(points[index].value ?? null);
  });
  return [xs, ys];
}

function colourNames() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(`--${name}`).trim();
  return { line: of("accent"), quiet: of("quiet"), grid: of("grid"), warning: of("warning"), critical: of("problem"), goal: of("good") };
}

