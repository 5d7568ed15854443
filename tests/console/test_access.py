"""Who gets in, and what cannot: no other user, no other page, no script but ours."""

import re
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Browser, Route

from piggybank.api import caching, console, guards
from piggybank.identity import apikeys
from tests.api.conftest import Client, client  # noqa: F401 - a fixture
from tests.console.conftest import ATTACK, Bank, Console, opened
from tests.prove.conftest import PASSWORD

PAGES = Path(console.__file__).parent


async def test_an_operator_comes_in_and_goes_and_no_cookie_is_left(browser: Browser, bank: Bank) -> None:
    context, tab = await opened(browser, bank)
    await tab.sign_in()
    assert await context.cookies() == []
    assert await tab.page.evaluate("Object.keys(localStorage).length") == 0
    token = await tab.page.evaluate("sessionStorage.getItem('piggybank.session')")
    assert token.startswith("pbs_")
    await tab.page.reload()  # the tab keeps its session
    await tab.settled("Overview")
    other = await context.new_page()  # another tab has none
    await other.goto(bank.url)
    await other.get_by_role("heading", name="Sign in").wait_for()
    await tab.page.get_by_role("button", name="Sign out").click()
    await tab.settled("Sign in")
    assert await tab.page.evaluate("sessionStorage.length") == 0
    async with httpx.AsyncClient(base_url=bank.desk.server.url) as http:
        assert (await http.get("/v1/users/me", headers={"Authorization": f"Bearer {token}"})).status_code == 401
    await tab.check()
    await context.close()


async def test_who_is_no_operator_sees_nothing(browser: Browser, bank: Bank) -> None:
    context, tab = await opened(browser, bank)
    await tab.page.goto(bank.url)
    await tab.page.get_by_label("E-mail address").fill(bank.user.email)
    await tab.page.get_by_label("Password").fill(PASSWORD)
    await tab.page.get_by_role("button", name="Sign in").click()
    await tab.page.get_by_text("Only operators may come in here").wait_for()
    assert await tab.page.evaluate("sessionStorage.length") == 0
    assert not await tab.page.get_by_role("navigation").is_visible()
    # nor with a session of theirs put into the tab, whatever page they name
    await tab.page.evaluate(f"sessionStorage.setItem('piggybank.session', '{bank.user.headers['Authorization'].split()[1]}')")
    await tab.page.goto(f"{bank.url}#/users/{bank.user_id}")
    await tab.page.reload()
    await tab.settled("Sign in")
    assert "Ada" not in await tab.page.inner_text("body")
    await tab.check()
    await context.close()


async def test_who_signs_out_is_told_when_the_session_may_not_have_ended(browser: Browser, bank: Bank) -> None:
    context, tab = await opened(browser, bank)
    await tab.enter(bank.operator)

    async def cut_off(route: Route) -> None:
        await (route.abort() if route.request.method == "DELETE" else route.continue_())

    await tab.page.route("**/v1/sessions/current", cut_off)
    await tab.page.get_by_role("button", name="Sign out").click()
    await tab.settled("Sign in")
    assert "did not confirm" in await tab.page.inner_text("#news")
    assert await tab.page.evaluate("sessionStorage.length") == 0
    async with httpx.AsyncClient(base_url=bank.desk.server.url) as http:
        assert (await http.get("/v1/users/me", headers=bank.operator.headers)).status_code == 200  # as was said
    await context.close()


async def test_an_address_asks_for_nothing_but_what_its_page_is_about(console: Console, bank: Bank) -> None:
    """A link that somebody sends to an operator: its id stays one part of the path that is asked for."""
    crafted = {
        "users": ("User", "..%2F..%2Fv1%2Fops%2Faudit"),
        "accounts": ("Account", f"x%3Fuser_id={bank.user_id}%23"),
        "payments": ("Payment", "x#y"),
        "transactions": ("Transaction", "%2e%2e"),
        "events": ("Provider event", "..\\..\\api-keys"),
        "reconciliations": ("Reconciliation", "..%5c.."),
        "runbooks": ("Runbook", "..%2Fstatus"),
    }
    roots = {"events": "v1/ops/provider-events", "reconciliations": "v1/ops/reconciliations", "runbooks": "v1/ops/runbooks"}
    await console.open("accounts/..", "Not here")
    for page, (title, part) in crafted.items():
        console.asked.clear()
        await console.page.evaluate("address => { window.location.hash = address; }", f"#/{page}/{part}")
        await console.settled(title)
        asked = {url.partition(f"{bank.desk.server.url}/")[2] for url in console.asked}
        root = roots.get(page, f"v1/{page}")
        assert asked, page
        for path in asked:
            assert re.fullmatch(rf"{re.escape(root)}/[^/?#\\]+(\?.*)?", path), (page, path)
            assert path.partition("?")[0].rpartition("/")[2] not in (".", "..")


