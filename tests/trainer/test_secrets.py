"""No secret of a run's sources stands in anything that it leaves or tells, whether it succeeds or fails.

Looked at: stdout and stderr, the termination message, the status, Events and metrics that the operator makes of it, the
progress that is pushed to the operator, and every file on the run's volume: logs, reports, inputs, journals.
"""

import functools
import json
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from llava_api.constants import StageName
from llava_api.failures import Reason
from llava_api.report import StageResult
from llava_api.run_config import Reporting
from llava_operator.acting.events import build_event
from llava_operator.acting.transitions import list_transitions
from llava_operator.cache.runs import RunView
from llava_operator.deciding.status import dump_status
from llava_operator.telemetry.metrics import RunCollector
from llava_trainer.inputs import provide_inputs
from llava_trainer.outcome import ENV_TERMINATION_LOG, run_stage
from llava_trainer.retrying import Patience
from llava_trainer.sources.fetching import Surroundings
from llava_trainer.stages import prepare
from tests.controller.makers import KEY, NOW, RUN_UID, begun, commit, failed, job_end, make_job, see, succeeded
from tests.tiny.export import make_export
from tests.trainer.servers.authority import Authority
from tests.trainer.servers.files import Fault, FileServer
from tests.trainer.servers.hub import HubRepository, HubServer
from tests.trainer.servers.proxy import Proxy
from tests.trainer.test_sources import COMMIT, World

SECRETS = {
    "token": "hf_TOKENTOKEN", "bearer": "BEARERBEARER", "signature": "SIGNATURESIGNATURE", "proxy": "PROXYPASSWORD",
    "cdn": "Signature=secret",
}  # fmt: skip


def told_by_operator(termination: str, code: int) -> bytes:
    """What the operator makes of a pod's end: the run's status, its Events, its metrics."""
    status = begun(StageName.PREPARE)
    if code == 0:
        seen = see(status, job=make_job(status, complete=True), pods=(succeeded(StageName.PREPARE, termination),))
    else:
        ended = failed(exit_code=code, message=termination, stage=StageName.PREPARE)
        seen = see(status, job=make_job(status, failed=job_end()), pods=(ended,))
    status = commit(seen)
    assert (status.failure is None) is (code == 0)
    events = [build_event(KEY, RUN_UID, transition, "here") for transition in list_transitions(status)]
    registry = CollectorRegistry()
    registry.register(RunCollector([RunView(key=KEY, uid=RUN_UID, status=status)], lambda: NOW))
    return json.dumps([dump_status(status), events]).encode() + generate_latest(registry)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (None, None),
        (("web", "/set/export.json", Fault(status=403)), Reason.SOURCE_REFUSED),
        (("web", "/set/export.json", Fault(status=503)), Reason.SOURCE_UNAVAILABLE),
        (("web", "/set/export.json", Fault(headers={"Content-Encoding": "gzip"})), Reason.SOURCE_REFUSED),
        (("web", "/set/export.json", Fault(framing="close")), Reason.SOURCE_REFUSED),
        (("hub", "/api/models/me/it", Fault(status=503)), Reason.SOURCE_UNAVAILABLE),
        (("hub", "/api/models/me/it", Fault(status=302, headers={"Location": "https://127.0.0.1:1/?x=y"})),
         Reason.SOURCE_UNAVAILABLE),
        (("config", "a\0b", Fault()), Reason.SOURCE_REFUSED),
    ],
)  # fmt: skip
def test_no_secret_is_told(
    fault: tuple[str, str, Fault] | None, reason: Reason | None, tmp_path: Path, authority: Authority,
    toy_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    make_export(tmp_path / "export", format="llava", pictures_per_scene=1)
    world = World(tmp_path, authority)
    with HubServer().run(authority) as hub, FileServer().run(authority) as web, FileServer().run(authority) as operator:
        hub.repositories["models", "me/it"] = HubRepository(
            commits={COMMIT: {path.name: path.read_bytes() for path in toy_model_dir.iterdir()}},
            revisions={"main": COMMIT}, token=SECRETS["token"],
        )  # fmt: skip
        web.password = f"Bearer {SECRETS['bearer']}"
        for path in (tmp_path / "export").rglob("*"):
            if path.is_file():
                web.add(f"/set/{path.relative_to(tmp_path / 'export')}", path.read_bytes())
        if fault is not None and fault[0] != "config":
            {"web": web, "hub": hub}[fault[0]].faults[fault[1]] = [fault[2]] * 5
        bearer = SECRETS["bearer"] + ("\0" if fault and fault[0] == "config" else "")
        world.secret("model", token=SECRETS["token"])
        world.secret("dataset", bearer=bearer)
        world.download["hub_endpoint"] = hub.base
        world.model["source"] = "hf://me/it"
        world.evaluation = {}
        world.dataset = {
            "source": f"{web.base}/set/?X-Amz-Signature={SECRETS['signature']}", "format": "llava",
            "file": "export.json", "images": "images",
        }  # fmt: skip
        (tmp_path / "report-token").write_text("of the operator")
        told = Reporting(
            url=f"{operator.base}/v1/progress", ca_file=authority.ca_file, token_file=tmp_path / "report-token"
        )
        with Proxy(f"me:{SECRETS['proxy']}").run() as proxy:
            world.secret("download", httpsProxy=proxy.url.replace("://", f"://me:{SECRETS['proxy']}@"))
            config = world.config.model_copy(update={"reporting": told})
            (tmp_path / "run.json").write_text(config.model_dump_json())
            around = Surroundings(
                secrets=world.secrets, ca_file=world.ca_file, claims=tmp_path / "claims", environ={},
                patience=Patience(tries=3, first_s=0.01, most_s=0.02),
            )  # fmt: skip
            monkeypatch.setattr(prepare, "provide_inputs", functools.partial(provide_inputs, surroundings=around))
            monkeypatch.setenv(ENV_TERMINATION_LOG, str(tmp_path / "result.json"))
            code = run_stage(StageName.PREPARE, tmp_path / "run.json", prepare.run)
    result = StageResult.model_validate_json((tmp_path / "result.json").read_bytes())
    printed = capfd.readouterr()
    assert (result.failure and result.failure.reason) is reason, printed.out[-3000:]
    assert (code == 0) is (reason is None)
    # A NUL would be refused before anything is reported.
    assert operator.posts or (fault is not None and fault[0] == "config")
    left = {str(path): path.read_bytes() for path in (tmp_path / "volume").rglob("*") if path.is_file()}
    assert any(name.endswith("rank-0.log") for name in left)
    assert any(name.endswith("data/report.html") for name in left) is (reason is None)
    left |= {"out": printed.out.encode(), "err": printed.err.encode(), "pushed": b"\n".join(operator.posts)}
    left["termination message"] = (tmp_path / "result.json").read_bytes()
    left["status, Events and metrics"] = told_by_operator(left["termination message"].decode(), code)
    shown = {f"{secret} in {name}" for name, content in left.items() for secret, value in SECRETS.items()
             if value.encode() in content}  # fmt: skip
    assert shown == set()
    if reason is not None:
        assert json.loads(left["termination message"])["failure"]["message"].count("spec.") >= 1
