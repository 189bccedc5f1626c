"""Addresses, credentials, the way through proxies, backoff, and which files are needed: by themselves."""

import contextlib
import itertools
import json
import logging
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llava_api.constants import SECRET_KEYS
from llava_api.failures import Reason
from llava_api.spec import Dataset, Download
from llava_trainer.errors import StageError
from llava_trainer.publishing.registry_access import DOCKER_CONFIG
from llava_trainer.retrying import Patience, Retrier, StoppedError, TransientError
from llava_trainer.sources.address import BucketAddress, ClaimAddress, HubAddress, WebAddress, parse_address
from llava_trainer.sources.credentials import Credentials, read_credentials, web_headers
from llava_trainer.sources.network import Network, build_client, choose_proxy, read_network
from llava_trainer.sources.progress import Progress
from llava_trainer.sources.remote import check_name
from llava_trainer.sources.selection import (
    choose_model_files,
    list_companions,
    list_own_files,
    may_be_needed,
    place_images,
    read_image_names,
    shards_of,
)
from llava_trainer.sources.web import show
from tests.trainer.runs import Recorder, run_config

DIGEST = "ab" * 32


@pytest.mark.parametrize(
    ("source", "address"),
    [
        ("pvc://claim", ClaimAddress(claim="claim", path="")),
        ("pvc://claim/a/b/", ClaimAddress(claim="claim", path="a/b")),
        ("hf://me/it", HubAddress(repository="me/it", revision=None)),
        ("hf://me/it@refs/pr/1", HubAddress(repository="me/it", revision="refs/pr/1")),
        ("s3://bucket", BucketAddress(bucket="bucket", prefix="")),
        ("s3://bucket/a/b/", BucketAddress(bucket="bucket", prefix="a/b")),
        ("https://h/set/", WebAddress(url="https://h/set/", kind="folder", name="", sha256=None)),
        (f"https://h/a.ZIP#sha256={DIGEST}",
         WebAddress(url="https://h/a.ZIP", kind="archive", name="a.ZIP", sha256=DIGEST)),
        ("https://h/a.tar.gz?v=1",
         WebAddress(url="https://h/a.tar.gz?v=1", kind="archive", name="a.tar.gz", sha256=None)),
        ("https://h/p.bin", WebAddress(url="https://h/p.bin", kind="file", name="p.bin", sha256=None)),
    ],
)  # fmt: skip
def test_addresses(source: str, address: object) -> None:
    assert parse_address(source, "spec.model.source") == address


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("ftp://h/x", "must begin with pvc://, hf://, s3:// or https://"),
        ("https://h/data.rar", "must end with one of .zip, .tar, .tar.gz, .tgz (an archive) or with / (a folder)"),
        (f"https://h/data/#sha256={DIGEST}", "a folder has no one digest"),
    ],
)
def test_addresses_that_are_none(source: str, told: str) -> None:
    with pytest.raises(StageError) as caught:
        parse_address(source, "spec.dataset.source")
    assert caught.value.reason is Reason.SOURCE_REFUSED
    assert caught.value.message.startswith(f"spec.dataset.source is {source!r}")
    assert told in caught.value.message or told.removeprefix("must") in caught.value.message


def test_signature_in_a_query_is_not_shown() -> None:
    address = parse_address("https://h/a.zip?X-Signature=secret", "spec.model.source")
    assert isinstance(address, WebAddress)
    assert show(address) == "https://h/a.zip"


