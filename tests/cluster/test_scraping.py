"""Metrics over TLS against a real API server, by a real operator with the chart's rights: who gets them."""

import asyncio
import base64
import json
import ssl
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
import yaml
from aiohttp import web
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from llava_api.constants import TOKEN_AUDIENCE
from llava_operator.kube.kinds import SUBJECT_ACCESS_REVIEWS, TOKEN_REVIEWS
from llava_operator.scraping.access import STRANGERS
from llava_operator.telemetry.contract import OPERATOR_FAMILIES, PREFIX_OPERATOR
from tests.cluster.operators import OperatorProcess, install
from tests.cluster.test_api_errors import Proxy
from tests.kubectl import Kubectl, KubectlError, wait_for
from tests.localcluster.modules import PROMETHEUS_OPERATOR, PROMETHEUS_OPERATOR_CRDS, fetch_module
from tests.localcluster.tools import HELM, ensure_tools
from tests.ports import free_port
from tests.rendering import NAMESPACE as SYSTEM_NAMESPACE
from tests.rendering import render

pytestmark = pytest.mark.cluster

NAME, MONITORING = "secure-operator", "scraping-test"
READER, STRANGER, GONE = "reader", "stranger", "gone"
"""ServiceAccounts: one with the role, one without, and one that is deleted."""
HOST = f"{NAME}-metrics.{SYSTEM_NAMESPACE}.svc"


@pytest.fixture(scope="module")
def monitoring(api_server: Kubectl, installation: Path) -> Iterator[Kubectl]:
    """A namespace as that of a Prometheus: its ServiceAccount has the role that the chart makes for readers."""
    api_server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": MONITORING}})
    kubectl = replace(api_server, namespace=MONITORING)
    for account in (READER, STRANGER, GONE):
        kubectl.run("create", "serviceaccount", account)
    role = f"{NAME}-metrics-reader"
    subject = f"--serviceaccount={MONITORING}:{READER}"
    kubectl.run("create", "clusterrolebinding", MONITORING, f"--clusterrole={role}", subject)
    yield kubectl
    api_server.run("delete", "clusterrolebinding", MONITORING)
    api_server.run("delete", "namespace", MONITORING, "--wait=false")


