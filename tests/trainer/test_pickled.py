"""Pickles of weights: read as torch.save wrote them, and refused where they are anything else. Nothing is run."""

import collections
import io
import pickle
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.weights import unpickler
from llava_trainer.weights.pickled import PickledTensor, read_pickle
from llava_trainer.weights.stored import find_stored
from llava_trainer.weights.unpickler import STORAGES, PickleError

REPOSITORY = Path(__file__).parents[2]


def make_state() -> dict[str, Any]:
    torch.manual_seed(0)
    wide = torch.randn(6, 8)
    state = collections.OrderedDict(
        plain=torch.randn(3, 5), half=torch.randn(4).half(), bf=torch.randn(2, 2).bfloat16(), ids=torch.arange(7),
        empty=torch.zeros(0, 4), scalar=torch.tensor(2.5), turned=wide.T, part=wide[2:5, 1:7:2], whole=wide,
        learned=torch.nn.Parameter(torch.randn(2)), flags=torch.tensor([True, False]), row=torch.ones(3).expand(1, 3),
    )  # fmt: skip
    state._metadata = collections.OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    return state


@pytest.mark.parametrize("archive", [True, False])
def test_what_torch_saved_is_read(tmp_path: Path, archive: bool) -> None:
    state, file = make_state(), tmp_path / "w.bin"
    torch.save(state, file, _use_new_zipfile_serialization=archive)
    found = {stored.name: stored for stored in find_stored(file)}
    assert list(found) == list(state)
    for name, tensor in state.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tuple(tensor.shape))
        read = found[name].read()
        assert torch.equal(read, tensor)
        assert read.is_contiguous()


def test_a_module_s_state_is_read(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    torch.save(module.state_dict(), tmp_path / "w.bin")
    assert [stored.name for stored in find_stored(tmp_path / "w.bin")] == list(module.state_dict())


def repack(file: Path, change: Any) -> None:
    """Write the archive anew, each entry as ``change`` makes it of (name, content): (name, content, compression)."""
    with zipfile.ZipFile(file) as old:
        entries = [change(info.filename, old.read(info)) for info in old.infolist()]
    with zipfile.ZipFile(file, "w") as new:
        for name, content, compression in entries:
            new.writestr(zipfile.ZipInfo(name), content, compress_type=compression)


def save(folder: Path, content: Any = None) -> Path:
    file = folder / "w.bin"
    torch.save({"a": torch.ones(64), "b": torch.zeros(64)} if content is None else content, file)
    return file


def refusal(file: Path) -> str:
    with pytest.raises(StageError) as caught:
        list(find_stored(file))
    assert caught.value.reason is Reason.INVALID_MODEL
    assert caught.value.message.startswith(f"{file} is refused: ")
    return caught.value.message


def test_compressed_entry_is_not_read_as_weights(tmp_path: Path) -> None:
    """torch maps it and takes the compressed bytes for numbers."""
    file = save(tmp_path)
    kind = zipfile.ZIP_DEFLATED
    repack(file, lambda name, content: (name, content, kind if name.endswith("data/0") else zipfile.ZIP_STORED))
    assert "'w/data/0' is compressed or encrypted" in refusal(file)


def test_entry_that_is_compressed_by_its_own_header_only(tmp_path: Path) -> None:
    file = save(tmp_path)
    with zipfile.ZipFile(file) as archive:
        begin = archive.getinfo("w/data/0").header_offset
    content = bytearray(file.read_bytes())
    content[begin + 8 : begin + 10] = struct.pack("<H", zipfile.ZIP_DEFLATED)
    file.write_bytes(content)
    assert "is not stored as the archive's directory says" in refusal(file)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda name, content: (name, content[:100] if name.endswith("data/1") else content, 0), "are not all there"),
        (lambda name, content: (name.replace("data/1", "data/9"), content, 0), "are not all there"),
        (lambda name, content: (name.replace("data.pkl", "other"), content, 0), "it has no data.pkl"),
        (lambda name, content: (name, b"big" if name.endswith("byteorder") else content, 0), "little-endian"),
        (lambda name, content: (name, b"\x80\x02." if name.endswith("data.pkl") else content, 0), "damaged"),
    ],
)
def test_archives_that_are_not_whole(tmp_path: Path, change: Any, told: str) -> None:
    file = save(tmp_path)
    repack(file, change)
    assert told in refusal(file)


