"""What is sent, where and by which way out: the delivery with what is in the files beside it, all of it checked."""

import base64
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from llava_api.addresses import ANYTHING, is_allowed_address, is_spared, show_host
from llava_api.constants import NOTIFICATION_KEYS, PROXY_KEYS
from llava_api.delivery import Delivery
from llava_notifier.signature import SigningKeyError, read_key

MAX_FILE = 64 * 1024
_TOKEN = "[!-~]+"
_DEFAULT_PORTS = {"https": 443, "http": 80}


class SetupError(Exception):
    """Something is set wrongly, and would be the next time; the message holds nothing of a Secret."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where things are mounted; what is missing was not asked for."""

    secret: Path
    proxies: Path
    authorities: Path


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """A proxy, and who we are to it."""

    url: str = field(repr=False)
    authorization: str = field(default="", repr=False)
    """Value of the header; empty where it wants none."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything about a request that is the same over all tries."""

    url: str = field(repr=False)
    host: str
    """Scheme, host and port: all that may be shown of the address."""
    event_id: str
    body: bytes = field(repr=False)
    headers: dict[str, str] = field(repr=False)
    signing_key: bytes | None = field(repr=False)
    proxy: Proxy | None
    context: ssl.SSLContext


def build_request(delivery: Delivery, files: Files) -> Request:
    """Put together what is sent.

    Raises:
        SetupError: a key is missing or makes no sense, or the address is not allowed.
    """
    url = delivery.url or _read_text(files.secret / NOTIFICATION_KEYS["url"])
    if url is None:
        raise SetupError("the Secret of the notification has no key url")
    if not is_allowed_address(url, delivery.allowed_hosts, insecure=delivery.insecure):
        raise SetupError(_refuse_address(url, delivery))
    headers = {"Content-Type": delivery.content_type, "User-Agent": "llava-finetune-operator"}
    bearer = _read_text(files.secret / NOTIFICATION_KEYS["bearer"])
    if bearer is not None:
        if not re.fullmatch(_TOKEN, bearer):
            raise SetupError("the key bearer of the notification's Secret must be a token of printable ASCII")
        headers["Authorization"] = f"Bearer {bearer}"
    return Request(
        url=url, host=show_host(url), event_id=delivery.id, body=delivery.body.encode(), headers=headers,
        signing_key=_read_signing_key(files.secret) if delivery.is_signed else None,
        proxy=_choose_proxy(url, delivery, files.proxies), context=_build_context(files.authorities),
    )  # fmt: skip


def _refuse_address(url: str, delivery: Delivery) -> str:
    host = show_host(url)
    where = _name_address(delivery)
    if not host:
        return f"{where} must be https://HOST/PATH, without user name and password"
    if host.startswith("http://") and not delivery.insecure:
        return f"{where} is at {host}, but this installation sends notifications by https only"
    return f"{where} is at {host}, which this installation does not allow (policy.notificationHosts)"


def _name_address(delivery: Delivery) -> str:
    return "the notification's address" if delivery.url else "the address in the key url of the notification's Secret"


def _read_signing_key(folder: Path) -> bytes:
    name = NOTIFICATION_KEYS["signing"]
    found = _read(folder / name)
    if found is None:
        raise SetupError(f"the Secret of the notification has no key {name}, and requests are to be signed")
    try:
        return read_key(found)
    except SigningKeyError as error:
        raise SetupError(f"the key {name} of the notification's Secret {error}") from None


def _choose_proxy(url: str, delivery: Delivery, secret: Path) -> Proxy | None:
    """The proxy for an address, as for sources; the run's own word comes before the Secret's."""
    parts = urlsplit(url)
    try:
        port = parts.port or _DEFAULT_PORTS[parts.scheme]
    except ValueError:
        raise SetupError(
            f"{_name_address(delivery)} is at {show_host(url)}: its port must be a number up to 65535"
        ) from None
    http_key, https_key = PROXY_KEYS
    said, key = (delivery.https_proxy, https_key) if parts.scheme == "https" else (delivery.http_proxy, http_key)
    proxy = said or _read_text(secret / key)
    if not proxy or is_spared(delivery.no_proxy, parts.hostname or "", port):
        return None
    if parts.scheme == "http" and delivery.is_proxy_own and ANYTHING not in delivery.allowed_hosts:
        # It would read what only these hosts are to get, and answer in their place.
        raise SetupError(
            f"{_name_address(delivery)} is at {show_host(url)}, but this installation sends notifications by plain "
            "HTTP through no proxy of a run's own: use https, or leave out httpProxy and secretRef of spec.download"
        )
    try:
        found = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        host = f"[{found.hostname}]" if ":" in (found.hostname or "") else found.hostname
        place = f"{host}:{found.port or _DEFAULT_PORTS[found.scheme]}"
    except (ValueError, KeyError):
        found = None
    if found is None or not found.hostname:
        # Not the value: it may hold a password.
        raise SetupError(f"spec.download.{key}, or the key {key} of its Secret, must be http://HOST:PORT") from None
    authorization = ""
    if found.username:
        credentials = f"{unquote(found.username)}:{unquote(found.password or '')}"
        authorization = f"Basic {base64.b64encode(credentials.encode()).decode()}"
    return Proxy(url=f"{found.scheme}://{place}", authorization=authorization)


def _build_context(authorities: Path) -> ssl.SSLContext:
    """Trust in the image's authorities and in those that the run names."""
    context = ssl.create_default_context()
    found = _read(authorities)
    if found is not None:
        try:
            context.load_verify_locations(cadata=found.decode(errors="replace"))
        except (ssl.SSLError, ValueError):
            raise SetupError("spec.download.caConfigMap: ca.crt must hold certificates in PEM form") from None
    return context


def _read_text(file: Path) -> str | None:
    found = _read(file)
    return None if found is None else found.decode(errors="replace").strip()


def _read(file: Path) -> bytes | None:
    try:
        with file.open("rb") as opened:
            return opened.read(MAX_FILE)
    except (FileNotFoundError, NotADirectoryError):
        return None