@pytest.fixture(scope="module")
def secure(api_server: Kubectl, installation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kubeconfig with the rights that the chart gives an operator that serves its metrics securely."""
    return install(api_server, tmp_path_factory.mktemp("secure"), NAME, "--set", "metrics.secure=true")


def token_of(kubectl: Kubectl, account: str, *arguments: str) -> str:
    return kubectl.run("create", "token", account, "--duration=1h", *arguments).strip()


def decode(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def encode(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def expire(token: str, key: Path) -> str:
    """The same token with its end in the past, signed anew by the cluster's own key."""
    head, claims, _ = token.split(".")
    over = datetime.now(UTC) - timedelta(hours=1)
    times = {"exp": int(over.timestamp()), "iat": int(over.timestamp()) - 600, "nbf": int(over.timestamp()) - 600}
    text = f"{head}.{encode(json.dumps(json.loads(decode(claims)) | times).encode())}"
    signer = serialization.load_pem_private_key(key.read_bytes(), password=None)
    assert isinstance(signer, rsa.RSAPrivateKey)
    return f"{text}.{encode(signer.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


@dataclass
class Served:
    """An operator that serves its metrics securely, and the proxy before its API server."""

    operator: OperatorProcess
    port: int
    authority: str
    proxy: Proxy
    asked: Counter[str]

    async def get(self, token: str = "", source: str = "127.0.0.1") -> tuple[int, str]:
        """Status and text of a scrape over a connection of its own."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        trusted = ssl.create_default_context(cadata=self.authority)
        connector = aiohttp.TCPConnector(local_addr=(source, 0))
        async with (
            aiohttp.ClientSession(headers=headers, connector=connector) as session,
            session.get(f"https://127.0.0.1:{self.port}/metrics", ssl=trusted, server_hostname=HOST) as answer,
        ):
            return answer.status, await answer.text()


@asynccontextmanager
async def serving(api_server: Kubectl, secure: Path, folder: Path) -> AsyncIterator[Served]:
    system = replace(api_server, namespace=SYSTEM_NAMESPACE)
    proxy = Proxy(secure)
    asked: Counter[str] = Counter()

    def count(request: web.BaseRequest) -> int | None:
        asked[request.path] += request.method == "POST"
        return None

    proxy.refuse = count
    port = free_port()
    # Nothing here is about leading: a machine that is busy shall not end it.
    times = {"LEASE_DURATION_SECONDS": "120", "LEASE_RENEW_DEADLINE_SECONDS": "60"}
    extra = {"NAME": NAME, "METRICS_SECURE": "true", "METRICS_PORT": str(port), **times}
    async with proxy.serve(folder) as kubeconfig:
        operator = OperatorProcess(pod_name="secure-0", kubeconfig=kubeconfig, log=folder / "operator.log", extra=extra)
        await asyncio.to_thread(operator.start)
        try:
            await asyncio.to_thread(operator.wait_until_ready)
            secret = await asyncio.to_thread(wait_for_authority, system)
            served = Served(operator, port, secret, proxy, asked)
            await until_served(served)
            yield served
        finally:
            await asyncio.to_thread(operator.stop)


def wait_for_authority(system: Kubectl) -> str:
    """PEM of the authority that the operator has made."""

    def look() -> str | None:
        return (system.get("secret", f"{NAME}-report-ca").get("data") or {}).get("tls.crt")

    return base64.b64decode(wait_for("the authority", look, timeout_s=120)).decode()


async def until_served(served: Served) -> None:
    for _ in range(1200):
        with suppress(OSError):
            if (await served.get())[0] == 401:
                return
        await asyncio.sleep(0.1)
    raise AssertionError(f"nothing is served: {served.operator.log.read_text()}")


async def test_who_gets_metrics_and_who_does_not(
    api_server: Kubectl, monitoring: Kubectl, secure: Path, tmp_path: Path, promtool: Path
) -> None:
    reader = token_of(monitoring, READER)
    gone = token_of(monitoring, GONE)
    monitoring.run("delete", "serviceaccount", GONE)
    assert api_server.kubeconfig is not None
    key = api_server.kubeconfig.parent / "pki" / "sa.key"
    async with serving(api_server, secure, tmp_path) as served:
        status, text = await served.get(reader)
        assert status == 200
        refused = {
            "no token": ("", 401),
            "no JWT": ("nonsense", 401),
            "a forged signature": (reader[:-8] + "AAAAAAAA", 401),
            "a token for our endpoint of progress": (
                token_of(monitoring, READER, f"--audience={TOKEN_AUDIENCE}"), 401
            ),
            "a token that is over": (expire(reader, key), 401),
            "an account that is no more": (gone, 401),
            "an account without the role": (token_of(monitoring, STRANGER), 403),
        }  # fmt: skip
        # From addresses of their own: one whose tokens are refused has to wait.
        for number, (what, (token, code)) in enumerate(refused.items()):
            assert await served.get(token, f"127.0.1.{number + 1}") == (code, ""), what
        assert served.operator.fetch("/metrics")[0] == 404, "the plain port serves probes alone"
        assert served.operator.fetch("/readyz")[0] == 200
        assert await asyncio.to_thread(check_metrics, promtool, text) == []
    # What it has told is true of itself: the leader has asked, watched and looked at everything once.
    lines = text.splitlines()
    for family in OPERATOR_FAMILIES:
        assert any(line.startswith(f"# TYPE {family.name} ") for line in lines), family.name
    for expected in (
        'api_requests_total{code="200",resource="secrets",verb="get"}',
        'relists_total{outcome="failed"} 0.0',
        'cached_objects{resource="llavafinetunes"}',
        'reports_refused_total{reason="busy"} 0.0',
        'watch_failures_total{resource="pods"} 0.0',
        'certificate_not_after_timestamp_seconds{certificate="authority"}',
        'certificate_not_after_timestamp_seconds{certificate="metrics"}',
        "info{version=",
    ):
        assert PREFIX_OPERATOR + expected in text


def check_metrics(promtool: Path, text: str) -> list[str]:
    """What Prometheus' own checker does not like of the operator's metrics."""
    done = subprocess.run([promtool, "check", "metrics"], input=text.encode(), capture_output=True, check=False)
    return [line for line in done.stderr.decode().splitlines() if PREFIX_OPERATOR in line]


async def test_kopfs_own_requests_are_counted_on_a_real_api_server(
    api_server: Kubectl, monitoring: Kubectl, secure: Path, tmp_path: Path
) -> None:
    reader = token_of(monitoring, READER)
    async with serving(api_server, secure, tmp_path) as served:
        wanted = {
            f'{PREFIX_OPERATOR}api_requests_total{{code="200",resource="{plural}",verb="{verb}"}}'
            for plural in ("llavafinetunes", "jobs", "pods") for verb in ("list", "watch")
        }  # fmt: skip
        text = ""
        for _ in range(1200):
            text = (await served.get(reader))[1]
            if all(one in text for one in wanted):
                break
            await asyncio.sleep(0.1)
        assert not [one for one in wanted if one not in text]


async def test_bad_tokens_cost_few_reviews_and_hold_up_no_reader(
    api_server: Kubectl, monitoring: Kubectl, secure: Path, tmp_path: Path
) -> None:
    reader, another = token_of(monitoring, READER), token_of(monitoring, READER)
    reviews = TOKEN_REVIEWS.path()
    async with serving(api_server, secure, tmp_path) as served:
        assert (await served.get(reader))[0] == 200
        before, codes = served.asked[reviews], Counter[int]()
        began = asyncio.get_running_loop().time()
        for number in range(120):
            # One that is turned away before TLS has cost even less.
            with suppress(aiohttp.ClientError, OSError):
                codes[(await served.get(f"forged-{number}", f"127.7.0.{number % 40 + 1}"))[0]] += 1
        seconds = asyncio.get_running_loop().time() - began
        asked = served.asked[reviews] - before
        assert codes.keys() <= {401, 429}
        assert codes[429] > 0
        # The reader was a stranger, too.
        assert STRANGERS - 1 <= asked <= STRANGERS + seconds + 1, "what strangers have together, and one a second"
        # On a quick machine the flood also takes what the door lets in a second, and this is about reviews.
        await asyncio.sleep(1)
        assert (await served.get(reader))[0] == 200
        assert (await served.get(another))[0] == 200, "its address is known"


async def test_api_server_that_is_away(api_server: Kubectl, monitoring: Kubectl, secure: Path, tmp_path: Path) -> None:
    reader, another = token_of(monitoring, READER), token_of(monitoring, READER)
    away = {TOKEN_REVIEWS.path(), SUBJECT_ACCESS_REVIEWS.path()}
    async with serving(api_server, secure, tmp_path) as served:
        assert (await served.get(reader))[0] == 200
        served.proxy.refuse = lambda request: 503 if request.path in away else None
        assert (await served.get(another))[0:2] == (503, "")
        assert (await served.get(reader))[0] == 200, "it was let in less than a minute ago"
        served.proxy.refuse = lambda request: None
        assert (await served.get(another))[0] == 200


async def test_plain_http_at_the_port_ends_cleanly(
    api_server: Kubectl, monitoring: Kubectl, secure: Path, tmp_path: Path
) -> None:
    async with serving(api_server, secure, tmp_path) as served:
        stream, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        with suppress(ConnectionError):
            assert b"llava" not in await stream.read()
        writer.close()
        text = (await served.get(token_of(monitoring, READER)))[1]
    assert f'{PREFIX_OPERATOR}connections_closed_total{{endpoint="metrics",reason="handshake"}} 1.0' in text
    assert "Traceback" not in served.operator.log.read_text()


async def test_prometheus_scrapes_it(
    api_server: Kubectl, monitoring: Kubectl, secure: Path, tmp_path: Path, prometheus: Path
) -> None:
    """The real one, configured as the chart's ServiceMonitor configures it."""
    (tmp_path / "token").write_text(token_of(monitoring, READER))
    async with serving(api_server, secure, tmp_path) as served:
        (tmp_path / "ca.crt").write_text(served.authority)
        port = free_port()
        scrape = {
            "job_name": "operator", "scheme": "https", "honor_labels": True, "scrape_interval": "1s",
            "authorization": {"credentials_file": str(tmp_path / "token")},
            "tls_config": {"ca_file": str(tmp_path / "ca.crt"), "server_name": HOST},
            "static_configs": [{"targets": [f"127.0.0.1:{served.port}"]}],
        }  # fmt: skip
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump({"scrape_configs": [scrape]}))
        process = await asyncio.create_subprocess_exec(
            prometheus, f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            found = await query(port, "up * on (instance) llava_operator_info")
        finally:
            process.terminate()
            await process.wait()
    assert [one["value"][1] for one in found] == ["1"]


async def query(port: int, expression: str) -> list[dict[str, list[str]]]:
    """The first answer with something in it."""
    url = f"http://127.0.0.1:{port}/api/v1/query"
    async with aiohttp.ClientSession() as session:
        for _ in range(600):
            with suppress(aiohttp.ClientError, OSError):
                async with session.get(url, params={"query": expression}) as answer:
                    found: list[dict[str, list[str]]] = (await answer.json())["data"]["result"]
                    if found:
                        return found
            await asyncio.sleep(0.1)
    raise AssertionError(f"{expression} has no answer")


# --- the ServiceMonitor, by the Prometheus Operator's own CRD


MONITORS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "plain with everything": ("metrics.serviceMonitor.labels.release=x", "metrics.serviceMonitor.interval=30s"),
    "secure": ("metrics.secure=true",),
    "a certificate of the installer's": ("metrics.secure=true", "metrics.certificateSecret=metrics-tls"),
    "a token from a Secret": ("metrics.secure=true", "metrics.serviceMonitor.tokenSecret.name=scraper"),
    "another trust": ("metrics.secure=true", "metrics.serviceMonitor.tlsConfig.insecureSkipVerify=true"),
}


