// piggybank on Railway: `PIGGYBANK_PHASE=N railway config plan`, then `apply`. Read ../README.md first.
//
// PostgreSQL is not in here: Railway's HA and PgBouncer change that service in place and add others, and a file that named it would put
// it back. For the same reason the file is a partial: what it does not name is not its own, and is never deleted by it.
import { defineRailway, group, image, preserve, project, service, volume } from "railway/iac";
import { DRAINING_SECONDS, PHASES, SETTINGS } from "./phases.ts";

declare const process: { env: Record<string, string | undefined> };

export const partial = "piggybank";

// Yours, with its version, as in "you/piggybank:0.1.0". Nobody publishes one: a name in here would be somebody's you do not know.
const IMAGE = process.env.IMAGE ?? "";
const VALKEY = "valkey/valkey:9.1.2";
const REGION = process.env.REGION ?? "europe-west4-drams3a";
const PORT = "8080";
const QUEUE_VOLUME_MB = 2_048; // growing it is safe, shrinking it is not possible
const QUEUE_MIB = 256;
// Railway's edge and private network, seen and not promised; whoever is not in them counts as the client.
const EDGE = "100.64.0.0/10,fd00::/8";

const phase = PHASES.find((each) => String(each.number) === process.env.PIGGYBANK_PHASE);
if (phase === undefined) {
  throw new Error(`PIGGYBANK_PHASE is ${process.env.PIGGYBANK_PHASE ?? "not set"}: say which phase this is to be, 0 to ${PHASES.length - 1}`);
}
if (!/^[^@\s]+:(?!latest$)[^:/@\s]+$|^[^@\s]+@sha256:[0-9a-f]{64}$/.test(IMAGE)) {
  throw new Error("set IMAGE to your own image with its version, as in you/piggybank:0.1.0; :latest is none");
}

// The shell is there for the password; `exec` so that SIGTERM reaches the server.
function valkey(...options: string[]): string {
  const all = ["--port 6379", "--bind '*' '-::*'", "--dir /data", '--save \\"\\"', ...options, '--requirepass \\"$VALKEY_PASSWORD\\"'];
  return `/bin/sh -c "exec valkey-server ${all.join(" ")}"`;
}

function address(name: string): string {
  return `redis://default:\${{${name}.VALKEY_PASSWORD}}@\${{${name}.RAILWAY_PRIVATE_DOMAIN}}:6379/0`;
}

const cache = service("cache", {
  source: image(VALKEY),
  start: valkey(`--maxmemory ${phase.cacheMiB}mb`, "--maxmemory-policy allkeys-lru", "--appendonly no"),
  replicas: { [REGION]: 1 },
  env: { VALKEY_PASSWORD: preserve() },
  deploy: { restartPolicyType: "ALWAYS" },
});

const queueData = volume("queue-data", { region: REGION, sizeMB: QUEUE_VOLUME_MB });
const queue = service("queue", {
  source: image(VALKEY),
  start: valkey(`--maxmemory ${QUEUE_MIB}mb`, "--maxmemory-policy noeviction", "--appendonly yes", "--appendfsync everysec"),
  replicas: { [REGION]: 1 }, // a volume has one owner
  env: { VALKEY_PASSWORD: preserve() },
  volumeMounts: { "/data": queueData },
  deploy: { restartPolicyType: "ALWAYS", requiredMountPath: "/data" },
});

// Every setting that there is: what a file leaves out, `apply` deletes. Secrets and addresses are set once by hand, and kept.
const env = {
  ...Object.fromEntries(SETTINGS.map((name) => [name, preserve()])),
  PORT, // Railway asks there for the health check
  PIGGYBANK_PORT: PORT,
  PIGGYBANK_LISTEN: "::", // older private networks have no IPv4
  PIGGYBANK_TRUSTED_PROXIES: EDGE,
  PIGGYBANK_PHASE: String(phase.number),
  PIGGYBANK_POOL_CONNECTIONS: String(phase.poolConnections),
  PIGGYBANK_DURABILITY: "local", // from phase 2 on; Railway's HA confirms nothing
  PIGGYBANK_PROVIDER_MODE: "live", // the simulator is a process of its own, and not here
  PIGGYBANK_CACHE_URL: address("cache"),
  PIGGYBANK_QUEUE_URL: address("queue"),
};

const web = service("web", {
  source: image(IMAGE),
  preDeploy: "piggybank migrate",
  start: "piggybank serve",
  healthcheck: "/health/ready",
  healthcheckTimeout: 120,
  replicas: { [REGION]: phase.web },
  env,
  deploy: { drainingSeconds: DRAINING_SECONDS.web, overlapSeconds: 20, restartPolicyType: "ALWAYS" },
});

const worker = service("worker", {
  source: image(IMAGE),
  preDeploy: "piggybank migrate", // whichever of the two comes first; the other finds nothing to do
  start: "piggybank worker",
  replicas: { [REGION]: phase.worker },
  env,
  deploy: { drainingSeconds: DRAINING_SECONDS.worker, restartPolicyType: "ALWAYS" },
});

export default defineRailway(() => project("piggybank", { resources: [group("piggybank", [web, worker, cache, queue]), queueData] }));
