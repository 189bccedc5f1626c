"""No secret of a run's destinations stands in anything that publishing leaves or tells, whether it succeeds or fails.

Looked at: stdout and stderr, the termination message, the progress that is pushed to the operator, every file on the
run's volume, and what is published. What the operator makes of the termination message, its own tests look at.
"""

import base64
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from llava_api.constants import StageName
from llava_api.failures import Reason
from llava_api.report import StageResult
from llava_api.run_config import Reporting, RunConfig
from llava_api.spec import Download
from llava_trainer.outcome import ENV_TERMINATION_LOG, StageOutput, run_stage
from llava_trainer.reporting import Reporter
from llava_trainer.retrying import Patience
from llava_trainer.sources.fetching import Surroundings
from llava_trainer.stages import publish
from tests.localcluster import debian
from tests.trainer.evaluated import make_evaluated, publish_config
from tests.trainer.servers import registry, versity
from tests.trainer.servers.authority import Authority
from tests.trainer.servers.files import FileServer
from tests.trainer.servers.hub_writing import WritableHub
from tests.trainer.servers.proxy import Proxy
from tests.trainer.servers.relay import Fault, Relay, Relayed

TOKEN, PROXY, REPORTS = "hf_TOKEN-of-a-test", "PROXYPASSWORD", "TOKEN-OF-REPORTS"
PAIR = base64.b64encode(f"{registry.USERNAME}:{registry.PASSWORD}".encode()).decode()
SECRETS = {
    "the hub's token": TOKEN, "the key of S3": versity.KEYS["secret_access_key"],
    "the id of the key of S3": versity.KEYS["access_key_id"], "the registry's password": registry.PASSWORD,
    "the registry's credential": PAIR, "the proxy's password": PROXY, "the token of reports": REPORTS,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Servers:
    relays: dict[str, Relay]
    hub: WritableHub
    operator: FileServer
    authority: Authority


@pytest.fixture(scope="module")
def servers(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("registry")
    program = debian.ensure_unpacked(debian.DOCKER_REGISTRY).path("docker-registry")
    with ExitStack() as stack:
        hub = stack.enter_context(WritableHub().run())
        upstreams = {
            "s3": stack.enter_context(versity.run_versity()), "hf": hub.base,
            "oci": stack.enter_context(registry.run_registry(program, folder, registry.htpasswd_auth(folder))),
        }  # fmt: skip
        relays = {kind: stack.enter_context(Relay(base).run(authority)) for kind, base in upstreams.items()}
        operator = stack.enter_context(FileServer().run(authority))
        yield Servers(relays=relays, hub=hub, operator=operator, authority=authority)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluated")
    make_evaluated(root)
    return root


class World:
    """A run with a destination of each kind, its Secrets, and all that it leaves."""

    def __init__(self, root: Path, servers: Servers, name: str) -> None:
        self.root = root
        self.servers = servers
        host = servers.relays["oci"].base.partition("://")[2]
        self.addresses = {
            "pvc": "pvc://shelf/trays", "s3": f"s3://{versity.BUCKET}/{name}", "hf": f"hf://team/{name}",
            "oci": f"oci://{host}/team/{name}:v1",
        }  # fmt: skip
        (root / "claims" / "shelf").mkdir(parents=True)
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        self.key_lines = pem.splitlines()[1:-1]
        keys = {"accessKeyId": versity.KEYS["access_key_id"], "secretAccessKey": versity.KEYS["secret_access_key"]}
        self.secrets = {
            "pvc": {}, "s3": keys | {"endpoint": servers.relays["s3"].base}, "hf": {"token": TOKEN},
            "oci": {"username": registry.USERNAME, "password": registry.PASSWORD}, "signing": {"privateKey": pem},
        }  # fmt: skip
        (root / "report-token").write_text(REPORTS)

    def mount(self, role: str, keys: dict[str, str]) -> None:
        folder = self.root / "secrets" / role
        for key, value in keys.items():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / key).write_text(value)

    def run(self, monkeypatch: pytest.MonkeyPatch, *kinds: str) -> StageResult:
        servers = self.servers
        self.mount("signing", self.secrets["signing"])
        for index, kind in enumerate(kinds):
            self.mount(f"publish-{index}", self.secrets[kind])
        with Proxy(f"me:{PROXY}").run() as proxy:
            self.mount("download", {"httpsProxy": proxy.url.replace("://", f"://me:{PROXY}@")})
            destinations = [{"address": self.addresses[kind]} for kind in kinds]
            config = publish_config(self.root, destinations=destinations, what="both", signing={"name": "signing"})
            told = Reporting(
                url=f"{servers.operator.base}/v1/progress", ca_file=servers.authority.ca_file,
                token_file=self.root / "report-token",
            )  # fmt: skip
            download = Download.model_validate(
                {"hubEndpoint": servers.relays["hf"].base, "secretRef": {"name": "proxies"}}
            )
            config = config.model_copy(update={"reporting": told, "download": download})
            around = Surroundings(
                secrets=self.root / "secrets", ca_file=servers.authority.ca_file, destinations=self.root / "claims",
                environ={}, patience=Patience(tries=2, first_s=0, most_s=0, most_asked_s=0),
            )  # fmt: skip

            def body(config: RunConfig, reporter: Reporter) -> StageOutput:
                return publish.run(config, reporter, around)

            (self.root / "run.json").write_text(config.model_dump_json())
            monkeypatch.setenv(ENV_TERMINATION_LOG, str(self.root / "termination"))
            run_stage(StageName.PUBLISH, self.root / "run.json", body)
            if any(relay.requests for relay in servers.relays.values()):
                assert proxy.targets, "the password was asked for"
        return StageResult.model_validate_json((self.root / "termination").read_bytes())

    def shown(self, capfd: pytest.CaptureFixture[str]) -> set[str]:
        """Which secret stands where."""
        printed = capfd.readouterr()
        folders = (self.root / "volume", self.root / "claims")
        left = {str(one): one.read_bytes() for folder in folders for one in folder.rglob("*") if one.is_file()}
        assert any(name.endswith("rank-0.log") for name in left)
        left |= {
            "out": printed.out.encode(), "err": printed.err.encode(),
            "pushed": b"\n".join(self.servers.operator.posts),
            "termination": (self.root / "termination").read_bytes(),
        }  # fmt: skip
        assert left["out"]
        secrets = SECRETS | {f"line {number} of the key": line for number, line in enumerate(self.key_lines)}
        return {f"{secret} in {name}" for name, content in left.items() for secret, value in secrets.items()
                if value.encode() in content}  # fmt: skip


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path, evaluated: Path, servers: Servers) -> World:
    for relay in servers.relays.values():
        relay.begin()
    servers.hub.tokens, servers.hub.repositories = {TOKEN: True}, {}
    servers.operator.posts.clear()
    shutil.copytree(evaluated, tmp_path / "run")
    name = f"trays-{abs(hash(request.node.name)) % 10**8}"
    return World(tmp_path / "run", servers, name)


