"""The publish stage from a run that has ended well to what stands at its destinations, with a real S3 server."""

import logging
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_api.constants import StageName
from llava_api.failures import Reason, exit_code_of
from llava_api.report import Published, PublishNumbers, StageResult
from llava_api.run_config import RunConfig
from llava_trainer.errors import StageError
from llava_trainer.merging.manifest import MANIFEST
from llava_trainer.outcome import ENV_TERMINATION_LOG, StageOutput, run_stage
from llava_trainer.publishing.publication import parse_publication
from llava_trainer.reporting import Reporter
from llava_trainer.retrying import Patience
from llava_trainer.sources.fetching import Surroundings
from llava_trainer.stages import publish
from tests.trainer.evaluated import make_evaluated, publish_config
from tests.trainer.runs import Recorder
from tests.trainer.servers.authority import Authority
from tests.trainer.servers.relay import Fault, Relay, Relayed
from tests.trainer.servers.versity import BUCKET, KEYS, open_client, run_versity

CLAIM, S3 = {"address": "pvc://shelf/trays"}, {"address": f"s3://{BUCKET}/trays", "secretRef": {"name": "s3"}}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluated")
    make_evaluated(root)
    return root


@pytest.fixture(scope="module")
def relay(versitygw: Path, authority: Authority) -> Iterator[Relay]:
    with run_versity(versitygw) as endpoint, Relay(endpoint).run(authority) as relay:
        yield relay


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that is ready to be published, and what is around its pod."""

    root: Path
    relay: Relay
    authority: Authority

    def config(self, *destinations: dict[str, Any], attempt: int = 1, **spec: Any) -> RunConfig:
        return publish_config(self.root, attempt=attempt, destinations=list(destinations), **spec)

    @property
    def around(self) -> Surroundings:
        return Surroundings(
            secrets=self.root / "secrets", ca_file=self.authority.ca_file, destinations=self.root / "claims",
            environ={}, patience=Patience(tries=2, first_s=0, most_s=0),
        )  # fmt: skip

    def publish(self, config: RunConfig) -> tuple[StageOutput, Recorder]:
        self.relay.begin()
        with Recorder(config) as reporter:
            return publish.run(config, reporter, self.around), reporter

    def fail(self, config: RunConfig) -> StageError:
        with pytest.raises(StageError) as raised, Recorder(config) as reporter:
            publish.run(config, reporter, self.around)
        return raised.value

    def body(self, config: RunConfig, reporter: Reporter) -> StageOutput:
        return publish.run(config, reporter, self.around)


@pytest.fixture
def run(tmp_path: Path, evaluated: Path, relay: Relay, authority: Authority) -> Run:
    root = tmp_path / "run"
    shutil.copytree(evaluated, root)
    (root / "claims" / "shelf").mkdir(parents=True)
    relay.begin()
    for index in range(4):
        folder = root / "secrets" / f"publish-{index}"
        folder.mkdir(parents=True)
        keys = {"accessKeyId": KEYS["access_key_id"], "secretAccessKey": KEYS["secret_access_key"]}
        for key, value in (keys | {"endpoint": relay.base}).items():
            (folder / key).write_text(value)
    client = open_client(relay.upstream.geturl())
    for entry in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=entry["Key"])
    return Run(root=root, relay=relay, authority=authority)


def published(output: StageOutput) -> tuple[Published, ...]:
    assert isinstance(output.numbers, PublishNumbers)
    return output.numbers.published


def test_everything_goes_everywhere(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    config = run.config(CLAIM, S3, what="both")
    output, reporter = run.publish(config)
    told = published(output)
    assert [(one.destination, one.what) for one in told] == [
        (0, "merged"), (0, "adapter"), (1, "merged"), (1, "adapter")
    ]  # fmt: skip
    assert [one.digest for one in told[:2]] == [one.digest for one in told[2:]]
    assert output.digests == {"published-merged": told[0].digest, "published-adapter": told[1].digest}
    assert [one.sent_bytes for one in told] == [one.size_bytes for one in told]
    total = sum(one.size_bytes for one in told)
    assert reporter.steps[-1] == (total, total)
    assert reporter.steps == sorted(reporter.steps)
    folder = run.root / "claims" / "shelf" / "trays"
    written = {one.relative_to(folder).as_posix(): one.read_bytes() for one in folder.rglob("*") if one.is_file()}
    assert MANIFEST in written
    assert written == standing(run.relay)
    listed = parse_publication(written["publication.json"])
    assert listed is not None
    assert {*listed.files, "publication.json"} == {name for name in written if not name.startswith("adapter/")}
    AutoModelForImageTextToText.from_pretrained(folder)
    AutoProcessor.from_pretrained(folder)

    caplog.clear()
    again, _ = run.publish(run.config(CLAIM, S3, what="both", attempt=2))
    assert [one.model_copy(update={"sent_bytes": one.size_bytes}) for one in published(again)] == list(told)
    assert {one.sent_bytes for one in published(again)} == {0}
    assert {request.method for request in run.relay.requests} == {"GET", "HEAD"}
    lines = [record.message for record in caplog.records if record.name == publish.__name__]
    assert lines == [
        "published merged to pvc://shelf/trays: it was there already, nothing is changed",
        "published adapter to pvc://shelf/trays (adapter): it was there already, nothing is changed",
        f"published merged to s3://{BUCKET}/trays: it was there already, nothing is changed",
        f"published adapter to s3://{BUCKET}/trays (adapter): it was there already, nothing is changed",
    ]


def standing(relay: Relay) -> dict[str, bytes]:
    client = open_client(relay.upstream.geturl())
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket=BUCKET).get("Contents", [])]
    return {
        key.removeprefix("trays/"): client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys
    }  # fmt: skip


def test_what_an_earlier_destination_has_stays_when_a_later_one_fails(run: Run) -> None:
    (run.root / "secrets" / "publish-1" / "secretAccessKey").write_text("wrong")
    error = run.fail(run.config(CLAIM, S3))
    assert error.reason is Reason.DESTINATION_REFUSED
    assert "spec.publish.destinations[1].address" in error.message
    assert "spec.publish.destinations[1].secretRef" in error.message
    assert (run.root / "claims" / "shelf" / "trays" / "config.json").exists()
    (run.root / "secrets" / "publish-1" / "secretAccessKey").write_text(KEYS["secret_access_key"])
    output, _ = run.publish(run.config(CLAIM, S3, attempt=2))
    first, second = published(output)
    assert (first.sent_bytes, second.sent_bytes) == (0, second.size_bytes)


def test_only_what_merging_has_listed_is_published(run: Run) -> None:
    merged = run.config(CLAIM).volume.merged_dir
    (merged / "notes.txt").write_text("mine")
    (merged / "link.json").symlink_to("/etc/passwd")
    run.publish(run.config(CLAIM))
    names = {one.name for one in (run.root / "claims" / "shelf" / "trays").iterdir()}
    assert {"notes.txt", "link.json"}.isdisjoint(names)
    assert "config.json" in names


def edit(folder: str, name: str) -> Any:
    def change(config: RunConfig) -> None:
        path = getattr(config.volume, folder) / name
        path.write_bytes(path.read_bytes() + b" ")

    return change


def add_to_adapter(config: RunConfig) -> None:
    (config.volume.adapter_dir / "more.bin").write_bytes(b"1")


def remove_weights(config: RunConfig) -> None:
    (config.volume.merged_dir / "config.json").unlink()


def link_weights(config: RunConfig) -> None:
    path = config.volume.merged_dir / "config.json"
    path.rename(config.volume.root / "config.json")
    path.symlink_to(config.volume.root / "config.json")


def remove_manifest(config: RunConfig) -> None:
    (config.volume.merged_dir / MANIFEST).unlink()


def spoil_manifest(config: RunConfig) -> None:
    (config.volume.merged_dir / MANIFEST).write_text("{}")


def inflate_manifest(config: RunConfig) -> None:
    with (config.volume.merged_dir / MANIFEST).open("ab") as stream:
        stream.truncate(17 << 20)


def remove_record(config: RunConfig) -> None:
    (config.volume.result_dir(StageName.MERGE) / "result.json").unlink()


@pytest.mark.parametrize(
    ("change", "what", "told"),
    [
        (edit("merged_dir", "config.json"), "merged", "config.json has"),
        (edit("merged_dir", MANIFEST), "merged", "and was sha256:"),
        (edit("adapter_dir", "adapter_config.json"), "adapter", "adapter is sha256:"),
        (add_to_adapter, "adapter", "adapter is sha256:"),
        (remove_weights, "merged", "config.json cannot be read (No such file or directory)"),
        (link_weights, "merged", "config.json cannot be read (Too many levels of symbolic links)"),
        (remove_manifest, "merged", "which lists the merged model's files, cannot be read"),
        (spoil_manifest, "merged", "which lists the merged model's files, cannot be read"),
        (inflate_manifest, "merged", "which no list of files has"),
        (remove_record, "merged", "nothing tells what it was when it was made"),
    ],
)
def test_result_that_is_damaged_is_not_published(change: Any, what: str, told: str, run: Run) -> None:
    config = run.config(CLAIM, S3, what=what)
    change(config)
    error = run.fail(config)
    assert error.reason is Reason.RESULT_DAMAGED
    assert told in error.message
    assert "look at the run's volume" in error.message
    assert not (run.root / "claims" / "shelf" / "trays").exists()
    assert standing(run.relay) == {}


def test_method_without_an_adapter(run: Run) -> None:
    config = run.config(CLAIM, what="both")
    training = config.training.model_copy(update={"method": "full"})
    error = run.fail(config.model_copy(update={"training": training}))
    assert error.reason is Reason.DESTINATION_REFUSED
    assert "spec.publish.what is both, but spec.training.method full makes no adapter: publish merged" in error.message


def test_secret_that_is_none(run: Run) -> None:
    (run.root / "secrets" / "publish-0" / "accessKeyId").unlink()
    error = run.fail(run.config(S3))
    assert error.reason is Reason.DESTINATION_REFUSED
    assert error.message.startswith("spec.publish.destinations[0].secretRef: the Secret must hold both accessKeyId")


def test_attempt_that_is_superseded_publishes_nothing(run: Run) -> None:
    config = run.config(CLAIM)
    with Recorder(config) as reporter:
        reporter.fence.refuse("the operator says so")
        with pytest.raises(StageError, match="Superseded"):
            publish.run(config, reporter, run.around)
    assert not (run.root / "claims" / "shelf" / "trays").exists()


def run_in_frame(
    run: Run, config: RunConfig, monkeypatch: pytest.MonkeyPatch, expected: Reason | None = None
) -> StageResult:
    """The stage as the command line runs it, with the destinations of the test around it."""
    file, termination = run.root / "run.json", run.root / "termination-log"
    file.write_text(config.model_dump_json())
    monkeypatch.setenv(ENV_TERMINATION_LOG, str(termination))
    code = run_stage(StageName.PUBLISH, file, run.body)
    assert code == (exit_code_of(expected) if expected else 0)
    assert termination.stat().st_size <= 4096
    return StageResult.model_validate_json(termination.read_text())


def test_finished_attempt_whose_word_was_lost_is_taken_over(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_in_frame(run, run.config(S3), monkeypatch)
    run.relay.begin()
    second = run_in_frame(run, run.config(S3, attempt=2), monkeypatch)
    assert (second.publish, second.attempt) == (first.publish, 2)
    assert run.relay.requests == [], "nobody was asked"
    third = run_in_frame(run, run.config(S3, CLAIM, attempt=3), monkeypatch)
    assert third.publish is not None
    assert [(one.destination, one.sent_bytes > 0) for one in third.publish.published] == [(0, False), (1, True)]


def test_pod_that_is_asked_to_stop(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Relayed] = []

    def choose(request: Relayed) -> Fault | None:
        sent.extend([request] if request.method == "PUT" else [])
        return Fault(before=lambda: os.kill(os.getpid(), signal.SIGTERM)) if len(sent) == 3 else None

    run.relay.choose = choose
    run_in_frame(run, run.config(S3), monkeypatch, Reason.INTERRUPTED)
    assert standing(run.relay) == {}
    run.relay.begin()
    result = run_in_frame(run, run.config(S3, attempt=2), monkeypatch)
    assert result.publish is not None
    (told,) = result.publish.published
    assert 0 < told.sent_bytes < told.size_bytes, "what had been sent was there"


def test_result_of_all_destinations_fits(run: Run) -> None:
    one = Published(
        destination=3, what="adapter", revision="f" * 100, digest=f"sha256:{'0' * 64}", size_bytes=2**53,
        sent_bytes=2**53,
    )  # fmt: skip
    result = StageResult(
        stage=StageName.PUBLISH, attempt=999, publish=PublishNumbers(published=(one,) * 8),
        digests={"published-merged": one.digest, "published-adapter": one.digest},
    )  # fmt: skip
    assert len(result.to_termination_message().encode()) <= 4096