def write_secret(folder: Path, **keys: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for key, value in keys.items():
        (folder / key).write_text(value)
    return folder


def test_credentials_are_read_and_never_shown(tmp_path: Path) -> None:
    found = read_credentials(
        write_secret(tmp_path, accessKeyId="id\n", secretAccessKey=" secret\n", endpoint="https://minio", region="eu"),
        "spec.model.secretRef",
    )
    assert (found.access_key_id, found.secret_access_key, found.endpoint) == ("id", "secret", "https://minio")
    assert "secret" not in repr(found)
    assert read_credentials(tmp_path / "none", "spec.model.secretRef") == Credentials()


def test_every_key_that_is_read_is_mounted(tmp_path: Path) -> None:
    """The operator mounts the keys of this table alone."""
    keys = {key for keys in SECRET_KEYS.values() for key in keys}
    found = read_credentials(write_secret(tmp_path, **{key: key for key in keys}), "spec.model.secretRef")
    # That one holds a login for each of several registries, which is no key of one place.
    assert {*vars(found).values()} == keys - {DOCKER_CONFIG}
    assert DOCKER_CONFIG in SECRET_KEYS["oci://"]


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"token": " \n"}, "key token of the Secret is empty or has white space inside"),
        ({"token": "hf_\0x"}, "key token of the Secret holds control characters"),
        ({"token": "hf_größe"}, "key token of the Secret holds characters that no such key has"),
        ({"sessionToken": "a\u200bb"}, "key sessionToken of the Secret holds characters that no such key has"),
        ({"endpoint": "https://minio\x1b"}, "key endpoint of the Secret holds control characters"),
        ({"username": "me", "password": "a\nb"}, "key password of the Secret holds control characters"),
        ({"username": "me:you", "password": "a"}, "key username of the Secret holds a colon"),
        ({"region": "eu/../x"}, "key region of the Secret must be a region like"),
        ({"bearer": "x" * 65_537}, "key bearer of the Secret has more than 65,536 bytes"),
        ({"bearer": "two words"}, "key bearer of the Secret is empty or has white space inside"),
        ({"username": "me"}, "must hold both username and password, or neither"),
        ({"secretAccessKey": "x"}, "must hold both accessKeyId and secretAccessKey, or neither"),
    ],
)
def test_credentials_that_are_none(tmp_path: Path, keys: dict[str, str], told: str) -> None:
    with pytest.raises(StageError) as caught:
        read_credentials(write_secret(tmp_path, **keys), "spec.dataset.secretRef")
    assert caught.value.reason is Reason.SOURCE_REFUSED
    assert caught.value.message.startswith("spec.dataset.secretRef: ")
    assert told in caught.value.message


def test_credentials_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"\xff\xfe")
    with pytest.raises(StageError, match="key token of the Secret is no text in UTF-8") as caught:
        read_credentials(tmp_path, "spec.model.secretRef")
    assert caught.value.__suppress_context__


def test_a_byte_order_mark_and_letters_of_passwords_are_taken(tmp_path: Path) -> None:
    """Editors of Windows write the one; a password may be any text."""
    write_secret(tmp_path, token="\ufeffhf_x\r\n", username="größe", password=" p ü:\u200b ")
    found = read_credentials(tmp_path, "spec.model.secretRef")
    assert (found.token, found.username, found.password) == ("hf_x", "größe", "p ü:\u200b")
    assert web_headers(found)["Authorization"].isascii()


def test_plain_https_needs_no_header() -> None:
    assert web_headers(Credentials()) == {}


@pytest.mark.parametrize(
    ("host", "port", "no_proxy", "is_spared"),
    [
        ("files.example", 443, "", False),
        ("files.example", 443, "*", True),
        ("files.example", 443, "other, Files.Example", True),
        ("a.files.example", 443, "files.example", True),
        ("a.files.example", 443, ".files.example", True),
        ("a.files.example", 443, "*.files.example", True),
        ("myfiles.example", 443, "files.example", False),
        ("minio.storage.svc", 9000, ".svc,.cluster.local", True),
        ("files.example", 443, "files.example:8443", False),
        ("files.example", 8443, "files.example:8443", True),
        ("10.1.2.3", 443, "10.0.0.0/8", True),
        ("11.1.2.3", 443, "10.0.0.0/8", False),
        ("10.1.2.3", 443, "10.1.2.3", True),
        ("::1", 443, "::1", True),
    ],
)
def test_hosts_that_are_reached_without_proxy(host: str, port: int, no_proxy: str, is_spared: bool) -> None:
    network = Network(https_proxy="http://proxy:1", no_proxy=no_proxy)
    assert choose_proxy(network, "https", host, port) == (None if is_spared else "http://proxy:1")


def test_every_scheme_has_its_own_proxy() -> None:
    network = Network(http_proxy="http://a:1", https_proxy="http://b:1")
    assert choose_proxy(network, "http", "h", 80) == "http://a:1"
    assert choose_proxy(network, "https", "h", 443) == "http://b:1"
    assert choose_proxy(Network(http_proxy="http://a:1"), "https", "h", 443) is None


def test_run_says_more_than_the_environment(tmp_path: Path) -> None:
    environ = {
        "HTTPS_PROXY": "http://env:1",
        "http_proxy": "http://env:2",
        "NO_PROXY": "env",
        "HF_ENDPOINT": "https://e/",
    }
    plain = read_network(Download(), tmp_path / "none", tmp_path / "none", environ)
    assert plain == Network(
        hub_endpoint="https://e", http_proxy="http://env:2", https_proxy="http://env:1", no_proxy="env"
    )
    said = Download(hub_endpoint="https://hub/", https_proxy="proxy:3128", no_proxy="said")
    found = read_network(said, tmp_path / "none", tmp_path / "none", environ)
    assert (found.hub_endpoint, found.https_proxy, found.no_proxy) == ("https://hub", "proxy:3128", "said")
    assert "proxy" not in repr(found).replace("no_proxy", "")
    build_client(found).close()


