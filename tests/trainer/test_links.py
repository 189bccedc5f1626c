"""Pictures that a dataset names by http address: fetched from allowed hosts alone, as everything else is fetched."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llava_api.constants import ENV_PICTURE_HOSTS
from llava_api.failures import Reason
from llava_api.run_config import RunConfig
from llava_trainer.data import embedded
from llava_trainer.data.image_folder import training_images
from llava_trainer.data.samples import read_samples
from llava_trainer.errors import StageError
from llava_trainer.retrying import Patience
from llava_trainer.sources import links
from llava_trainer.sources.fetching import Surroundings
from llava_trainer.stages import prepare
from tests.trainer.exports import chat, conversation, draw_image, prepare_config, write_json
from tests.trainer.servers.authority import Authority
from tests.trainer.servers.files import Fault, FileServer
from tests.trainer.test_formats import samples_of
from tests.trainer.test_prepare import Recorder, receipts, refusal

QUICK = Patience(tries=3, first_s=0.01, most_s=0.02, most_asked_s=0.02)


@pytest.fixture
def web(authority: Authority, tmp_path: Path) -> Iterator[FileServer]:
    """A server with the pictures of the receipts."""
    with FileServer().run(authority) as server:
        for index, (name, _) in enumerate(receipts()):
            picture = draw_image(tmp_path / "elsewhere" / name, seed=index, size=(40 + 10 * index, 60))
            server.add(f"/{name}", picture.read_bytes())
        yield server


@pytest.fixture(autouse=True)
def surroundings(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the operator puts around prepare, but quick to lose patience; no host is allowed yet."""

    def make() -> Surroundings:
        return Surroundings(
            secrets=tmp_path / "secrets", ca_file=authority.ca_file, claims=tmp_path, environ=dict(os.environ),
            patience=QUICK,
        )  # fmt: skip

    monkeypatch.setattr(links, "Surroundings", make)


def allow(monkeypatch: pytest.MonkeyPatch, *servers: FileServer) -> None:
    monkeypatch.setenv(ENV_PICTURE_HOSTS, ",".join(server.base.partition("://")[2] for server in servers))


def write_chats(root: Path, base: str, query: str = "") -> None:
    entries = [chat(conversation(name, pairs)) for name, pairs in receipts()]
    for entry in entries:
        part = entry["messages"][0]["content"][0]["image_url"]
        part["url"] = f"{base}/{part['url']}{query}"
    write_json(root / "dataset" / "export.json", entries)


def run(config: RunConfig) -> Any:
    return prepare.run(config, Recorder(config)).numbers


@pytest.fixture
def config(tmp_path: Path, toy_model_dir: Path) -> RunConfig:
    (tmp_path / "dataset" / "images").mkdir(parents=True)
    return prepare_config(tmp_path, toy_model_dir, format="messages")


def test_pictures_are_fetched_once_from_an_allowed_host(
    config: RunConfig, tmp_path: Path, web: FileServer, monkeypatch: pytest.MonkeyPatch
):
    write_chats(tmp_path, web.base, "?signature=secret")
    allow(monkeypatch, web)
    assert run(config).images == 12
    assert len(web.requests) == 12
    assert {request.query for request in web.requests} == {"signature=secret"}
    assert {request.authorization for request in web.requests} == {None}
    places = training_images(config)
    for sample in samples_of(config):
        (link,) = sample.images
        name = link.rpartition("/")[2].partition("?")[0]
        assert places.find(link).read_bytes() == (tmp_path / "elsewhere" / name).read_bytes()


def test_pictures_that_the_mixture_names_are_fetched_too(
    config: RunConfig, tmp_path: Path, web: FileServer, monkeypatch: pytest.MonkeyPatch
):
    write_chats(tmp_path, web.base)
    general = chat(conversation("000.png", [("Q?", "A")]))
    web.add("/general.png", draw_image(tmp_path / "elsewhere" / "general.png", seed=77).read_bytes())
    general["messages"][0]["content"][0]["image_url"] = f"{web.base}/general.png"
    write_json(tmp_path / "general" / "export.json", [general])
    dataset = {"source": "pvc://general/", "format": "messages", "file": "export.json"}
    fields = config.model_dump(by_alias=True)
    fields |= {"mixture": [{"dataset": dataset, "share": 0.1}], "mixtureDirs": [tmp_path / "general"]}
    allow(monkeypatch, web)
    mixed = RunConfig.model_validate(fields)
    run(mixed)
    assert "/general.png" in {request.path for request in web.requests}
    (sample,) = read_samples(mixed.volume.mixture_file(0))
    assert training_images(mixed).find(sample.images[0]).is_file()


def test_nothing_is_asked_where_the_installation_allows_no_host(config: RunConfig, tmp_path: Path, web: FileServer):
    write_chats(tmp_path, web.base, "?signature=secret")
    _, first, *_ = refusal(config)
    assert first == (
        f"export.json[0]: picture {web.base}/000.png is named by address, and this installation fetches none (the "
        "chart's policy.pictureHosts): put it into the dataset and name its path, or write it as a data: URL"
    )
    assert web.requests == []


