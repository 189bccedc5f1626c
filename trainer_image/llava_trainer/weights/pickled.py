"""PyTorch's pickles (``.bin``, ``.pt``, ``.pth``): which tensors one describes, and where their bytes lie.

What the pickle describes (``unpickler``) is held against the file. Both formats are read: the archive since PyTorch
1.6, and the stream before it.

Formats: torch/serialization.py (``_save``, ``_legacy_save``).
"""

import errno
import io
import math
import pickle
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from llava_trainer.weights.unpickler import (
    MAX_PROGRAM_BYTES,
    LimitedStream,
    PickleError,
    View,
    read_tensors,
    read_value,
)

_MAX_ENTRIES = 1_000_000
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_COUNT = struct.Struct("<q")
_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001

_DAMAGED = (
    pickle.UnpicklingError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, KeyError,
    IndexError, AttributeError, TypeError, OverflowError, struct.error,
)  # fmt: skip
"""What reading a damaged file raises."""


@dataclass(frozen=True, kw_only=True)
class PickledTensor:
    """Where a tensor lies in a file, and how its elements follow each other there."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    """Of each dimension, in elements."""
    begin: int
    """Its first byte in the file."""

    def read(self, file: Path) -> torch.Tensor:
        """Read it into memory of its own, contiguous.

        Raises:
            EOFError: the file has become shorter.
        """
        num_bytes = self.extent * self.dtype.itemsize
        content = bytearray(num_bytes)
        with file.open("rb") as stream:
            stream.seek(self.begin)
            if stream.readinto(content) != num_bytes:
                raise EOFError(f"{file} ends within a tensor")
        if not num_bytes:
            return torch.empty(self.shape, dtype=self.dtype)
        return torch.frombuffer(content, dtype=self.dtype).as_strided(self.shape, self.stride).contiguous()

    @property
    def extent(self) -> int:
        """Elements from its first to its last one."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True))


def read_pickle(file: Path) -> dict[str, PickledTensor]:
    """The tensors of a pickle by name; nothing in it is run, and none of their bytes is read.

    Raises:
        PickleError: see there.
        OSError: it cannot be read.
    """
    try:
        with file.open("rb") as stream:
            is_archive = zipfile.is_zipfile(stream)
            stream.seek(0)
            return _read_archive(stream) if is_archive else _read_stream(stream)
    except PickleError:
        raise
    except _DAMAGED as error:
        raise PickleError(f"it is damaged: {error}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # A place before the file's beginning, as a damaged directory of the archive says.
        raise PickleError(f"it is damaged: {error}") from error


def _read_archive(stream: BinaryIO) -> dict[str, PickledTensor]:
    with zipfile.ZipFile(stream) as archive:
        entries = archive.infolist()
        if len(entries) > _MAX_ENTRIES or len({entry.filename for entry in entries}) != len(entries):
            raise PickleError("its archive names an entry twice, or has too many")
        for entry in entries:
            _check_plain(entry)
        # PyTorch puts everything below one folder, whatever its name.
        programs = [entry for entry in entries if entry.filename.split("/")[1:] == ["data.pkl"]]
        if len(programs) != 1 or programs[0].file_size > MAX_PROGRAM_BYTES:
            raise PickleError("its archive is none of PyTorch's: it has no data.pkl of a usable size")
        folder = programs[0].filename.removesuffix("data.pkl")
        by_name = {entry.filename: entry for entry in entries}
        order = by_name.get(f"{folder}byteorder")
        if order is not None and archive.read(order) != b"little":
            raise PickleError("its numbers are not in little-endian order")
        described = read_tensors(io.BytesIO(archive.read(programs[0])), archived=True)
    places: dict[str, int] = {}
    for storage in {view.storage for view in described.values()}:
        content = by_name.get(f"{folder}data/{storage.key}")
        if content is None or content.file_size < storage.num_bytes:
            raise PickleError(f"the {storage.num_bytes:,} bytes of storage {storage.key!r:.40} are not all there")
        places[storage.key] = _find_content(stream, content)
    return _place(described, places)


def _check_plain(entry: zipfile.ZipInfo) -> None:
    """Only what is stored as it is can be read where it lies; PyTorch writes nothing else."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 0x1 or entry.file_size != entry.compress_size:
        raise PickleError(
            f"its entry {entry.filename!r:.60} is compressed or encrypted, and its content is read where it lies: "
            "save it anew with torch.save"
        )


def _find_content(stream: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where an entry's content begins: behind a header of its own, which must say the same as the directory."""
    stream.seek(entry.header_offset)
    header = stream.read(30)
    signature, name_size, extra_size = _LOCAL_HEADER.unpack(header)
    if signature != b"PK\x03\x04" or header[8:10] != b"\0\0" or header[6] & 0x1:
        raise PickleError(f"its entry {entry.filename!r:.60} is not stored as the archive's directory says")
    begin: int = entry.header_offset + len(header) + name_size + extra_size
    if begin + entry.file_size > stream.seek(0, io.SEEK_END):
        raise PickleError(f"its entry {entry.filename!r:.60} ends behind the file's end")
    return begin


def _read_stream(stream: BinaryIO) -> dict[str, PickledTensor]:
    limited = LimitedStream(stream)
    for wanted in (_MAGIC_NUMBER, _PROTOCOL):
        if read_value(limited) != wanted:
            raise PickleError("it is none of PyTorch's")
    system = read_value(limited)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise PickleError("its numbers are not in little-endian order")
    described = read_tensors(limited, archived=False)
    keys = read_value(limited)
    known = {view.storage.key: view.storage for view in described.values()}
    places: dict[str, int] = {}
    begin = stream.tell()
    end = stream.seek(0, io.SEEK_END)
    for key in keys:
        stream.seek(begin)
        (num_elements,) = _COUNT.unpack(stream.read(_COUNT.size))
        storage = known.get(key)
        if storage is None or num_elements != storage.num_elements:
            raise PickleError(f"storage {key!r:.40} is not as it is described")
        places[key] = begin + _COUNT.size
        begin = places[key] + storage.num_bytes
        if begin > end:
            raise PickleError("it ends within a tensor")
    return _place(described, places)


def _place(described: Mapping[str, View], places: Mapping[str, int]) -> dict[str, PickledTensor]:
    tensors = {}
    for name, view in described.items():
        storage = view.storage
        tensor = PickledTensor(
            dtype=storage.dtype, shape=view.shape, stride=view.stride,
            begin=places[storage.key] + view.offset * storage.dtype.itemsize,
        )  # fmt: skip
        # Elements that several places show (an expanded tensor) would make terabytes of a small file.
        if view.offset + tensor.extent > storage.num_elements or math.prod(view.shape) > storage.num_elements:
            raise PickleError(f"{name!r:.80} reaches beyond what is stored of it")
        tensors[name] = tensor
    return tensors
