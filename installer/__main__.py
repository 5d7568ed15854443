"""What install.sh hands over to: look, ask, act, say where it is."""

import json
import os
import shlex
import sys
from collections.abc import Callable
from functools import partial

from installer import containers, look, program, units
from installer.act import act, step
from installer.look import Finding
from installer.options import ENV_FILE, SETTINGS_ENV, SETTINGS_FILE, Options, parse, read_env
from installer.program import Failed

GOODBYE = """
piggybank runs at {url}

  Become its operator (the link works once):
    {link}

  A first deposit, from nothing:
    PB={command} URL={url}
    get() {{ python3 -c "import json, sys; print(json.load(sys.stdin)['$1'])"; }}
    post() {{ curl -sS{insecure} "$URL$1" -H "Authorization: Bearer $TOKEN" -H "Idempotency-Key: $2" \\
        -H 'Content-Type: application/json' -d "$3"; }}
    TOKEN=$("$PB" apikeys create --name first --scopes users:write,accounts:write,accounts:read,ledger:write --token-only)
    USER_ID=$(post /v1/users first-user '{{"external_id": "customer-1"}}' | get id)
    ACCOUNT_ID=$(post /v1/accounts first-account '{{"user_id": "'$USER_ID'", "currency": "ZAR"}}' | get id)
    post /v1/accounts/$ACCOUNT_ID/deposits first-deposit '{{"amount": 10000, "method": "direct"}}'

  {provider}

  Look after it:   {cli} status | doctor | verify | down | up --detach
  After a reboot:  {reboot}
{lost}"""

# with containers; without them the log goes along, within a minute
LOST = "  Can be lost:     backups are a dump each day and no log between: {most}\n"
SAME_DISK = "losing this disk loses everything, until BACKUP_FOLDER or BACKUP_TARGET in {env} is elsewhere"
ELSEWHERE = "losing this disk loses what came after the last dump, at most one day and the time that a dump takes"

RECOVERY_KEY = """
RECOVERY KEY of the backups. It is shown this once and kept nowhere: write it down, and keep it away from this machine.
    {key}
Without it the settings and key files in a backup cannot be read. Where backups go: {where}.
"""

PROVIDER = {
    "simulator": """Payments are a SIMULATOR: play money. Try one: "method": "revio" instead of "direct", then open its checkout_url.
  Going live later takes an installation of its own: --provider-mode live (README, Going live).""",
    "live": """Payments are LIVE. Put {keys}, start it again, then:
    {cli} provider connect""",
}


def main() -> int:
    os.environ.pop("PYTHONPATH", None)  # install.sh set it for us alone
    options = parse(sys.argv[1:], os.environ, sys.executable)
    if options.docker and not containers.is_checkout():
        print(
            "Nothing was changed: a bundle installs natively. Containers take a checkout (git clone), and an image carried over to",
            file=sys.stderr,
        )
        print("a machine without a network: docker save, docker load.", file=sys.stderr)
        return 2
    if options.docker and not containers.has_sdk():
        return containers.again_with_sdk(sys.argv[1:])
    try:
        with program.source(options) as source:
            return _install(options, source)
    except (Failed, OSError) as cause:
        print(f"\nIt did not work: {cause}", file=sys.stderr)
        return 1


def _install(options: Options, source: program.Source) -> int:
    step(1, f"Looking at this machine{' and its engine' if options.docker else ''} (nothing is changed)")
    look_around, act_out = _halves(options, source)
    findings = look_around()
    look.show(findings)
    stopped = any(finding.level == "stop" for finding in findings)
    if options.check:
        if options.json:
            print(json.dumps({"ok": not stopped, "findings": look.as_json(findings)}))
        return 2 if stopped else 0
    if stopped:
        print("Nothing was changed. Put right what says STOP, then run this again.", file=sys.stderr)
        return 2
    if not _agreed(options):
        print("Nothing was changed.", file=sys.stderr)
        return 2
    made = act_out()
    print(_goodbye(options, made), file=sys.stderr if options.json else sys.stdout)
    if options.json:
        print(json.dumps(made))
    return 0


def _halves(options: Options, source: program.Source) -> tuple[Callable[[], list[Finding]], Callable[[], dict[str, str | None]]]:
    """Looking and acting, natively or with containers; the latter need the SDK, which is not there otherwise."""
    if not options.docker:
        return partial(look.look, options, source), partial(act, options, source)
    from installer import compose, engine

    return partial(engine.look_around, options), partial(compose.act_out, options)


def _agreed(options: Options) -> bool:
    """Asks only where somebody can answer."""
    if options.yes or not sys.stdin.isatty():
        return True
    answer = input(f"Install into {options.data_dir} and listen on {options.listen}:{options.port}? [Y/n] ")
    return answer.strip().lower() in ("", "y", "yes")


def _goodbye(options: Options, made: dict[str, str | None]) -> str:
    if options.docker:
        reboot = (
            f"Docker starts it; another phase: installer/install.sh --docker --phase N; compose itself: {options.cli.with_name('compose')}"
        )
    elif units.systemd_runs():
        reboot = f"systemd starts it ({units.name(options)})"
    else:
        reboot = f"no systemd here; put this line into `crontab -e`:\n    {units.crontab_line(options)}"
    link = made["operator_link"] or f"there is an operator already; another one: {made['cli']} users operator-link"
    insecure = " -k" if str(made["url"]).startswith("https://127.") else ""
    provider = PROVIDER[str(made["provider_mode"])].format(cli=made["cli"], keys=_where_keys_go(options))
    where = f"BACKUP_FOLDER or BACKUP_TARGET in {options.data_dir / ENV_FILE}" if options.docker else f"backup_target in {SETTINGS_FILE}"
    key = RECOVERY_KEY.format(key=made["recovery_key"], where=where) if made["recovery_key"] else ""
    return key + GOODBYE.format(
        provider=provider,
        url=made["url"],
        link=link,
        cli=made["cli"],
        command=shlex.quote(str(made["cli"])),
        reboot=reboot,
        insecure=insecure,
        lost=_lost(options) if options.docker else "",
    )


def _lost(options: Options) -> str:
    env = options.data_dir / ENV_FILE
    kept = read_env(env)
    here = kept.get("BACKUP_TARGET", "") in ("", "/backups") and kept.get("BACKUP_FOLDER", "") in ("", "backups")
    return LOST.format(most=SAME_DISK.format(env=env) if here else ELSEWHERE)


def _where_keys_go(options: Options) -> str:
    if options.docker:
        return f"PIGGYBANK_REVIO_KEY=.. and PIGGYBANK_REVIO_BRAND_ID=.. into {options.data_dir / SETTINGS_ENV}"
    return "revio_key and revio_brand_id into piggybank.toml"


if __name__ == "__main__":
    sys.exit(main())
