"""Passwords: argon2id, a few at a time, never on the event loop.

One hash takes MEMORY_KIB of memory and tens of milliseconds of a core, so a process works on CONCURRENT of them and lets
WAITING_MAX more wait; beyond that it says `overloaded`. Never hold a transaction while waiting for a turn.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from piggybank import errors

MIN_CHARACTERS = 10
MAX_CHARACTERS = 256
MEMORY_KIB = 47_104  # with TIME_COST and one lane: what OWASP's cheat sheet asks for, and more passes
TIME_COST = 2  # passes
CONCURRENT = 2  # hashes at once, 92 MiB
WAITING_MAX = 64  # callers

_HASHER = PasswordHasher(time_cost=TIME_COST, memory_cost=MEMORY_KIB, parallelism=1)
_TURNS = asyncio.Semaphore(CONCURRENT)
_NOBODYS_PASSWORD = "there is nobody with this password"  # noqa: S105 - hashed once, so that unknown addresses cost the same work

# Of the lists of leaked passwords, those that are long enough to pass the length rule.
_COMMON = frozenset(
    """
    0000000000 0123456789 1111111111 1122334455 1212121212 1231231231 12345123451 1234512345 1234554321 1234567890 12345678900
    12345678901 123456789012 1234567891 12345678910 123456789a 123456789q 12345qwert 123qwe123qwe 147258369 1q2w3e4r5t 1q2w3e4r5t6y
    1qaz2wsx3edc 2222222222 3333333333 5555555555 6666666666 7777777777 8888888888 9876543210 9999999999 a123456789 aaaaaaaaaa
    abc1234567 abcd123456 abcd1234567 abcdefghij administrator alexander1 asdfasdfasdf asdfghjkl1 asdfghjkl; asdfghjklz bangladesh
    baseball123 basketball basketball1 changeme123 charlie123 chocolate1 christopher christopher1 computer123 dragonball
    elizabeth1 football123 football1234 fuckyou123 helloworld iloveyou12 iloveyou123 iloveyouso internet123 jordan23jordan
    letmein123 letmein1234 liverpool1 liverpoolfc manchester manchester1 michelle123 mynoob1234 p@ssword123 p@ssw0rd123
    passw0rd123 password00 password01 password10 password11 password12 password123 password1234 password12345 password123456
    password123! password2024 password2025 password2026 password99 passwordpassword piggybank1 piggybank12 piggybank123 pokemon123
    princess123 princess12 q1w2e3r4t5 q1w2e3r4t5y6 qazwsxedc123 qazwsxedcrfv qwer123456 qwerty1234 qwerty12345 qwerty123456 qwertyqwerty
    qwertyuiop qwertyuiop1 qwertyuiop123 qwertyuiop[] sunshine123 superman123 sweetheart trustno1trustno1 veryveryveryfast
    welcome123 welcome1234 welcome2024 welcome2025 welcome2026 zaq12wsxcde3 zaq1xsw2cde3 zxcvbnm123 zxcvbnm1234 zxcvbnmasd zxcvbnm,./
    """.split()  # noqa: SIM905 - words read better without a hundred quotes
)


def check(password: str, email: str | None) -> None:
    """Raises `errors.WeakPassword`."""
    if not MIN_CHARACTERS <= len(password) <= MAX_CHARACTERS:
        raise errors.WeakPassword(allowed=f"{MIN_CHARACTERS} to {MAX_CHARACTERS} characters")
    plain = password.lower().strip()
    if plain in _COMMON or len(set(plain)) == 1:
        raise errors.WeakPassword(allowed="not one of the most common passwords")
    if email and plain in (email, email.partition("@")[0]):
        raise errors.WeakPassword(allowed="not the e-mail address")


class Turn:
    """The right to hash, for as long as the block of `turn()` lasts."""

    _dummy_hash = ""

    async def hash(self, password: str) -> str:
        """The string to store: parameters, salt and hash."""
        return await asyncio.to_thread(_HASHER.hash, password)

    async def matches(self, stored: str | None, password: str) -> bool:
        """True when `stored` was made of `password`; None takes as long and is False."""
        if stored is None:
            Turn._dummy_hash = Turn._dummy_hash or await self.hash(_NOBODYS_PASSWORD)
        try:
            matched = await asyncio.to_thread(_HASHER.verify, stored or Turn._dummy_hash, password)
        except (VerificationError, InvalidHashError):
            return False
        return matched and stored is not None


@asynccontextmanager
async def turn() -> AsyncIterator[Turn]:
    """Wait for a place; raises `errors.Overloaded` when too many wait."""
    waiting = _Waiting.count
    if waiting >= WAITING_MAX:
        raise errors.Overloaded
    _Waiting.count += 1
    try:
        await _TURNS.acquire()
    finally:
        _Waiting.count -= 1
    try:
        yield Turn()
    finally:
        _TURNS.release()


def is_outdated(stored: str) -> bool:
    """True when `stored` was made with other parameters than today's."""
    return _HASHER.check_needs_rehash(stored)


class _Waiting:
    count = 0
