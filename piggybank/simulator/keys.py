"""RSA keys and signatures: one pair of the company, one of each webhook.

RSASSA-PKCS1-v1_5 with SHA-256 over the raw bytes, in base64. The company's pair signs what goes to a purchase's success_callback.
"""

import asyncio
import base64
from functools import lru_cache

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from piggybank.simulator.book import Book

KEY_BITS = 2048
KEYS_CACHED = 256
_FACT_COMPANY_KEY = "company_private_key"


class Keys:
    """The company's pair."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self.company_private = ""

    async def open(self) -> None:
        """Load the company's pair; a new book gets one."""
        known = self._book.fact(_FACT_COMPANY_KEY)
        self.company_private = known or await new_private()
        if known is None:
            with self._book.writing():
                self._book.keep_fact(_FACT_COMPANY_KEY, self.company_private)


async def new_private() -> str:
    """A new private key in PEM; on a thread, since finding the primes takes a while."""
    return await asyncio.to_thread(_new_private)


def public_of(private: str) -> str:
    """The public half in PEM."""
    pem = _loaded(private).public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return pem.decode()


def sign(private: str, raw: bytes) -> str:
    """What X-Signature holds for these bytes."""
    return base64.b64encode(_loaded(private).sign(raw, padding.PKCS1v15(), hashes.SHA256())).decode()


def _new_private() -> str:
    key = rsa.generate_private_key(public_exponent=65_537, key_size=KEY_BITS)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem.decode()


@lru_cache(KEYS_CACHED)
def _loaded(private: str) -> rsa.RSAPrivateKey:
    key = serialization.load_pem_private_key(private.encode(), password=None)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key