@pytest.mark.deep
async def test_a_session_that_ended_elsewhere_ends_here(browser: Browser, bank: Bank) -> None:
    context, tab = await opened(browser, bank)
    await tab.sign_in()
    await tab.page.evaluate(
        "fetch('v1/sessions/current', {method: 'DELETE',"
        " headers: {Authorization: `Bearer ${sessionStorage.getItem('piggybank.session')}`}})"
    )
    await tab.page.wait_for_timeout(1_100)  # a process believes itself for a second
    await tab.page.get_by_role("link", name="Audit log").click()
    await tab.settled("Sign in")
    assert "Your session has ended" in await tab.page.inner_text("#news")
    await tab.check()
    await context.close()


@pytest.mark.deep
async def test_wrong_passwords_are_told_and_nothing_else(browser: Browser, bank: Bank) -> None:
    context, tab = await opened(browser, bank)
    await tab.page.goto(bank.url)
    for email in (bank.operator.email, "nobody@example.com"):
        await tab.page.get_by_label("E-mail address").fill(email)
        await tab.page.get_by_label("Password").fill("not the password at all")
        await tab.page.get_by_role("button", name="Sign in").click()
        problem = tab.page.get_by_role("alert")
        await problem.wait_for()
        assert "password" in (await problem.inner_text()).lower()
        assert await problem.evaluate("problem => problem === document.activeElement")
    await context.close()


async def test_a_foreign_page_can_neither_send_nor_read_nor_frame(browser: Browser, bank: Bank) -> None:
    """The operator is signed in in the same browser, and a page of somebody else tries."""
    context, tab = await opened(browser, bank)
    await tab.sign_in()
    before = await bank.desk.sql.fetchval("SELECT status FROM accounts WHERE id = $1", bank.account_id)
    evil = await context.new_page()

    async def served(route: Route) -> None:
        target = f"{bank.desk.server.url}/v1/accounts/{bank.account_id}/freeze"
        await route.fulfill(
            content_type="text/html",
            body=f'<iframe src="{bank.url}"></iframe><form method="post" action="{target}"><button>Win a prize</button></form>',
        )

    await context.route("http://evil.example/", served)
    await evil.goto("http://evil.example/")
    async with evil.expect_response(lambda response: response.url.endswith("/freeze")) as answer:
        await evil.get_by_role("button").click()
    assert (await answer.value).status == 401
    await evil.goto("http://evil.example/")
    read = await evil.evaluate(
        f"fetch('{bank.desk.server.url}/v1/users', {{credentials: 'include'}}).then(answer => answer.text()).catch(error => 'refused')"
    )
    assert read == "refused"
    framed = evil.frames[1]
    assert "Sign in" not in await framed.content()
    assert await bank.desk.sql.fetchval("SELECT status FROM accounts WHERE id = $1", bank.account_id) == before
    await tab.check()
    await context.close()


@pytest.mark.deep
async def test_texts_are_shown_as_they_are(console: Console, bank: Bank) -> None:
    """Wherever somebody else's words come onto a page."""
    for address, title in (
        ("users?search=ada", "Users and accounts"),
        (f"users/{bank.user_id}", "User"),
        (f"accounts/{bank.account_id}", "Account"),
        ("transactions?reference=salary", "Transactions"),
        (f"transactions/{bank.transaction_id}", "Transaction"),
        (f"payments/{bank.unknown['id']}", "Payment"),
        (f"events/{bank.unmatched['id']}", "Provider event"),
    ):
        await console.open(address, title)
        shown = await console.page.text_content("main") or ""
        assert ATTACK in shown or ATTACK.replace('"', '\\"') in shown, address
        assert await console.page.locator("main img").count() == 0
    await console.open("users?search=%3Cimg%20src%3Dx%20onerror%3D%22window.attacked%3Dtrue%22%3E", "Users and accounts")
    await console.open("no%22%3E%3Cimg%20src=x%20onerror=alert(1)%3E/such/page", "Not here")


