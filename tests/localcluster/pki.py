"""Certificates and kubeconfigs, made with the openssl program: Python's standard library signs nothing."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass
from pathlib import Path

from tests.localcluster.shell import run

_DAYS = "3650"
_EC_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Authority:
    """The instance's certificate authority: everyone in the cluster trusts it, nobody else does."""

    folder: Path

    @property
    def certificate(self) -> Path:
        """The authority's own certificate."""
        return self.folder / "ca.crt"

    @property
    def key(self) -> Path:
        """The authority's private key."""
        return self.folder / "ca.key"

    def certificate_of(self, name: str) -> Path:
        """Where the certificate called `name` lies."""
        return self.folder / f"{name}.crt"

    def key_of(self, name: str) -> Path:
        """Where the private key called `name` lies."""
        return self.folder / f"{name}.key"

    def issue(self, name: str, subject: str, alternative_names: str) -> None:
        """Sign a certificate, good for a server and a client; subject as openssl writes it (/O=…/CN=…)."""
        request = self.folder / f"{name}.csr"
        run(
            ["openssl", "req", *_EC_KEY, "-subj", subject, "-keyout", self.key_of(name), "-out", request,
             "-addext", f"subjectAltName={alternative_names}"],
            what=f"making the key of {name}",
            timeout_s=30,
        )  # fmt: skip
        run(
            ["openssl", "x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.key,
             "-CAcreateserial", "-days", _DAYS, "-copy_extensions", "copy", "-out", self.certificate_of(name)],
            what=f"signing the certificate of {name}",
            timeout_s=30,
        )  # fmt: skip
        request.unlink()

    def kubeconfig(self, name: str, api_url: str) -> str:
        """A kubeconfig (JSON, which is YAML too) that carries the certificate called `name`."""

        def embedded(path: Path) -> str:
            return base64.b64encode(path.read_bytes()).decode()

        cluster = {"server": api_url, "certificate-authority-data": embedded(self.certificate)}
        user = {
            "client-certificate-data": embedded(self.certificate_of(name)),
            "client-key-data": embedded(self.key_of(name)),
        }
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "localcluster", "cluster": cluster}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "localcluster", "context": {"cluster": "localcluster", "user": name}}],
            "current-context": "localcluster",
        }
        return json.dumps(config, indent=2) + "\n"


def create_authority(folder: Path) -> Authority:
    """Make an authority and the key pair that signs service-account tokens (sa.key, sa.pub)."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    authority = Authority(folder)
    run(
        ["openssl", "req", "-x509", *_EC_KEY, "-days", _DAYS, "-subj", "/CN=localcluster-ca",
         "-keyout", authority.key, "-out", authority.certificate],
        what="making the certificate authority",
        timeout_s=30,
    )  # fmt: skip
    private, public = folder / "sa.key", folder / "sa.pub"
    run(
        ["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", private],
        what="making the service-account key",
        timeout_s=30,
    )
    run(
        ["openssl", "pkey", "-in", private, "-pubout", "-out", public],
        what="writing the service-account public key",
        timeout_s=30,
    )
    return authority


def write_private(path: Path, text: str) -> Path:
    """Write a file that holds a key: readable by its owner alone from the first byte on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    return path
