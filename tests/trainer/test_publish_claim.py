"""What a claim that others write to may hold, and what is made of it."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.publishing import claim as claim_module
from llava_trainer.publishing.content import Content, Item
from llava_trainer.publishing.destination import Sent
from tests.trainer.places import FIELD, make_content
from tests.trainer.publications import publish

ADDRESS = "pvc://shelf/models/trays"
FILES = {"model.safetensors": bytes(range(256)) * 4000, "config.json": b"{}", "sub/tokenizer.json": b"{}" * 100}


@pytest.fixture
def content(tmp_path: Path) -> Content:
    return make_content(tmp_path / "content", FILES)


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    shelf = tmp_path / "claims" / "shelf"
    shelf.mkdir(parents=True)
    return shelf


def names(folder: Path) -> set[str]:
    return {str(one.relative_to(folder)) for one in folder.rglob("*") if not one.is_dir()}


def fail(content: Content, root: Path, address: str = ADDRESS, **more: object) -> StageError:
    with pytest.raises(StageError) as raised:
        publish(content, address, root, **more)  # type: ignore[arg-type]
    assert raised.value.message.startswith(f"{FIELD}: {address}")
    return raised.value


def test_everybody_may_read_it(tmp_path: Path, content: Content, shelf: Path) -> None:
    previous = os.umask(0o077)
    try:
        told: list[int] = []
        assert publish(content, ADDRESS, tmp_path, on_bytes=told.append) == Sent(sent_bytes=content.size)
    finally:
        os.umask(previous)
    assert told[-1] == content.size
    assert told == sorted(told)
    folder = shelf / "models" / "trays"
    assert names(folder) == {item.name for item in content.items}
    assert {stat.S_IMODE(one.stat().st_mode) for one in (folder, folder / "sub", folder.parent)} == {0o755}
    assert {stat.S_IMODE((folder / item.name).stat().st_mode) for item in content.items} == {0o644}


def test_empty_folder_is_filled(tmp_path: Path, content: Content, shelf: Path) -> None:
    (shelf / "models" / "trays").mkdir(parents=True)
    assert publish(content, ADDRESS, tmp_path).sent_bytes == content.size


def put_other_file(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")


def change_a_byte(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def change_a_size(folder: Path) -> None:
    (folder / "config.json").write_text("{} ")


def remove_one(folder: Path) -> None:
    (folder / "sub" / "tokenizer.json").unlink()


def put_link(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("publication.json")


def put_pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def put_depths(folder: Path) -> None:
    (folder / Path(*"abcdefghijkl")).mkdir(parents=True)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (put_other_file, "holds notes.txt, which is no part of this publication"),
        (change_a_byte, "holds another config.json"),
        (change_a_size, "holds another config.json"),
        (remove_one, "holds a part of this model only, without sub/tokenizer.json"),
        (put_link, "holds config.json, which is no file of a model"),
        (put_pipe, "holds pipe, which is no file of a model"),
        (put_depths, "which is no file of a model"),
    ],
)
def test_folder_with_something_else_is_left_alone(
    change: Callable[[Path], None], told: str, tmp_path: Path, content: Content, shelf: Path
) -> None:
    publish(content, ADDRESS, tmp_path)
    folder = shelf / "models" / "trays"
    change(folder)
    before = {one: one.lstat() for one in shelf.rglob("*")}
    error = fail(content, tmp_path)
    assert error.reason is Reason.DESTINATION_REFUSED
    assert told in error.message
    assert "name another folder, or empty this one" in error.message
    assert {one: one.lstat().st_mtime_ns for one in before} == {one: was.st_mtime_ns for one, was in before.items()}


@pytest.mark.parametrize("where", ["models", "models/trays"])
@pytest.mark.parametrize("kind", ["link", "file"])
def test_nothing_is_written_through_a_link(
    where: str, kind: str, tmp_path: Path, content: Content, shelf: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    place = shelf / where
    place.parent.mkdir(exist_ok=True)
    if kind == "link":
        place.symlink_to(outside)
    else:
        place.write_text("")
    error = fail(content, tmp_path)
    assert error.reason is Reason.DESTINATION_REFUSED
    assert "symbolic link" in error.message
    assert list(outside.iterdir()) == []


def hidden_of(shelf: Path) -> Path:
    (hidden,) = (shelf / "models").glob(".publishing-*")
    return hidden


def interrupt(content: Content, tmp_path: Path) -> None:
    """Leave what an attempt leaves that is superseded before the last step."""
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == len(content.items) + 1:
            raise StageError(Reason.SUPERSEDED, "a later attempt does the work")

    with pytest.raises(StageError, match="Superseded"):
        publish(content, ADDRESS, tmp_path, check_attempt=check)


def test_attempt_that_is_superseded_publishes_nothing(tmp_path: Path, content: Content, shelf: Path) -> None:
    interrupt(content, tmp_path)
    assert not (shelf / "models" / "trays").exists()
    assert names(hidden_of(shelf)) == {item.name for item in content.items}
    assert publish(content, ADDRESS, tmp_path) == Sent(sent_bytes=0), "all of it was there, and was not to be seen"
    assert publish(content, ADDRESS, tmp_path) == Sent(sent_bytes=0, was_there=True)


def test_leftovers_that_somebody_has_changed_are_written_anew(tmp_path: Path, content: Content, shelf: Path) -> None:
    interrupt(content, tmp_path)
    hidden = hidden_of(shelf)
    (hidden / "config.json").write_text("[]")
    (hidden / "notes.txt").write_text("mine")
    (hidden / "more").mkdir()
    (hidden / "more" / "notes.txt").write_text("mine")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (hidden / "link").symlink_to(outside)
    (hidden / "sub" / "tokenizer.json").unlink()
    (hidden / "sub").rmdir()
    (hidden / "sub").symlink_to(outside)
    assert publish(content, ADDRESS, tmp_path).sent_bytes == len(FILES["config.json"] + FILES["sub/tokenizer.json"])
    assert names(shelf / "models" / "trays") == {item.name for item in content.items}
    assert names(outside) == {"kept"}


def test_hidden_folder_that_is_a_link_is_replaced(tmp_path: Path, content: Content, shelf: Path) -> None:
    interrupt(content, tmp_path)
    hidden = hidden_of(shelf)
    hidden.rename(tmp_path / "moved")
    hidden.symlink_to(tmp_path / "moved")
    assert publish(content, ADDRESS, tmp_path).sent_bytes == content.size
    assert (tmp_path / "moved" / "config.json").exists()


def test_what_is_put_there_meanwhile_stays(tmp_path: Path, content: Content, shelf: Path) -> None:
    folder = shelf / "models" / "trays"

    def put(done: int) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "other.bin").write_text("mine")

    error = fail(content, tmp_path, on_bytes=put)
    assert error.reason is Reason.DESTINATION_REFUSED
    assert "something that was put there meanwhile" in error.message
    assert names(folder) == {"other.bin"}
    assert [one.name for one in folder.parent.iterdir()] == ["trays"], "14 GB would lie there unseen"


def test_both_lie_in_each_other(tmp_path: Path, content: Content, shelf: Path) -> None:
    adapter = make_content(tmp_path / "adapter", {"adapter_model.safetensors": b"1234"}, what="adapter")
    for sent in (content.size, 0):
        assert publish(content, ADDRESS, tmp_path, beside="adapter").sent_bytes == sent
        assert publish(adapter, ADDRESS, tmp_path, folder="adapter").sent_bytes == (adapter.size if sent else 0)
    assert [one.name for one in (shelf / "models").iterdir()] == ["trays"]
    assert names(shelf / "models" / "trays" / "adapter") == {item.name for item in adapter.items}


def test_damaged_file_is_not_published(tmp_path: Path, content: Content, shelf: Path) -> None:
    (tmp_path / "content" / "model.safetensors").write_bytes(FILES["model.safetensors"][:-1] + b"x")
    with pytest.raises(StageError) as raised:
        publish(content, ADDRESS, tmp_path)
    assert raised.value.reason is Reason.RESULT_DAMAGED
    assert not (shelf / "models" / "trays").exists()


def test_claim_that_is_not_mounted(tmp_path: Path, content: Content) -> None:
    error = fail(content, tmp_path)
    assert error.reason is Reason.DESTINATION_REFUSED
    assert "the claim is not mounted at" in error.message


@pytest.mark.parametrize(
    ("number", "reason", "told"),
    [
        (errno.EROFS, Reason.DESTINATION_REFUSED, "must be allowed to write to the claim"),
        (errno.EACCES, Reason.DESTINATION_REFUSED, "cannot be written (Permission denied)"),
        (errno.EDQUOT, Reason.DESTINATION_REFUSED, "the claim is full (Disk quota exceeded)"),
        (errno.EIO, Reason.DESTINATION_UNAVAILABLE, "look at its PersistentVolume"),
        (errno.ESTALE, Reason.DESTINATION_UNAVAILABLE, "look at its PersistentVolume"),
    ],
)
def test_disk_that_fails(
    number: int, reason: Reason, told: str, tmp_path: Path, content: Content, shelf: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fail_to(*given: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(claim_module, "create_file", fail_to)
    error = fail(content, tmp_path)
    assert error.reason is reason
    assert told in error.message
    assert not (shelf / "models" / "trays").exists()


def test_file_system_without_modes(
    tmp_path: Path, content: Content, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_to(*given: object) -> None:
        raise PermissionError(errno.EPERM, "no modes here")

    monkeypatch.setattr(os, "fchmod", fail_to)
    assert publish(content, ADDRESS, tmp_path).sent_bytes == content.size


def test_item_that_is_a_pipe_is_not_waited_for(tmp_path: Path, content: Content, shelf: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    item = Item(name="model.safetensors", path=tmp_path / "pipe", size=0, sha256="0" * 64)
    with pytest.raises(StageError, match="no plain file any more"):
        publish(Content(what="merged", items=[item]), ADDRESS, tmp_path)
