"""Images: names by content, what is thrown away, how the machine's index settings reach a build."""

from __future__ import annotations

import base64
import hashlib
import json
import tarfile
from pathlib import Path

import pytest

from tests.localcluster import store
from tests.localcluster.archive import write_single_file_image
from tests.localcluster.errors import ClusterError
from tests.localcluster.images import TRAINER, image_tag, source_files
from tests.localcluster.indexes import pip_configuration, uv_configuration
from tests.localcluster.loading import chain_ids
from tests.localcluster.store import disposable_images, find_image, normalized


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for source in TRAINER.sources:
        file = tmp_path / source if "." in source or source == "LICENSE" else tmp_path / source / "module.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(source)
    (tmp_path / TRAINER.dockerfile).write_text("FROM base\n")
    return tmp_path


def test_tag_follows_everything_that_goes_in(checkout: Path) -> None:
    tags = {image_tag(TRAINER, "base:1", checkout), image_tag(TRAINER, "base:2", checkout)}
    for file in ("constraints.txt", TRAINER.dockerfile, "crds/module.py"):
        (checkout / file).write_text("changed")
        tags.add(image_tag(TRAINER, "base:1", checkout))
    (checkout / "crds/module.py").rename(checkout / "crds/renamed.py")
    tags.add(image_tag(TRAINER, "base:1", checkout))
    assert len(tags) == 6


def test_tag_ignores_what_stays_outside(checkout: Path) -> None:
    tag = image_tag(TRAINER, "base:1", checkout)
    (checkout / "crds/__pycache__").mkdir()
    (checkout / "crds/__pycache__/module.pyc").write_text("compiled")
    (checkout / "operator/Dockerfile").write_text("of another image")
    (checkout / "docs.md").write_text("of no image")
    assert image_tag(TRAINER, "base:1", checkout) == tag


def test_missing_source_is_named(checkout: Path) -> None:
    with pytest.raises(ClusterError, match=r"no-such-folder is needed to build the image and does not exist"):
        source_files(checkout, ["crds", "no-such-folder"])


def test_chain_ids_are_those_of_the_image_specification() -> None:
    first, second = "sha256:" + "a" * 64, "sha256:" + "b" * 64
    expected = "sha256:" + hashlib.sha256(f"{first} {second}".encode()).hexdigest()
    assert chain_ids([first, second]) == [first, expected]


@pytest.mark.parametrize(
    ("reference", "full"),
    [
        ("thing", "localhost/thing:latest"),
        ("thing:dev", "localhost/thing:dev"),
        ("localhost/thing:dev", "localhost/thing:dev"),
        ("registry:5000/thing", "registry:5000/thing:latest"),
    ],
)
def test_reference_is_completed(reference: str, full: str) -> None:
    assert normalized(reference) == full


def _image(identifier: str, created: int, layer: str, *names: str) -> dict[str, object]:
    return {"id": identifier, "created": f"2026-01-01T00:00:{created:02}Z", "layer": layer, "names": list(names)}


def test_old_images_and_unneeded_big_layers_go() -> None:
    layers = [
        {"id": "base", "diff-size": 100},
        {"id": "old-big", "parent": "base", "diff-size": 5000},
        {"id": "old-code", "parent": "old-big", "diff-size": 1},
        {"id": "big", "parent": "base", "diff-size": 5000},
        {"id": "code", "parent": "big", "diff-size": 1},
        {"id": "step", "parent": "base", "diff-size": 10},
    ]
    images = [
        _image("oldest", 1, "old-code", "localhost/trainer:1"),
        _image("old-cache", 2, "old-big"),
        _image("cache", 3, "big"),
        _image("small-cache", 4, "step"),
        _image("second", 5, "code", "localhost/trainer:2"),
        _image("newest", 6, "code", "localhost/trainer:3", "localhost/trainer:dev"),
        _image("base", 0, "base", "localhost/base:1"),
    ]
    assert disposable_images(images, layers, num_kept=2, big_bytes=1000) == ["oldest", "old-cache"]


def test_image_named_dev_stays_however_old() -> None:
    images = [_image("a", 1, "x", "localhost/t:1", "localhost/t:dev"), _image("b", 2, "x", "localhost/t:2")]
    assert disposable_images(images, [{"id": "x"}], num_kept=1, big_bytes=1000) == []


def _write_storage(root: Path, *, diff_ids: list[str]) -> None:
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).encode()
    digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
    folder = root / "overlay-images/1"
    folder.mkdir(parents=True)
    (folder / ("=" + base64.b64encode(digest.encode()).decode())).write_bytes(config)
    (folder / "manifest").write_text(json.dumps({"config": {"digest": digest}}))
    images = [{"id": "1", "names": ["localhost/thing:dev"], "layer": "top"}]
    (root / "overlay-images/images.json").write_text(json.dumps(images))
    layers = [{"id": "top", "parent": "bottom", "diff-digest": "sha256:t"}, {"id": "bottom", "diff-digest": "sha256:b"}]
    (root / "overlay-layers").mkdir()
    (root / "overlay-layers/layers.json").write_text(json.dumps(layers))


def test_image_is_found_with_its_layers_from_the_bottom_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "storage_root", lambda: tmp_path)
    assert find_image("thing:dev") is None
    _write_storage(tmp_path, diff_ids=["sha256:b", "sha256:t"])
    image = find_image("thing:dev")
    assert image is not None
    assert [layer.files for layer in image.layers] == [tmp_path / "overlay" / key / "diff" for key in ("bottom", "top")]
    assert find_image("thing:other") is None


def test_contradictory_storage_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "storage_root", lambda: tmp_path)
    _write_storage(tmp_path, diff_ids=["sha256:b", "sha256:another"])
    with pytest.raises(ClusterError, match=r"localhost/thing:dev: its layers are not those of its configuration"):
        find_image("thing:dev")


def test_single_file_image_holds_what_its_digests_say(tmp_path: Path) -> None:
    program = tmp_path / "pause"
    program.write_bytes(b"a program")
    write_single_file_image(tmp_path / "image.tar", "localhost/pause:1", program)
    with tarfile.open(tmp_path / "image.tar") as archive:
        contents = {entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]
    for name, content in contents.items():
        if name.startswith("blobs/sha256/"):
            assert name.rpartition("/")[2] == hashlib.sha256(content).hexdigest()
    (entry,) = json.loads(contents["index.json"])["manifests"]
    assert entry["annotations"] == {"io.containerd.image.name": "localhost/pause:1"}
    assert len(contents) == 5  # layout, index, manifest, configuration, layer


def test_settings_of_the_machine_reach_the_build() -> None:
    settings = {"index-url": "https://index.example/simple", "find-links": "/wheels", "timeout": "180"}
    assert pip_configuration(settings).splitlines() == [
        "[global]",
        "disable-pip-version-check = true",
        "index-url = https://index.example/simple",
        "timeout = 180",
    ]
    assert 'index-url = "https://index.example/simple"' in uv_configuration(settings, {})
    own = uv_configuration(settings, {"UV_DEFAULT_INDEX": "https://other.example/simple"})
    assert 'index-url = "https://other.example/simple"' in own


def test_machine_without_settings_names_no_index() -> None:
    assert uv_configuration({}, {}) == "native-tls = true\n"
    assert "url" not in pip_configuration({})