def test_other_hosts_are_not_asked_not_after_a_redirect_either(
    config: RunConfig, tmp_path: Path, web: FileServer, authority: Authority, monkeypatch: pytest.MonkeyPatch
):
    with FileServer().run(authority) as inside:
        inside.add("/secret.png", web.files["/001.png"])
        web.faults["/000.png"] = [Fault(status=302, headers={"Location": f"{inside.base}/secret.png"})]
        write_chats(tmp_path, web.base)
        held = [chat(conversation("001.png", [("Q?", "A")]))]
        held[0]["messages"][0]["content"][0]["image_url"] = f"{inside.base}/secret.png"
        write_json(tmp_path / "dataset" / "held.json", held)
        validation = {"validation": {"file": "held.json"}}
        allow(monkeypatch, web)
        both = config.model_copy(update={"dataset": config.dataset.model_validate(
            config.dataset.model_dump(by_alias=True) | validation)})  # fmt: skip
        _, first, second = refusal(both)
        assert inside.requests == []
    host = web.base.partition("://")[2]
    told = f"is at {inside.base}, but this installation fetches pictures from {host} alone"
    assert first.startswith(f"export.json[0]: picture {web.base}/000.png {told}")
    assert second.startswith(f"held.json[0]: picture {inside.base}/secret.png {told}")


FAULTS: dict[str, tuple[list[Fault], str]] = {
    "not there": ([Fault(status=404)], "is refused with HTTP 404: correct the address"),
    "not allowed": ([Fault(status=403)], "is refused with HTTP 403: correct the address"),
    "packed": ([Fault(headers={"Content-Encoding": "gzip"})], "comes packed, although it was asked for as it is"),
    "a redirect to itself": (
        [Fault(status=302, headers={"Location": "/003.png"})] * 9,
        "leads nowhere: the server sends on",
    ),
    "a bad redirect": ([Fault(status=302, headers={"Location": "https://u:p@127.0.0.1/x"})], "is at https://127.0.0.1"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_an_address_that_leads_to_no_picture_is_the_entry_s_fault(
    name: str, config: RunConfig, tmp_path: Path, web: FileServer, monkeypatch: pytest.MonkeyPatch
):
    faults, message = FAULTS[name]
    web.faults["/003.png"] = list(faults)
    write_chats(tmp_path, web.base)
    allow(monkeypatch, web)
    _, told = refusal(config)
    assert told.startswith(f"export.json[3]: picture {web.base}/003.png {message}")


def test_a_picture_that_never_ends_is_cut_off(
    config: RunConfig, tmp_path: Path, web: FileServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(links, "MAX_IMAGE_BYTES", 100_000)
    web.add("/003.png", b"x" * 100_001)
    write_chats(tmp_path, web.base)
    allow(monkeypatch, web)
    _, told = refusal(config)
    assert told == f"export.json[3]: picture {web.base}/003.png has more than 100,000 bytes: make it smaller"
    assert embedded.MAX_IMAGE_BYTES == 64 * 2**20


def test_what_is_no_picture_is_refused_like_a_file(
    config: RunConfig, tmp_path: Path, web: FileServer, monkeypatch: pytest.MonkeyPatch
):
    web.add("/003.png", b"<html>")
    write_chats(tmp_path, web.base)
    allow(monkeypatch, web)
    _, told = refusal(config)
    assert told.startswith(f"export.json[3]: picture {web.base}/003.png is not one of JPEG")


def test_a_server_in_trouble_is_asked_again_and_ends_the_stage_if_it_stays_so(
    config: RunConfig, tmp_path: Path, web: FileServer, monkeypatch: pytest.MonkeyPatch
):
    write_chats(tmp_path, web.base, "?signature=secret")
    allow(monkeypatch, web)
    web.faults["/003.png"] = [Fault(status=503), Fault(break_after=10)]
    assert run(config).images == 12
    web.faults["/003.png"] = [Fault(status=503)] * 3
    with pytest.raises(StageError) as caught:
        run(config)
    assert caught.value.reason is Reason.SOURCE_UNAVAILABLE
    assert caught.value.message == (
        f"spec.dataset: {web.base}/003.png could not be fetched, 3 times in a row: HTTP 503"
    )


def test_too_many_addresses_are_refused(
    config: RunConfig, tmp_path: Path, web: FileServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(links, "MAX_LINKS", 11)
    write_chats(tmp_path, web.base)
    allow(monkeypatch, web)
    with pytest.raises(StageError, match="names more than 11 pictures by address: put them into the dataset"):
        run(config)
    assert web.requests == []


def test_an_address_in_other_formats_is_one_too(
    config: RunConfig, tmp_path: Path, web: FileServer, toy_model_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    entries = [conversation(f"{web.base}/{name}", pairs) for name, pairs in receipts()]
    write_json(tmp_path / "dataset" / "export.json", entries)
    allow(monkeypatch, web)
    assert run(prepare_config(tmp_path, toy_model_dir)).images == 12
