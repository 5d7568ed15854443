"""Reset mails through a real SMTP server on this machine."""

import asyncio
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes
from typing import Any

import msgspec
import pytest
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session
from sqlalchemy import text

from piggybank import errors
from piggybank.appliance import store_files
from piggybank.cache import Cache
from piggybank.db.engines import Database
from piggybank.identity import mail, resets, sessions
from piggybank.identity.tokens import Tokens
from piggybank.jobs import outbox
from piggybank.jobs.work import Work
from piggybank.ledger import Ledger
from piggybank.settings import Settings
from piggybank.wallet.provider import Provider
from tests.identity.conftest import PASSWORD, MakeUser

NEW_PASSWORD = "another long sentence"


class Postbox:
    """Takes every mail and keeps it; says so when the connection was encrypted."""

    def __init__(self) -> None:
        self.mails: list[tuple[list[str], str]] = []
        self.encrypted: list[bool] = []

    async def handle_DATA(self, _: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd calls it so
        assert isinstance(envelope.content, bytes)
        payload = message_from_bytes(envelope.content).get_payload(decode=True)
        assert isinstance(payload, bytes)
        self.mails.append((envelope.rcpt_tos, payload.decode()))
        self.encrypted.append(session.ssl is not None)
        return "250 taken"


@contextmanager
def smtp_server(**options: Any) -> Iterator[tuple[Postbox, int]]:
    postbox, port = Postbox(), store_files.free_ports(1)[0]
    controller = Controller(postbox, hostname="127.0.0.1", port=port, **options)
    controller.start()
    try:
        yield postbox, port
    finally:
        controller.stop()


def with_mail(settings: Settings, url: str) -> Settings:
    return msgspec.structs.replace(
        settings, smtp_url=url, mail_from="Piggybank <wallet@example.com>", public_url="https://wallet.example.com"
    )


async def send(settings: Settings, url: str) -> None:
    await mail.send_reset(with_mail(settings, url), "ada@example.com", "https://wallet.example.com/welcome#reset=x")


async def test_from_the_request_to_the_new_password(
    settings: Settings, db: Database, cache: Cache, tokens: Tokens, make_user: MakeUser
) -> None:
    user = await make_user()
    assert user.email is not None
    with smtp_server() as (postbox, port):
        set_up = with_mail(settings, f"smtp://127.0.0.1:{port}")
        await resets.request(db, f" {user.email.upper()} ", set_up.url)
        await resets.request(db, user.email, set_up.url)  # a second request at once is no second mail
        await asyncio.sleep(outbox.OLDER_THAN_S)
        await outbox.send_mails(Work(set_up, db, cache, Ledger(db, cache), Provider(set_up, db)))
        await outbox.send_mails(Work(set_up, db, cache, Ledger(db, cache), Provider(set_up, db)))
    assert [to for to, _ in postbox.mails] == [[user.email]]
    found = re.search(r"https://wallet\.example\.com/welcome#reset=(pbl_[\w-]{43})\s", postbox.mails[0][1])
    assert found
    await resets.set_password(db, tokens, found[1], NEW_PASSWORD)
    await sessions.sign_in(db, tokens, user.email, NEW_PASSWORD)
    with pytest.raises(errors.WrongCredentials):
        await sessions.sign_in(db, tokens, user.email, PASSWORD)


async def test_an_unknown_address_gets_no_mail_and_the_same_answer(db: Database, email: str) -> None:
    counted = text("SELECT (SELECT count(*) FROM links) + (SELECT count(*) FROM outbox WHERE topic = 'mail.reset')")
    async with db.read() as read:
        before = await read.scalar(counted)
    await resets.request(db, email, "http://127.0.0.1")
    async with db.read() as read:
        assert await read.scalar(counted) == before


async def test_a_server_that_is_away_or_not_encrypted_is_said(settings: Settings) -> None:
    with pytest.raises(errors.MailFailed) as said:
        await send(settings, f"smtp://127.0.0.1:{store_files.free_ports(1)[0]}")
    assert "ada" not in str(said.value)
    with smtp_server() as (postbox, port), pytest.raises(errors.MailFailed):
        await send(settings, f"smtps://127.0.0.1:{port}")
    assert postbox.mails == []


async def test_starttls_is_used_where_it_is_offered_and_the_certificate_is_verified(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with smtp_server(tls_context=context) as (postbox, port):
        with pytest.raises(errors.MailFailed):
            await send(settings, f"smtp://127.0.0.1:{port}")
        assert postbox.mails == []
        with authority.cert_pem.tempfile() as trusted:
            monkeypatch.setenv("SSL_CERT_FILE", trusted)
            await send(settings, f"smtp://127.0.0.1:{port}")
    assert postbox.encrypted == [True]
