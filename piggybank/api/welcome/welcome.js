"use strict";

const PURPOSES = {
  operator: {
    title: "Become an operator",
    intro: "An operator sees every account and manages API keys. This link works once.",
    button: "Become an operator",
    done: "You are an operator now.",
    fields: ["name", "email", "password"],
    path: "v1/users/claim",
    body: (token, values) => ({ token, ...values }),
  },
  invite: {
    title: "Sign up",
    intro: "Somebody invited you. This link works once.",
    button: "Sign up",
    done: "You have signed up.",
    fields: ["name", "email", "password"],
    path: "v1/users",
    body: (token, values) => ({ invite: token, ...values }),
  },
  reset: {
    title: "Set a new password",
    intro: "All your sessions end when you set it. This link works once.",
    button: "Set the password",
    done: "The new password is set.",
    fields: ["password"],
    path: "v1/users/reset",
    body: (token, values) => ({ token, ...values }),
  },
};
const PASSWORD_MIN_CHARACTERS = 10;
const ANSWER_TIMEOUT_MS = 30000;

const element = (id) => document.getElementById(id);

function start() {
  const [purpose, token] = window.location.hash.slice(1).split("=", 2);
  if (!Object.hasOwn(PURPOSES, purpose) || !token) return;
  // the link is not to stay in the browser's history
  window.history.replaceState(null, "", window.location.pathname);
  const page = PURPOSES[purpose];
  document.title = `${page.title} - piggybank`;
  element("title").textContent = page.title;
  element("intro").textContent = page.intro;
  element("submit").textContent = page.button;
  for (const field of ["name", "email"]) element(`${field}-field`).hidden = !page.fields.includes(field);
  element("show").addEventListener("change", (event) => {
    element("password").type = event.target.checked ? "text" : "password";
  });
  element("form").addEventListener("submit", (event) => {
    event.preventDefault();
    submit(page, token);
  });
  element("form").hidden = false;
  element("title").focus();
}

async function submit(page, token) {
  const values = {};
  for (const field of page.fields) {
    const value = field === "password" ? element(field).value : element(field).value.trim();
    if (value) values[field] = value;
  }
  tell("");
  const wrong = page.fields.find((field) => problemOf(field, values[field] || ""));
  if (wrong) {
    tell(problemOf(wrong, values[wrong] || ""), wrong);
    return;
  }
  element("submit").disabled = true;
  try {
    const answer = await fetch(page.path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(page.body(token, values)),
      credentials: "omit",
      signal: AbortSignal.timeout(ANSWER_TIMEOUT_MS),
    });
    if (answer.ok) finish(page, values.email);
    else await explain(answer);
  } catch {
    tell("The server did not answer. Try again in a moment; nothing else is needed.");
  } finally {
    element("submit").disabled = false;
  }
}

function problemOf(field, value) {
  if (field === "email" && !/^[^@\s]+@[^@\s]+\.[^@\s]+$/.test(value)) return "Give an e-mail address like name@example.com.";
  if (field === "password" && value.length < PASSWORD_MIN_CHARACTERS) return `Give a password of at least ${PASSWORD_MIN_CHARACTERS} characters.`;
  return "";
}

async function explain(answer) {
  const problem = await answer.json().catch(() => ({}));
  const fields = { email_taken: "email", weak_password: "password" };
  const first = (problem.errors || [])[0];
  const allowed = problem.allowed ? ` Allowed: ${problem.allowed}.` : "";
  tell((problem.detail || problem.title || `The server answered ${answer.status}.`) + allowed, fields[problem.code] || (first && first.field));
}

function tell(message, field) {
  for (const name of ["name", "email", "password"]) {
    const input = element(name);
    const isWrong = name === field;
    input.setAttribute("aria-invalid", String(isWrong));
    if (name === "password") input.setAttribute("aria-describedby", isWrong ? "problem password-hint" : "password-hint");
    else if (isWrong) input.setAttribute("aria-describedby", "problem");
    else input.removeAttribute("aria-describedby");
  }
  element("problem").textContent = message;
  element("problem").hidden = !message;
  if (message) (["name", "email", "password"].includes(field) ? element(field) : element("problem")).focus();
}

function finish(page, email) {
  element("form").reset();
  element("form").hidden = true;
  element("intro").hidden = true;
  element("done-text").textContent = page.done;
  const url = new URL("v1/sessions", window.location.href).href;
  const body = JSON.stringify({ email: email || "you@example.com", password: "YOUR PASSWORD" }).replaceAll("'", "'\\''");
  element("curl").textContent = `curl -s '${url}' -H 'Content-Type: application/json' \\\n  -d '${body}'`;
  element("console").hidden = page !== PURPOSES.operator;
  element("done").hidden = false;
  element("title").textContent = "Done";
  element("title").focus();
}

start();
