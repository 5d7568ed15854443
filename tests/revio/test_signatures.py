"""Keys in every form that people paste, and signatures over exactly these bytes."""

import base64
import json

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from piggybank.revio import signatures

KEY = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
OTHER = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


PEM = pem(KEY)
FORMS = {
    "as it is": PEM,
    "a JSON string": json.dumps(PEM),
    "literal backslash-n": PEM.replace("\n", "\\n"),
    "literal backslash-r-n": PEM.replace("\n", "\\r\\n"),
    "double quotes": f'"{PEM}"',
    "single quotes": f"'{PEM}'",
    "quotes and literal backslash-n": '"' + PEM.replace("\n", "\\n") + '"',
    "one line": PEM.replace("\n", " "),
    "no line ends at all": PEM.replace("\n", ""),
    "windows": PEM.replace("\n", "\r\n"),
    "indented": "\n".join("    " + line for line in PEM.splitlines()),
    "blank lines around": "\n\n" + PEM + "\n\n\n",
    "with a name before it": "REVIO_KEY=" + PEM,
    "PKCS1": KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.PKCS1).decode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_key(form: str) -> None:
    assert signatures.public_keys(FORMS[form]) == [PEM]


def test_several_at_once() -> None:
    assert signatures.public_keys(PEM + pem(OTHER)) == [PEM, pem(OTHER)]
    assert signatures.public_keys((PEM + pem(OTHER)).replace("\n", "\\n")) == [PEM, pem(OTHER)]


def test_fingerprints_tell_keys_apart() -> None:
    assert signatures.fingerprint(PEM) != signatures.fingerprint(pem(OTHER))
    assert len(signatures.fingerprint(PEM)) == 16


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no '-----BEGIN"),
        ("ssh-rsa AAAA", "no '-----BEGIN"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "cannot be read|not a public key"),
        (pem(ec.generate_private_key(ec.SECP256R1())), "not an RSA key"),
        (pem(rsa.generate_private_key(public_exponent=65_537, key_size=1_024)), "1024 bits"),  # too short on purpose
        (
            KEY.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode(),
            "private key",
        ),
        (PEM * 100, "longer than"),
    ],
    ids=["nothing", "ssh", "broken", "not RSA", "short", "private", "long"],
)
def test_what_is_no_key_is_named(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        signatures.public_keys(text)


def test_a_signature_is_of_these_bytes() -> None:
    body = b'{"id":"1"}'
    signed = base64.b64encode(KEY.sign(body, padding.PKCS1v15(), hashes.SHA256())).decode()
    assert signatures.is_signed(body, signed, [PEM])
    assert signatures.is_signed(body, signed, [pem(OTHER), PEM])  # while one is changed for another
    assert not signatures.is_signed(body, signed, [pem(OTHER)])
    assert not signatures.is_signed(body, signed, [])
    assert not signatures.is_signed(b'{"id": "1"}', signed, [PEM])
    assert not signatures.is_signed(body, None, [PEM])
    assert not signatures.is_signed(body, "", [PEM])
    sha1 = base64.b64encode(KEY.sign(body, padding.PKCS1v15(), hashes.SHA512())).decode()
    assert not signatures.is_signed(body, sha1, [PEM])
    pss = base64.b64encode(KEY.sign(body, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())).decode()
    assert not signatures.is_signed(body, pss, [PEM])