def test_entry_that_stands_twice(tmp_path: Path) -> None:
    file = save(tmp_path)
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("w/data/0", bytes(256))
    assert "names an entry twice" in refusal(file)


def call(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n)R.".encode()


@pytest.mark.parametrize("legacy", [True, False])
def test_exactly_what_is_documented_may_be_named(tmp_path: Path, legacy: bool) -> None:
    """Libraries register further classes with torch's own unpickler when they are imported."""
    import accelerate  # noqa: F401
    import deepspeed  # noqa: F401
    import peft  # noqa: F401
    import transformers.trainer  # noqa: F401

    registered = {(one.__module__, one.__qualname__) for one in torch.serialization.get_safe_globals()
                  if hasattr(one, "__qualname__")}  # fmt: skip
    builtin = torch._weights_only_unpickler._get_allowed_globals()
    names = registered | {tuple(name.rsplit(".", 1)) for name in builtin} | {("os", "system"), ("builtins", "eval")}
    allowed = {
        ("collections", "OrderedDict"), ("torch._utils", "_rebuild_tensor"), ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"), *(("torch", name) for name in STORAGES),
    }  # fmt: skip
    assert len(names - allowed) > 20
    for module, name in sorted(names - allowed):
        program = b"\x80\x02}X\x01\x00\x00\x00a" + call(module, name)[:-1] + b"s."
        file = tmp_path / "w.bin"
        if legacy:
            head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
            file.write_bytes(b"".join(pickle.dumps(part, 2) for part in head) + program)
        else:
            save(tmp_path)
            repack(file, lambda entry, old, new=program: (entry, new if entry.endswith(".pkl") else old, 0))
        assert f"only plain tensors are read: this one names '{module}.{name}'"[:130] in refusal(file)
    text = (REPOSITORY / "docs" / "sources.md").read_text().replace("\n  ", " ")
    for module, name in allowed:
        assert f"`{module}.{name}`" in text or f"`{name}`" in text, f"docs/sources.md does not name {module}.{name}"


def archive_of(folder: Path, program: bytes) -> Path:
    file = save(folder)
    repack(file, lambda name, content: (name, program if name.endswith("data.pkl") else content, 0))
    return file


STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK@tQ"


def tensor_of(offset: bytes, shape: bytes, stride: bytes, storage: bytes = STORAGE) -> bytes:
    """A pickle of {"a": tensor} with what stands for its numbers."""
    made = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + offset
        + shape
        + stride
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )
    return b"\x80\x02}X\x01\x00\x00\x00a" + made + b"s."