async def test_the_policy_lets_in_no_script_but_ours(console: Console) -> None:
    """What an attacker would try, had they found a way to write onto the page."""
    # later, since what the tests evaluate themselves may do more than a page
    refused = await console.page.evaluate(
        """() => new Promise((resolve) => setTimeout(() => {
            const tries = {};
            const attempt = (name, act) => { try { act(); tries[name] = "done"; } catch (error) { tries[name] = error.name; } };
            attempt("innerHTML", () => { document.body.innerHTML += "<img src=x onerror='window.attacked = true'>"; });
            attempt("write", () => document.write("<script>window.attacked = true</script>"));
            attempt("eval", () => (0, eval)("window.attacked = true"));
            attempt("Function", () => new Function("window.attacked = true")());
            attempt("timer", () => setTimeout("window.attacked = true"));
            resolve(tries);
        }))"""
    )
    assert set(refused) == {"innerHTML", "write", "eval", "Function", "timer"}
    assert "done" not in refused.values(), refused
    await console.page.evaluate(
        """() => {
            const script = document.createElement("script");
            try { script.textContent = "window.attacked = true"; } catch { return; }
            document.body.append(script);
        }"""
    )
    assert await console.page.evaluate("window.attacked") is None
    assert [text for text in console.wrong if "Content Security Policy" in text or "TrustedHTML" in text or "TrustedScript" in text]
    console.wrong.clear()  # the browser told of each


# Without a browser ------------------------------------------------------------------------------------------------------


async def test_the_page_and_its_files(client: Client) -> None:  # noqa: F811 - a fixture
    page = await client.get("/console")
    assert page.headers["content-security-policy"] == console.POLICY
    assert page.headers["x-frame-options"] == "DENY"
    assert page.headers["cache-control"] == caching.PAGE
    assert "SIMULATOR" in page.text
    assert not re.search(r"<script(?![^>]*\bsrc=)|\bstyle=|\bon\w+=|https?://", page.text)
    loaded = re.findall(r'(?:src|href)="(console/[^"]+)"', page.text)
    assert len(loaded) == 4
    for address in loaded:
        answer = await client.get(f"/{address}")
        assert (answer.status_code, answer.headers["cache-control"]) == (200, caching.IMMUTABLE), address
        other = await client.get(f"/console/of-another-version/{address.split('/', 2)[2]}")
        assert (other.content, other.headers["cache-control"]) == (answer.content, caching.PAGE)
    version = loaded[0].split("/")[1]
    for name in console.files():
        assert (await client.get(f"/console/{version}/{name}")).status_code == 200
    for name in ("__init__.py", "console.html", "vendor/uplot.LICENSE", "../__init__.py", "%2e%2e/__init__.py", "pages"):
        assert (await client.get(f"/console/{version}/{name}")).status_code == 404, name


def test_modules_import_only_what_is_served_with_them() -> None:
    for name, body in console.files().items():
        if name.startswith("vendor/") or not name.endswith(".js"):
            continue
        for wanted in re.findall(r'from "([^"]+)"', body.decode()):
            assert wanted.startswith("."), (name, wanted)
            found = (PAGES / name).parent / wanted
            assert found.resolve().relative_to(PAGES).as_posix() in console.files(), (name, wanted)
        assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|https?://", body.decode()), name


def test_pages_ask_only_what_there_is() -> None:
    templates = [re.sub(r"{\w+}", "x", name.split()[1].lstrip("/")) for name in guards.ROUTES]
    asked = {path for name, body in console.files().items() for path in re.findall(r'["`](v1/[^"`?]*)["`]', body.decode())}
    assert len(asked) > 20
    for path in asked:
        pattern = re.compile("".join("[^/]+" if part.startswith("${") else re.escape(part) for part in re.split(r"(\${[^}]+})", path)))
        assert any(pattern.fullmatch(template) or template.startswith(f"{path}/") for template in templates), path


def test_the_scopes_of_the_form_are_those_that_there_are() -> None:
    text = (PAGES / "pages" / "keys.js").read_text(encoding="utf-8")
    assert dict(re.findall(r'^  "([a-z]+:[a-z]+)": "([^"]+)",$', text, re.MULTILINE)) == apikeys.SCOPES


def test_what_others_wrote_has_its_licence() -> None:
    assert "MIT License" in (PAGES / "vendor" / "uplot.LICENSE").read_text(encoding="utf-8")
    assert "Mozilla Public License" in (Path(__file__).parent / "axe" / "LICENSE").read_text(encoding="utf-8")