@pytest.fixture(scope="module")
def monitors(api_server: Kubectl) -> Iterator[Kubectl]:
    """kubectl for an API server that knows ServiceMonitors."""
    folder = fetch_module(PROMETHEUS_OPERATOR) / PROMETHEUS_OPERATOR_CRDS
    crd = folder / "monitoring.coreos.com_servicemonitors.yaml"
    api_server.run("apply", "--server-side", "-f", str(crd))
    name = "crd/servicemonitors.monitoring.coreos.com"
    # Before a CRD has any condition, waiting for one is an error.
    for condition in ("jsonpath={.status.acceptedNames.kind}", "condition=Established"):
        api_server.run("wait", f"--for={condition}", name, "--timeout=30s")
    yield api_server
    api_server.run("delete", name)


def try_monitor(kubectl: Kubectl, *settings: str) -> str:
    """What the API server says of the ServiceMonitor that the chart makes."""
    arguments = [part for setting in ("metrics.serviceMonitor.enabled=true", *settings) for part in ("--set", setting)]
    text = render(ensure_tools((HELM,)).path("helm"), *arguments, "--show-only", "templates/servicemonitor.yaml")
    stdin = text.replace(f"namespace: {SYSTEM_NAMESPACE}", "namespace: default").encode()
    return kubectl.run("create", "--dry-run=server", "--validate=strict", "-o", "json", "-f", "-", stdin=stdin)


@pytest.mark.parametrize("settings", MONITORS.values(), ids=MONITORS.keys())
def test_service_monitor_is_what_the_prometheus_operator_takes(monitors: Kubectl, settings: tuple[str, ...]) -> None:
    [endpoint] = json.loads(try_monitor(monitors, *settings))["spec"]["endpoints"]
    assert endpoint["honorLabels"] is True
    assert ("tlsConfig" in endpoint) == ("metrics.secure=true" in settings)


def test_fields_that_the_prometheus_operator_does_not_know_are_refused(monitors: Kubectl) -> None:
    """So the test before is one."""
    with pytest.raises(KubectlError, match="unknown field"):
        try_monitor(monitors, "metrics.secure=true", "metrics.serviceMonitor.tlsConfig.serverNames=x")
