// Who is signed in, and every request: the token goes into a header, never into a cookie, so no other page can send it.

const STORED_AS = "piggybank.session";
const ANSWER_TIMEOUT_MS = 30000;

/** An answer that is not a success, or none at all. */
export class Problem extends Error {
  constructor(status, body) {
    super(body.detail || body.title || `The server answered ${status}.`);
    this.status = status;
    this.code = body.code || "";
    this.requestId = body.request_id || "";
    this.fields = body.errors || [];
  }

  /** All that a person may do something with. */
  get text() {
    const fields = this.fields.filter((field) => !this.message.includes(field.message)).map((field) => ` ${field.field} ${field.message}.`).join("");
    return `${this.message}${fields}${this.requestId ? ` (request ${this.requestId})` : ""}`;
  }
}

let token = sessionStorage.getItem(STORED_AS);
let onSignedOut = () => {};

export const isSignedIn = () => token !== null;

export function whenSignedOut(then) {
  onSignedOut = then;
}

/** The user; a Problem where they may not come in. Whoever is no operator is signed out again at once. */
export async function signIn(email, password) {
  const made = await send("POST", "v1/sessions", { body: { email, password } });
  token = made.token;
  if (made.user.role !== "operator") {
    await signOut();
    throw new Problem(403, { detail: "Only operators may come in here. An operator link makes one: piggybank users operator-link." });
  }
  sessionStorage.setItem(STORED_AS, token);
  return made.user;
}

/** The operator of a session that this tab already has, or null. */
export async function whoAmI() {
  const user = await send("GET", "v1/users/me");
  if (user.role === "operator") return user;
  await signOut();
  return null;
}

/** Whether the server has ended the session; this tab has forgotten it whatever it says. */
export async function signOut() {
  const ended = send("DELETE", "v1/sessions/current").then(
    () => true,
    (problem) => problem.status === 401, // it had ended before
  );
  forget();
  return ended;
}

/** `path` is relative, so that the console also works below a path of a proxy; `query` leaves out what is empty. */
export async function send(method, path, { body, query, key, signal } = {}) {
  const headers = { Accept: "application/json" };
  if (token !== null) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (key !== undefined) headers["Idempotency-Key"] = key;
  const timeout = AbortSignal.timeout(ANSWER_TIMEOUT_MS);
  let answer;
  try {
    answer = await fetch(path + asked(query), {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      credentials: "omit",
      cache: "no-store",
      referrerPolicy: "no-referrer",
      signal: signal === undefined ? timeout : AbortSignal.any([timeout, signal]),
    });
  } catch (cause) {
    if (signal?.aborted) throw cause;
    throw new Problem(0, { detail: "The server did not answer. Nothing is known of what it did; look before you do it again." });
  }
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  const problem = new Problem(answer.status, await answer.json().catch(() => ({})));
  if (answer.status === 401 && headers.Authorization !== undefined && token !== null) {
    forget();
    onSignedOut();
  }
  throw problem;
}

export const ask = (path, query, signal) => send("GET", path, { query, signal });

/** So that one press of a button, sent twice, counts once. */
export const newKey = () => crypto.randomUUID?.() ?? Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16)).join("");

function forget() {
  token = null;
  sessionStorage.removeItem(STORED_AS);
}

function asked(query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== "");
  return given.length === 0 ? "" : `?${new URLSearchParams(given)}`;
}