def test_the_tensor_of_these_tests_is_read(tmp_path: Path) -> None:
    file = archive_of(tmp_path, tensor_of(b"K\x02", b"K\x03\x85", b"K\x01\x85"))
    assert read_pickle(file)["a"].read(file).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("program", "told"),
    [
        (tensor_of(b"K\x3e", b"K\x03\x85", b"K\x01\x85"), "reaches beyond"),
        (tensor_of(b"K\x00", b"K\x20\x85", b"K\x03\x85"), "reaches beyond"),
        (tensor_of(b"K\x00", b"J\xff\xff\xff\x7f\x85", b"K\x00\x85"), "reaches beyond"),
        (tensor_of(b"K\x00", b"J\xff\xff\xff\x7f" * 2 + b"\x86", b"K\x00K\x00\x86"), "reaches beyond"),
        (tensor_of(b"J\xff\xff\xff\xff", b"K\x03\x85", b"K\x01\x85"), "negative or impossible"),
        (tensor_of(b"K\x3f", b"K\x03\x85", b"J\xff\xff\xff\xff\x85"), "negative or impossible"),
        (tensor_of(b"K\x00", b"J\xff\xff\xff\xff\x85", b"K\x01\x85"), "negative or impossible"),
        (tensor_of(b"K\x00", b"K\x03\x85", b"K\x01K\x01\x86"), "a tensor that cannot be"),
        (tensor_of(b"K\x00", b"\x88\x85", b"K\x01\x85"), "negative or impossible"),
        (tensor_of(b"K\x00", b"K\x03\x85", b"K\x01\x85", b"K\x00"), "a tensor that cannot be"),
        (tensor_of(b"K\x00", b"K\x03\x85", b"K\x01\x85", STORAGE.replace(b"K@", b"K\xff")), "are not all there"),
        (tensor_of(b"K\x00", b"K\x03\x85", b"K\x01\x85", STORAGE.replace(b"K@", b"J\xff\xff\xff\xff")), "cannot be"),
        (tensor_of(b"K\x00", b"K\x03\x85", b"K\x01\x85", STORAGE.replace(b"0X", b"7X")), "are not all there"),
        (tensor_of(b"K\x00", b"K\x03\x85", b"K\x01\x85", STORAGE.replace(b"K@t", b"K@K\x01t")), "part of another"),
        (b"\x80\x02]}a.", "holds a list, not tensors"),
        (b"\x80\x02}X\x01\x00\x00\x00aK\x01s.", "'a' is a int, not a tensor"),
        (b"\x80\x02}(K\x01K\x02\x86K\x01u.", "has a tuple for a name"),
        (b"\x80\x02}K\x01K\x02\x86K\x01s.", "has a tuple for a name"),
        (b"\x80\x02(K\x01K\x02\x86K\x01d.", "has a tuple for a name"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "it calls a _Class"),
        (b"\x80\x02}}b.", "gives attributes to a dict"),
        (b"\x80\x02ccollections\nOrderedDict\n]K\x01a\x85R.", "it calls a type"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", ""),
        (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fa.", "damaged"),
        (b"\x80\x04\x8f.", "damaged"),
        (b"(ios\nsystem\n.", "damaged"),
        (b"\x82\x01.", "damaged"),
        (b"\x80\x02cos\n\xff\xff\n)R.", "damaged"),
    ],
)
def test_programs_that_describe_something_else(tmp_path: Path, program: bytes, told: str) -> None:
    """The memo entry 2,147,483,647 alone (no message of its own: it is harmless) takes the C unpickler 16 GB."""
    file = archive_of(tmp_path, program)
    if told:
        assert told in refusal(file)
    else:
        assert list(find_stored(file)) == []


def test_stream_whose_beginning_is_endless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickler, "MAX_PROGRAM_BYTES", 1000)
    (tmp_path / "w.bin").write_bytes(b"\x80\x04X\xff\xff\xff\x00" + bytes(5000))
    assert "more than 1,000 bytes before its tensors" in refusal(tmp_path / "w.bin")


def test_stream_that_is_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "w.bin"
    torch.save({"a": torch.ones(64), "b": torch.zeros(64)}, file, _use_new_zipfile_serialization=False)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert "it ends within a tensor" in refusal(file)
    file.write_bytes(whole.replace(struct.pack("<q", 64), struct.pack("<q", 65), 1))
    assert "is not as it is described" in refusal(file)


def test_file_that_shrinks_before_it_is_read(tmp_path: Path) -> None:
    file = save(tmp_path)
    [first, _] = find_stored(file)
    file.write_bytes(b"")
    with pytest.raises(EOFError, match="ends within a tensor"):
        first.read()


def _samples() -> list[bytes]:
    streams = []
    for archive in (True, False):
        stream = io.BytesIO()
        torch.save(make_state(), stream, _use_new_zipfile_serialization=archive)
        streams.append(stream.getvalue())
    return streams


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), sample=st.sampled_from([0, 1]))
@example(seed=232538, sample=0)
def test_damage_is_told_or_harmless(tmp_path: Path, seed: int, sample: int) -> None:
    """Whatever bytes are changed: a refusal, or tensors that lie inside the file and are no larger than it."""
    chance = random.Random(seed)
    content = bytearray(_samples()[sample])
    for _ in range(chance.randint(1, 20)):
        content[chance.randrange(min(len(content), 6000))] = chance.choice((0, 1, 0x7F, 0xFF, chance.randrange(256)))
    file = tmp_path / "w.bin"
    file.write_bytes(content)
    try:
        found = read_pickle(file)
    except PickleError:
        return
    for tensor in found.values():
        assert isinstance(tensor, PickledTensor)
        read = tensor.read(file)
        assert read.numel() * read.element_size() <= len(content)