def test_secret_of_proxies_says_less_than_the_run_and_more_than_the_environment(tmp_path: Path) -> None:
    (tmp_path / "httpProxy").write_text("http://me:one@secret:1\n")
    (tmp_path / "httpsProxy").write_text("http://me:hunter2@secret:2\n")
    environ = {"HTTPS_PROXY": "http://env:1", "HTTP_PROXY": "http://env:2"}
    found = read_network(Download(http_proxy="http://said:1"), tmp_path / "none", tmp_path, environ)
    assert (found.http_proxy, found.https_proxy) == ("http://said:1", "http://me:hunter2@secret:2")
    assert "hunter2" not in repr(found)
    (tmp_path / "httpsProxy").write_text("\n")
    with pytest.raises(StageError, match=r"spec\.download\.secretRef: key httpsProxy") as caught:
        read_network(Download(), tmp_path / "none", tmp_path, environ)
    assert caught.value.reason is Reason.SOURCE_REFUSED


def test_addresses_with_signatures_are_not_logged() -> None:
    build_client(Network()).close()
    assert not logging.getLogger("httpx").isEnabledFor(logging.INFO)


def test_backoff_doubles_up_to_its_limit_with_jitter() -> None:
    patience = Patience(first_s=1, most_s=10)
    drawn = [[patience.wait_s(failures) for _ in range(200)] for failures in range(1, 7)]
    for longest, waits in zip([1, 2, 4, 8, 10, 10], drawn, strict=True):
        assert 0.5 * longest < max(waits) <= longest
        assert min(waits) < 0.5 * longest
    assert patience.wait_s(1, asked_s=5) == 5
    assert patience.wait_s(1, asked_s=5000) == 300


def test_tries_are_bounded() -> None:
    tries = []

    def fail() -> None:
        tries.append(1)
        raise TransientError("down")

    with pytest.raises(StageError) as caught:
        Retrier(
            what="spec.model.source: hf://a/b", patience=Patience(tries=4, first_s=0, most_s=0), stop=threading.Event()
        )(fail)
    assert caught.value.reason is Reason.SOURCE_UNAVAILABLE
    assert caught.value.message == "spec.model.source: hf://a/b could not be fetched, 4 times in a row: down"
    assert len(tries) == 4


def test_waiting_ends_when_nobody_waits_any_more() -> None:
    def fail() -> None:
        raise TransientError("down", wait_s=60)

    stop = threading.Event()
    stop.set()
    with pytest.raises(StoppedError):
        Retrier(what="it", patience=Patience(), stop=stop)(fail)


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../x", "a/../../x", "", ".", "a\0b", "a\\b", "a" * 231, "/".join(["a" * 200] * 6), "a\ud800.jpg"],
)
def test_names_that_leave_the_folder_or_fit_nowhere(name: str) -> None:
    with pytest.raises(StageError) as caught:
        check_name(name, "spec.dataset.source", "s3://b")
    assert caught.value.reason is Reason.SOURCE_REFUSED
    assert caught.value.message.startswith("spec.dataset.source: s3://b holds ")


def test_names_that_stay() -> None:
    assert check_name("./a//b ü.jpg", "spec.dataset.source", "s3://b") == "a/b ü.jpg"


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin", "model.fp16.safetensors"], ["model.safetensors"]),
        (["pytorch_model.bin", "training_args.bin", "optimizer.pt"], ["pytorch_model.bin"]),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
          "pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json", "consolidated.safetensors"],
         ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]),
        (["adapter_model.bin", "adapter_model.safetensors", "non_lora_trainables.bin", "adapter_config.json"],
         ["adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.bin"]),
        (["mm_projector.bin", "config.json"], ["config.json", "mm_projector.bin"]),
        (["projector.safetensors", "config.json"], ["config.json", "projector.safetensors"]),
        (["sub/model.safetensors", "modeling.py", "tokenizer.model", "tf_model.h5"], ["tokenizer.model"]),
    ],
)  # fmt: skip
def test_files_of_a_model_that_are_needed(names: list[str], chosen: list[str]) -> None:
    assert choose_model_files(names) == chosen


