"""Signatures of events: RSASSA-PKCS1-v1_5 with SHA-256 over the raw body, base64 in `X-Signature`.

Verified before anything is parsed: a body that was decoded and encoded again no longer fits. Each webhook has a key pair of its own,
and while one is changed for another both are good.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from functools import lru_cache

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

KEY_LEAST_BITS = 2_048
PEM_MAX_CHARACTERS = 16_384
SIGNATURE_MAX_CHARACTERS = 2_048
_BLOCK = re.compile(r"-----BEGIN ([A-Z ]+)-----(.*?)-----END \1-----", re.DOTALL)
_LINE_CHARACTERS = 64


def public_keys(text: str) -> list[str]:
    """The PEMs in what somebody pasted: one or several, as a JSON string, in quotes, with literal backslash-n, on one line, indented.

    Each comes back in one spelling. Raises ValueError, saying what is wrong, also when there is none.
    """
    if len(text) > PEM_MAX_CHARACTERS:
        raise ValueError(f"longer than {PEM_MAX_CHARACTERS} characters")
    plain = text.strip()
    if plain.startswith('"'):  # GET /public_key/ answers a JSON string
        try:
            plain = msgspec.json.decode(plain, type=str)
        except msgspec.MsgspecError:
            plain = plain.strip('"')
    plain = plain.replace("\\r", "").replace("\\n", "\n")
    found = [_normal(kind, inside) for kind, inside in _BLOCK.findall(plain)]
    if not found:
        raise ValueError("no '-----BEGIN PUBLIC KEY-----' in it")
    return found


def _normal(kind: str, inside: str) -> str:
    if "PRIVATE" in kind:
        raise ValueError("this is a private key: paste the public one")
    letters = "".join(inside.split())
    lines = [letters[start : start + _LINE_CHARACTERS] for start in range(0, len(letters), _LINE_CHARACTERS)]
    pem = "\n".join([f"-----BEGIN {kind}-----", *lines, f"-----END {kind}-----", ""])
    key = _loaded(pem)
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


@lru_cache(64)
def _loaded(pem: str) -> rsa.RSAPublicKey:
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as cause:
        raise ValueError("not a public key that can be read") from cause
    if not isinstance(key, rsa.RSAPublicKey):
        raise ValueError("not an RSA key")
    if key.key_size < KEY_LEAST_BITS:
        raise ValueError(f"only {key.key_size} bits: {KEY_LEAST_BITS} are the least")
    return key


def fingerprint(pem: str) -> str:
    """What a key is called: 16 hexadecimal digits of its hash."""
    raw = _loaded(pem).public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(raw).hexdigest()[:16]


def is_signed(body: bytes, header: str | None, pems: Iterable[str]) -> bool:
    """True when one of the keys made this signature of exactly these bytes. About 50 us a key."""
    if not header or len(header) > SIGNATURE_MAX_CHARACTERS:
        return False
    try:
        signature = base64.b64decode(header.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        return False
    for pem in pems:
        try:
            _loaded(pem).verify(signature, body, padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature:
            continue
        return True
    return False
