// Signing in: e-mail address and password, as for the API.

import { button, el } from "../elements.js";
import { field, values } from "../forms.js";
import { signIn } from "../session.js";

export function signInPage(arrive) {
  const problem = el("p", { class: "problem", role: "alert", tabindex: "-1", hidden: true });
  const submit = button("Sign in", null, { type: "submit" });
  const form = el(
    "form",
    { class: "narrow" },
    problem,
    field({ name: "email", label: "E-mail address", type: "email", autocomplete: "username", maxlength: 254, required: true }),
    field({ name: "password", label: "Password", type: "password", autocomplete: "current-password", maxlength: 256, required: true }),
    submit,
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    problem.hidden = true;
    submit.disabled = true;
    const { email, password } = values(form);
    try {
      const user = await signIn(email.trim(), password);
      form.reset();
      await arrive(user);
    } catch (cause) {
      problem.textContent = cause.text ?? String(cause);
      problem.hidden = false;
      problem.focus();
    } finally {
      submit.disabled = false;
    }
  });
  return [
    el("p", {}, "For operators. The session ends when this tab is closed, when you sign out, or after 7 days."),
    form,
    el("p", { class: "note" }, "No password yet? Open the one-time link of the installer, or of ", el("code", {}, "piggybank users operator-link"), "."),
  ];
}
