"""Names that others gave their files, on claims and in archives: told as what they are, in no harmful form."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from llava_api.failures import Reason
from llava_trainer.data.findings import Kind, noted, refused
from llava_trainer.errors import StageError
from llava_trainer.files import sha256_folder, tell_names
from llava_trainer.pages.rendering import escape_markdown
from llava_trainer.sources.archive import unpack

NASTY = b"a\xff\x1b[31m\xe2\x80\xae.jpg"
FIT = r"a\xff\x1b[31m\u202e.jpg"


def test_folder_s_names_are_told_fit_to_show(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(NASTY)).write_text("x")
    assert tell_names(tmp_path) == FIT


def test_folder_of_any_names_has_a_digest(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(NASTY)).write_text("x")
    assert sha256_folder(tmp_path).startswith("sha256:")


def test_findings_and_pages_are_fit_to_show() -> None:
    name = os.fsdecode(NASTY)
    for finding in (refused(name, f"picture {name} is bad"), noted(Kind.OVERLONG, name, name)):
        assert FIT in finding.where
        assert FIT in finding.message
    assert escape_markdown(name) == FIT.replace("\\", "\\\\").replace("[", "\\[")


def test_entries_of_an_archive_are_told_fit_to_show(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        info = tarfile.TarInfo(os.fsdecode(NASTY))
        info.type = tarfile.SYMTYPE
        archive.addfile(info)
    (tmp_path / "a.tar").write_bytes(stream.getvalue())
    with pytest.raises(StageError) as caught:
        unpack(tmp_path / "a.tar", tmp_path / "out", field="f", address="https://h/a.tar", on_bytes=lambda *_: None)
    assert caught.value.reason is Reason.SOURCE_REFUSED
    assert "is a link or a device" in caught.value.message
    caught.value.message.encode()
    assert "\x1b" not in caught.value.message