def test_nothing_is_told_of_a_success(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    result = world.run(monkeypatch, *world.addresses)
    assert result.failure is None, result.failure
    assert result.publish is not None
    assert len(result.publish.published) == 8
    assert world.servers.operator.posts
    assert world.shown(capfd) == set()
    files = world.servers.hub.repositories[world.addresses["hf"].removeprefix("hf://")].files("main")
    assert "model.sig" in files
    for value in (*SECRETS.values(), *world.key_lines):
        assert not [name for name, content in files.items() if value.encode() in content]


def echo(request: Relayed) -> str:
    """All that a server could tell of what it was sent."""
    return f"{request.authorization} {request.headers} {request.path} {' '.join(SECRETS.values())}"


FAULTS: dict[str, Any] = {
    "refused": lambda request: Fault(status=403, body=echo(request).encode()),
    "an error's code": lambda request: Fault(
        status=400, body=f"<Error><Code>{versity.KEYS['secret_access_key']} {TOKEN}</Code></Error>".encode()
    ),
    "unavailable": lambda request: Fault(status=503, body=echo(request).encode()),
    "a header": lambda request: Fault(
        status=401, headers=(("WWW-Authenticate", f'Basic realm="{request.authorization}"'), ("X-Echo", TOKEN))
    ),
    "no answer of its kind": lambda request: Fault(status=200, body=echo(request).encode()),
    "a redirect": lambda request: Fault(status=302, headers=(("Location", f"https://{PAIR}@127.0.0.1:1/{TOKEN}"),)),
    "cut": lambda request: Fault(cut_after=0),
}


@pytest.mark.parametrize("kind", ["s3", "hf", "oci"])
@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_told_of_a_failure(
    fault: str, kind: str, world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    world.servers.relays[kind].choose = FAULTS[fault]
    failure = world.run(monkeypatch, kind).failure
    assert failure is not None
    assert failure.reason in (Reason.DESTINATION_REFUSED, Reason.DESTINATION_UNAVAILABLE)
    assert "spec.publish.destinations[0]" in failure.message
    assert world.shown(capfd) == set()


@pytest.mark.parametrize(
    ("kind", "key"), [("s3", "secretAccessKey"), ("hf", "token"), ("oci", "password"), ("signing", "privateKey")]
)
def test_nothing_is_told_of_a_secret_that_is_none(
    kind: str, key: str, world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    value = world.secrets[kind][key]
    world.secrets[kind][key] = value.replace("-END", "-NO") if kind == "signing" else f"{value}\0"
    failure = world.run(monkeypatch, "pvc" if kind == "signing" else kind).failure
    assert failure is not None
    assert failure.reason is Reason.DESTINATION_REFUSED
    assert "spec.publish." in failure.message
    assert world.shown(capfd) == set()
