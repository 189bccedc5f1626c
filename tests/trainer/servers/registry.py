"""Debian's docker-registry as a process of its own, and a token service that it believes.

It speaks plain HTTP on loopback: TLS is the relay's (``relay``) that stands before it.
"""

import base64
import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from urllib.request import urlopen

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

from tests.ports import free_port
from tests.trainer.servers.files import Answer, FileServer, Request

USERNAME = "publisher"
PASSWORD = "pass:word of a test"
_HTPASSWD = f"{USERNAME}:$2y$04$abcdefghijklmnopqrstuuj3paAeemfge.ELzI2jrNWeZWqcj4DLi\n"
"""The same pair; the registry takes bcrypt alone, which Python has not."""
FULL = "full"
_MORE_BYTES = 1 << 20
_FILL = """
mount -t tmpfs -o size=$SIZE tmpfs $BLOBS && head -c $BALLAST /dev/zero > $BLOBS/ballast || exit 1
(while test -e $MARK && kill -0 $$; do sleep 0.05; done; rm $BLOBS/ballast) &
exec "$0" "$@"
"""
"""A file system of its own that another file fills, until somebody takes the mark away."""
_SERVICE = "registry of tests"
_LIFETIME_S = 300
_START_S = 20
_MEMORY = Path("/dev/shm")
"""The registry waits for the disk with each blob, which takes most of its time."""


@contextmanager
def run_registry(
    program: Path, folder: Path, auth: dict[str, Any] | None = None, *, max_bytes: int | None = None
) -> Iterator[str]:
    """Serve; yields the address.

    Args:
        program: docker-registry.
        folder: for configuration and log.
        auth: its configuration's section; None lets anybody do anything.
        max_bytes: room for blobs, as long as there is a file named FULL in the folder; then a megabyte more.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else folder) as blobs:
        yield from _serve(program, folder, Path(blobs), port, auth, max_bytes)


def _serve(
    program: Path, folder: Path, blobs: Path, port: int, auth: dict[str, Any] | None, max_bytes: int | None
) -> Iterator[str]:
    config = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(blobs)}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "of tests"},
        **({"auth": auth} if auth else {}),
    }
    file = folder / "config.yml"
    file.write_text(json.dumps(config))
    command = [str(program), "serve", str(file)]
    environ = dict(os.environ)
    if max_bytes is not None:
        (folder / FULL).touch()
        command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _FILL, *command]
        environ |= {"BLOBS": str(blobs), "SIZE": str(max_bytes + _MORE_BYTES), "BALLAST": str(_MORE_BYTES),
                    "MARK": str(folder / FULL)}  # fmt: skip
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log, env=environ) as process:
        try:
            base = f"http://127.0.0.1:{port}"
            _wait(base, process, folder / "log")
            yield base
        finally:
            process.terminate()


def _wait(base: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError), urlopen(base, timeout=5):
            return
        time.sleep(0.02)
    raise AssertionError(log.read_text())


def htpasswd_auth(folder: Path) -> dict[str, Any]:
    """``auth`` that lets USERNAME in with PASSWORD, by Basic."""
    file = folder / "htpasswd"
    file.write_text(_HTPASSWD)
    return {"htpasswd": {"realm": "tests", "path": str(file)}}


class TokenService(FileServer):
    """Gives tokens for USERNAME and PASSWORD, as https://distribution.github.io/distribution/spec/auth/jwt/ has it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tokens of tests")])
        now = datetime.now(UTC)
        self._certificate = (
            x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )  # fmt: skip
        self._bundle = folder / "tokens.pem"
        self._bundle.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))
        self.given: list[str] = []

    def auth(self) -> dict[str, Any]:
        """``auth`` of the registry that believes these tokens."""
        return {
            "token": {
                "realm": f"{self.base}/token", "service": _SERVICE, "issuer": "tests",
                "rootcertbundle": str(self._bundle),
            }
        }  # fmt: skip

    def answer(self, request: Request) -> Answer:
        pair = base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
        if request.path != "/token" or request.authorization != f"Basic {pair}":
            return Answer(status=401)
        asked = {name: values[0] for name, values in parse_qs(request.query).items()}
        assert asked["service"] == _SERVICE
        kind, name, actions = asked["scope"].split(":")
        assert kind == "repository"
        return Answer(status=200, body=json.dumps({"token": self.give(name, *actions.split(","))}).encode())

    def give(self, repository: str, *actions: str) -> str:
        """A token that allows something."""
        now = int(time.time())
        claims = {
            "iss": "tests", "sub": USERNAME, "aud": _SERVICE, "iat": now, "nbf": now - 60, "exp": now + _LIFETIME_S,
            "jti": str(len(self.given)), "access": [{"type": "repository", "name": repository, "actions": actions}],
        }  # fmt: skip
        token = self._sign(claims)
        self.given.append(token)
        return token

    def _sign(self, claims: dict[str, Any]) -> str:
        certificate = base64.b64encode(self._certificate.public_bytes(serialization.Encoding.DER)).decode()
        header = {"typ": "JWT", "alg": "ES256", "x5c": [certificate]}
        signed = ".".join(_pack(json.dumps(part).encode()) for part in (header, claims))
        r, s = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_pack(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _pack(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
