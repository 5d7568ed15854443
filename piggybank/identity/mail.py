"""Mails to people, through the operator's SMTP server.

Beyond this machine a mail goes only over TLS with a verified certificate: `smtps://` from the first byte, `smtp://` by STARTTLS.
"""

import asyncio
import smtplib
import ssl
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from urllib.parse import unquote, urlsplit

from piggybank import errors
from piggybank.settings import Settings

TIMEOUT_S = 10
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_PORTS = {"smtp": 587, "smtps": 465}

_RESET = """\
Somebody, probably you, asked for a new password at {url}.

Open this link within an hour to set it; it works once:

{link}

If it was not you, do nothing: the password stays as it is.
"""


async def send_reset(settings: Settings, email: str, link: str) -> None:
    """Send the link; raises `errors.MailFailed`."""
    await send(settings, email, "Set a new password", _RESET.format(url=settings.url, link=link))


async def send(settings: Settings, email: str, subject: str, content: str) -> None:
    """Send a mail; raises `errors.MailFailed`."""
    message = EmailMessage()
    message["Subject"] = subject
    message["From"] = settings.mail_from
    message["To"] = email
    message["Date"] = formatdate(usegmt=True)
    message["Message-ID"] = make_msgid(domain=settings.mail_from.rpartition("@")[2].strip(" >") or None)
    message.set_content(content)
    try:
        await asyncio.to_thread(_send, settings.smtp_url, message)
    except (OSError, smtplib.SMTPException) as cause:
        # of the server's words nothing: they may hold the address
        raise errors.MailFailed(reason=type(cause).__name__) from cause


def can_send(settings: Settings) -> bool:
    """True where the operator set a server and a sender."""
    return bool(settings.smtp_url and settings.mail_from)


def _send(url: str, message: EmailMessage) -> None:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    context = ssl.create_default_context()
    if parts.scheme == "smtps":
        server: smtplib.SMTP = smtplib.SMTP_SSL(host, port, timeout=TIMEOUT_S, context=context)
    else:
        server = smtplib.SMTP(host, port, timeout=TIMEOUT_S)
    with server:
        server.ehlo()
        if parts.scheme == "smtp" and (server.has_extn("starttls") or host not in _LOOPBACK):
            server.starttls(context=context)
            server.ehlo()
        if parts.username:
            server.login(unquote(parts.username), unquote(parts.password or ""))
        server.send_message(message)
