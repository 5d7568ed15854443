// Which states are good, which need a look: the word stays, the colour only helps.

import { badge } from "../elements.js";

const KINDS = {
  good: ["active", "completed", "applied", "finished", "ok", "attached", "verified"],
  warning: ["frozen", "unknown", "unmatched", "warning", "hint", "returned", "new", "detaching", "firing"],
  critical: ["failed", "broken", "critical"],
};

export function statusBadge(status) {
  const found = Object.entries(KINDS).find(([, names]) => names.includes(status));
  return badge(found ? found[0] : "plain", status);
}