@pytest.mark.parametrize("content", ["no JSON", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_index_that_names_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "index").write_text(content)
    assert shards_of(tmp_path / "index") == []
    assert shards_of(tmp_path / "none") == []


def make_dataset(**changes: Any) -> Dataset:
    return Dataset.model_validate({"source": "s3://bucket/", "format": "llava", "file": "train.json", **changes})


def test_files_of_a_dataset_that_are_needed() -> None:
    dataset = make_dataset(images="pics/", validation={"file": "./val.json"})
    assert list_own_files(dataset) == ["train.json", "val.json"]
    assert list_companions(dataset) == []
    needed = ["train.json", "val.json", "pics/a.jpg", "pics/sub/b.jpg"]
    assert [name for name in [*needed, "other.json", "pics2/a.jpg"] if may_be_needed(dataset, name)] == needed
    assert may_be_needed(make_dataset(), "anything")


def test_files_of_a_ubiai_export() -> None:
    words = make_dataset(format="ubiai", file="ocr/X.txt", images="pics", ubiai={"documents": "map.json"})
    assert list_own_files(words) == ["ocr/X.txt", "map.json"]
    assert list_companions(words) == ["ocr/X_box.txt", "ocr/X_image.txt"]
    assert may_be_needed(words, "ocr/X_box.txt")
    assert list_companions(make_dataset(format="ubiai", file="export.json")) == []


def test_shards_that_a_pattern_names_are_needed() -> None:
    dataset = make_dataset(
        format="table", file="data/train-*.parquet", images="pics", table={"question": "q", "answer": "a"}
    )
    needed = ["data/train-0.parquet", "data/train-1.parquet", "pics/a.jpg"]
    others = ["data/test-0.parquet", "data/train-0.parquet/x", "other/train-0.parquet"]
    assert [name for name in [*needed, *others] if may_be_needed(dataset, name)] == needed


def test_shards_name_their_images_and_those_that_they_hold_are_not_fetched(tmp_path: Path) -> None:
    rows = [
        [{"image": {"path": "a.jpg", "bytes": None}, "q": "Q", "a": "A"}],
        [{"image": {"path": "b.jpg", "bytes": b"held"}, "q": "Q", "a": "A"}, {"image": None, "q": "Q", "a": "A"}],
    ]
    kind = pa.schema(
        [("image", pa.struct([("path", pa.string()), ("bytes", pa.binary())])), ("q", pa.string()), ("a", pa.string())]
    )
    for number, shard in enumerate(rows):
        pq.write_table(pa.Table.from_pylist(shard, kind), tmp_path / f"{number}.parquet")
    columns = {"image": "image", "question": "q", "answer": "a"}
    dataset = make_dataset(format="table", file="*.parquet", table=columns)
    assert list(read_image_names(dataset, tmp_path)) == ["a.jpg"]


def test_images_that_leave_the_source_are_left_to_the_checks() -> None:
    dataset = make_dataset(images="pics")
    wanted = ["a.jpg", "sub/../b.jpg", "../c.jpg", "../../d.jpg", "/e.jpg", "a.jpg", ".."]
    assert place_images(dataset, wanted) == ["c.jpg", "pics/a.jpg", "pics/b.jpg"]


def test_damaged_export_names_what_it_can(tmp_path: Path) -> None:
    good = {
        "image": "a.jpg",
        "conversations": [{"from": "human", "value": "<image>\nx"}, {"from": "gpt", "value": "y"}],
    }
    (tmp_path / "train.json").write_text(f"{json.dumps(good)}\nnonsense\n{json.dumps({**good, 'image': 'b.jpg'})}\n")
    assert list(read_image_names(make_dataset(), tmp_path)) == ["a.jpg", "b.jpg"]
    (tmp_path / "train.json").write_text("nonsense")
    assert list(read_image_names(make_dataset(), tmp_path)) == []


def test_ubiai_export_names_its_images(tmp_path: Path) -> None:
    entry = {"document": "Total 9", "documentName": "a.png", "annotation": [{"start": 6, "end": 7, "label": "TOTAL"}]}
    (tmp_path / "export.json").write_text(json.dumps([entry]))
    dataset = make_dataset(format="ubiai", file="export.json", ubiai={"questions": {"TOTAL": "What is the total?"}})
    assert list(read_image_names(dataset, tmp_path)) == ["a.png"]


def test_progress_is_told_now_and_then(tmp_path: Path) -> None:
    recorder = Recorder(run_config(tmp_path))
    seconds = iter([0, 0.1, 0.2, 0.6, 0.7])
    progress = Progress(recorder, clock=lambda: next(seconds))
    progress.begin("spec.model.source hf://a/b", 100)
    for _ in range(3):
        progress.add(30, "model.safetensors")
    progress.add(-50, "model.safetensors")
    assert recorder.steps == [(0, 100), (90, 100)]


def test_progress_of_threads_is_told_in_its_order(tmp_path: Path) -> None:
    both = threading.Barrier(2)
    together = []

    class Slow(Recorder):
        def update(self, step: int, total_steps: int, **measures: object) -> None:
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait(0.1)
                together.append("two threads tell at once")
            super().update(step, total_steps, **measures)

    recorder = Slow(run_config(tmp_path))
    progress = Progress(recorder, clock=itertools.count().__next__)
    threads = [threading.Thread(target=progress.add, args=(10, name)) for name in ("a.jpg", "b.jpg")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == []
    assert recorder.steps == sorted(recorder.steps)
