// What is done beside the requests: jobs and how they ended, events that wait, and trying again.

import { badge, button, el, facts, note, section, tell } from "../elements.js";
import { confirm } from "../forms.js";
import { ask, send } from "../session.js";
import { table } from "../tables.js";
import { NO_DATA, age, count, when } from "../words.js";

export const queue = {
  title: "Queue and jobs",
  async show({ signal, again }) {
    const found = await ask("v1/ops/queue", {}, signal);
    const run = (name) => button("Run now", () => runNow(name, again), { class: "quiet", "aria-label": `Run ${name} now` });
    const jobs = [
      { name: "Job", of: (row) => row.name },
      { name: "Rhythm (UTC)", of: (row) => el("code", {}, row.cron) },
      { name: "Last run", of: (row) => (row.last_run ? when(row.last_run.ended_at) : "none yet") },
      { name: "Took", of: (row) => (row.last_run ? age(row.last_run.took_s) : ""), number: true },
      { name: "Ended", of: (row) => ended(row.last_run) },
      { name: "Act", of: (row) => run(row.name) },
    ];
    const failures = [
      { name: "When", of: (row) => when(row.ended_at) },
      { name: "Job", of: (row) => row.job },
      { name: "Attempt", of: (row) => count(row.attempt), number: true },
      { name: "What happened", of: (row) => row.error },
      { name: "Then", of: (row) => (row.final ? "waits for its next turn" : "tried again by itself") },
      { name: "Act", of: (row) => run(row.job) },
    ];
    const events = [
      { name: "Event", of: (row) => row.topic },
      { name: "Since", of: (row) => when(row.made_at) },
      { name: "Attempts", of: (row) => count(row.attempts), number: true },
      { name: "Next attempt", of: (row) => (row.due_at ? when(row.due_at) : "now") },
      { name: "Act", of: (row) => button("Try now", () => tryNow(row, again), { class: "quiet", "aria-label": `Try ${row.topic} now` }) },
    ];
    const { outbox } = found;
    return [
      found.answers ? null : el("p", { class: "problem", role: "alert" }, "The queue's store is away. Jobs come back by themselves when it does."),
      facts([
        ["Workers", found.workers === 0 ? badge("critical", "none runs") : count(found.workers)],
        ["Waiting for a worker", count(found.queued)],
        ["Running", count(found.active)],
        ["Waiting for their time", count(found.scheduled)],
        ["Events that wait", count(outbox.waiting)],
        ["The oldest event", outbox.oldest_at ? when(outbox.oldest_at) : "none"],
      ]),
      section("Jobs", table("Jobs that the workers know", jobs, found.jobs, `${NO_DATA}: no worker has told which there are`)),
      section("Failed", table("Attempts that failed, newest first", failures, found.failures, found.answers ? "None." : NO_DATA)),
      section(
        "Events that failed",
        note("Committed with the change that they tell about; each is tried again until it works or has outlived its use."),
        table("Events that failed, oldest first", events, outbox.failing, "None."),
      ),
    ];
  },
};

function ended(run) {
  if (run === null) return badge("plain", "none yet");
  return run.error === null ? badge("good", "well") : badge("critical", "failed");
}

async function runNow(name, again) {
  let asked;
  const done = await confirm({
    title: `Run ${name} now?`,
    text: "Every job looks for what is left to do, so running it twice does nothing twice.",
    action: "Run it",
    act: async () => {
      asked = await send("POST", `v1/ops/queue/jobs/${encodeURIComponent(name)}/run`);
    },
  });
  if (!done) return;
  await again();
  tell(asked.started ? `${name} waits for a worker.` : `${name} was asked for before, and still waits or runs.`);
}

async function tryNow(row, again) {
  const title = `Try ${row.topic} again now?`;
  const text = "Else it waits for its next attempt.";
  const done = await confirm({ title, text, action: "Try it", act: () => send("POST", `v1/ops/outbox/${encodeURIComponent(row.id)}/retry`) });
  if (!done) return;
  await again();
  tell("It is tried again within seconds.");
}
