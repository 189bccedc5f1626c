"""Who a registry is asked as: the login that a Secret holds, and what the registry makes of it.

Nothing is sent before the registry asks for it (401). A password goes to the registry itself (Basic), or to the token
service that the registry names, as its protocol has it: whoever may name that service could as well ask for the
password. What is held on to is that neither is ever sent without TLS. A token goes to the registry alone.
https://distribution.github.io/distribution/spec/auth/token/
"""

import base64
import binascii
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_api.text import show
from llava_trainer.publishing.destination import Place
from llava_trainer.publishing.exchange import Answer, address_of, exchange, explain
from llava_trainer.publishing.refusals import refused, unavailable
from llava_trainer.retrying import TransientError
from llava_trainer.sources.credentials import read_credentials
from llava_trainer.sources.responses import Origin

DOCKER_CONFIG = ".dockerconfigjson"
_MAX_CONFIG_BYTES = 64 << 10
_DOCKER_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_CHALLENGE = re.compile(r"\s*(bearer|basic)\b(.*)", re.IGNORECASE | re.DOTALL)
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')
_TOKEN = re.compile(r"[!-~]{1,65536}")


@dataclass(frozen=True, kw_only=True)
class Login:
    """Never printed."""

    username: str = field(repr=False)
    password: str = field(repr=False)

    @property
    def basic(self) -> str:
        """The header's value."""
        return f"Basic {base64.b64encode(f'{self.username}:{self.password}'.encode()).decode()}"


def read_login(place: Place, host: str, repository: str) -> Login | None:
    """The login of the destination's Secret; None where it names none.

    Args:
        place: tells where the Secret is mounted.
        host: the registry, with its port.
        repository: of a Docker configuration the entry is taken that fits best.

    Raises:
        StageError: DestinationRefused or SourceRefused; the Secret has no login for this registry, or one that cannot
            be sent. What it holds is not told.
    """
    if not place.secrets.exists():
        return None
    if place.plain_http:
        raise refused(f"{place.what} is reached by plain HTTP (plainHttp), where no password is sent: leave one out")
    keys = read_credentials(place.secrets, place.secret_field)
    if keys.username is not None and keys.password is not None:
        return Login(username=keys.username, password=keys.password)
    config = place.secrets / DOCKER_CONFIG
    if not config.exists():
        raise refused(f"{place.secret_field}: the Secret must hold username and password, or {DOCKER_CONFIG}")
    entry = _find_entry(_read_config(place, config), host, repository)
    if entry is None:
        raise refused(f"{place.secret_field}: key {DOCKER_CONFIG} of the Secret has no entry for {host}: add it")
    return _read_entry(place, entry)


def _read_config(place: Place, file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            content = stream.read(_MAX_CONFIG_BYTES + 1)
        found = json.loads(content) if len(content) <= _MAX_CONFIG_BYTES else None
    except (OSError, ValueError, RecursionError):
        # Not "from error": that one holds the content.
        found = None
    entries = found.get("auths") if isinstance(found, dict) else None
    if not isinstance(entries, dict):
        raise refused(
            f"{place.secret_field}: key {DOCKER_CONFIG} of the Secret must be a Docker configuration with auths, as "
            "kubectl create secret docker-registry makes it"
        )
    return entries


def _find_entry(entries: dict[str, Any], host: str, repository: str) -> Any:
    """The entry of the registry, or of the longest beginning of the repository, as the kubelet chooses."""
    best: tuple[int, Any] = (0, None)
    for key, entry in entries.items():
        name, _, path = re.sub("^https?://", "", key).partition("/")
        path = re.sub("^v[12]/?$", "", path).strip("/")
        is_host = name == host or (name in _DOCKER_HUB and host in _DOCKER_HUB)
        is_path = not path or f"{repository}/".startswith(f"{path}/")
        if is_host and is_path and len(path) + 1 > best[0]:
            best = (len(path) + 1, entry)
    return best[1]


def _read_entry(place: Place, entry: Any) -> Login:
    given = entry if isinstance(entry, dict) else {}
    username, password = given.get("username"), given.get("password")
    if isinstance(packed := given.get("auth"), str):
        try:
            username, _, password = base64.b64decode(packed, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            username = None
    if not (isinstance(username, str) and username and isinstance(password, str) and password):
        raise refused(
            f"{place.secret_field}: the entry in key {DOCKER_CONFIG} of the Secret must hold auth, which is "
            "USERNAME:PASSWORD in base64, or username and password"
        )
    return Login(username=username, password=password)


class Access:
    """What is sent along to one registry.

    Args:
        place: the destination; its client asks the token service.
        registry: the registry's own address.
        repository: what is asked for.
        login: None asks as nobody, which a token service may allow.
    """

    def __init__(self, place: Place, registry: Origin, repository: str, login: Login | None) -> None:
        self._place = place
        self._registry = registry
        self._scope = f"repository:{repository}:pull,push"
        self._login = login
        self._authorization: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """For the registry's own address alone."""
        return {"Authorization": self._authorization} if self._authorization else {}

    def show_host(self, host: str) -> str:
        """A host that the registry has named, for messages; not one by which it repeats what it was sent."""
        login, token = self._login, (self._authorization or "").rpartition(" ")[2]
        known = (token, login.username, login.password, login.basic.rpartition(" ")[2]) if login else (token,)
        repeats = any(secret and secret.lower() in host.lower() for secret in known)
        return "..." if repeats else show(host, max_chars=100)

    def take_challenge(self, answer: Answer) -> None:
        """Get what a 401 asks for.

        Raises:
            StageError: DestinationRefused, DestinationUnavailable or those of sources.
            TransientError: the token service does not answer for now.
        """
        for value in answer.headers.get_list("WWW-Authenticate"):
            if (match := _CHALLENGE.match(value)) is None:
                continue
            parameters = dict(_PARAMETER.findall(match[2]))
            if match[1].lower() == "bearer":
                self._authorization = f"Bearer {self._ask_token(parameters)}"
                return
            if self._login is not None:
                self._authorization = self._login.basic
                return
        if self._login is None:
            raise refused(
                f"{self._place.what} wants to know who asks (HTTP 401): set {self._place.secret_field} to a Secret "
                f"with username and password, or {DOCKER_CONFIG}"
            )
        raise refused(f"{self._place.what} answers 401 and asks neither for Basic nor for a Bearer token: look at it")

    def _ask_token(self, parameters: dict[str, str]) -> str:
        realm = parameters.get("realm", "")
        try:
            url, (scheme, host, _) = address_of(realm)
        except ValueError:
            raise unavailable(f"{self._place.what} names no address of a token service (realm): look at it") from None
        told = f"{self._place.address}'s token service at {self.show_host(host)}"
        if self._registry[0] == "https" and scheme != "https":
            raise refused(f"{self._place.field}: {told} has no TLS, and nothing is sent there: give it TLS")
        asked = {"service": parameters.get("service", ""), "scope": self._scope}
        headers = {"Authorization": self._login.basic} if self._login else {}
        answer = exchange(self._place, "GET", url.copy_merge_params(asked), headers, told=told)
        if answer.status != 200:
            raise explain(self._place, answer, told=told)
        token = _find_token(answer.content)
        if token is None:
            raise TransientError(f"{told} gives no token")
        return token


def _find_token(content: bytes) -> str | None:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        return None
    found = (answer.get("token") or answer.get("access_token")) if isinstance(answer, dict) else None
    return found if isinstance(found, str) and _TOKEN.fullmatch(found) else None
