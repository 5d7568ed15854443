// Months of transactions, and backups.

import { el, note } from "../elements.js";
import { ask } from "../session.js";
import { table } from "../tables.js";
import { NO_DATA, bytes, count, when } from "../words.js";
import { statusBadge } from "./statuses.js";

export const partitions = {
  title: "Partitions",
  async show({ signal }) {
    const found = await ask("v1/ops/partitions", {}, signal);
    const columns = [
      { name: "Name", of: (row) => row.name },
      { name: "Month", of: (row) => (row.month ? row.month.slice(0, 7) : "all") },
      { name: "State", of: (row) => statusBadge(row.state) },
      { name: "Rows, about", of: (row) => count(row.rows), number: true },
      { name: "Size", of: (row) => bytes(row.bytes), number: true },
      { name: "File", of: (row) => row.file },
    ];
    const on = found.length > 1;
    return [
      note(
        on ? "Transactions are kept in months. Old ones are archived by " : "Months are off: one partition takes everything. They are turned on by ",
        el("code", {}, on ? "piggybank partitions archive MONTH" : "piggybank partitions enable"),
        ".",
      ),
      table("Partitions of the transactions, oldest first", columns, found),
    ];
  },
};

export const backups = {
  title: "Backups",
  async show({ signal }) {
    const found = await ask("v1/ops/backups", {}, signal);
    const columns = [
      { name: "Backup", of: (row) => row.id },
      { name: "Kind", of: (row) => row.kind },
      { name: "Begun", of: (row) => when(row.started_at) },
      { name: "Finished", of: (row) => when(row.finished_at) },
      { name: "Size", of: (row) => bytes(row.size_bytes), number: true },
      { name: "Last drill", of: (row) => (row.drilled_at ? when(row.drilled_at) : "none") },
      { name: "It said", of: (row) => (row.drill_passed === null ? "" : [statusBadge(row.drill_passed ? "ok" : "failed"), " ", row.drill_said]) },
    ];
    return [table("Backups, newest first", columns, found.items, found.says ?? NO_DATA)];
  },
};
