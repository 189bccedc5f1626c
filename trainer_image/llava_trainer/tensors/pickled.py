"""PyTorch's pickles (``.bin``, ``.pt``, ``.pth``): which tensors one describes, and where their bytes lie.

A pickle is a program. PyTorch's own restricted unpickler allows what any imported library has registered with it, and
maps entries of the archive whatever way they are packed. Here a pickle may name what stands in ``_MAKERS`` and
``STORAGES`` and nothing else, and nothing of PyTorch is called: what it would have made is described instead, and held
against the file. Both formats are read: the archive since PyTorch 1.6, and the stream before it.

Formats: torch/serialization.py (``_save``, ``_legacy_save``) and torch/_utils.py (``_rebuild_tensor_v2``).
"""

import errno
import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

MAX_PROGRAM_BYTES = 256 << 20
"""Of what describes the tensors: that of a model of 13B has 100 kB."""
_MAX_ENTRIES = 1_000_000
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_COUNT = struct.Struct("<q")
_MAX_NAME_BYTES = 1024
_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001

_DAMAGED = (
    pickle.UnpicklingError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, KeyError,
    IndexError, AttributeError, TypeError, OverflowError, struct.error,
)  # fmt: skip
"""What reading a damaged file raises."""

STORAGES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
"""Classes of module ``torch`` that a pickle may name, and what they hold."""


class PickleError(ValueError):
    """The file is damaged, or holds something else than tensors by name; the message says what."""


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


@dataclass(frozen=True, kw_only=True)
class _Storage:
    """Elements of one type that tensors are cut out of."""

    key: str
    dtype: torch.dtype
    num_elements: int

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return self.num_elements * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class _View:
    """A tensor before it is known where its storage lies."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _Class:
    """A name of ``STORAGES``."""

    dtype: torch.dtype


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
        described = _Reader(io.BytesIO(archive.read(programs[0])), archived=True).load_tensors()
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
    limited = _Limited(stream)
    for wanted in (_MAGIC_NUMBER, _PROTOCOL):
        if _Reader(limited, archived=False).load() != wanted:
            raise PickleError("it is none of PyTorch's")
    system = _Reader(limited, archived=False).load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise PickleError("its numbers are not in little-endian order")
    described = _Reader(limited, archived=False).load_tensors()
    keys = _Reader(limited, archived=False).load()
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


def _place(described: Mapping[str, _View], places: Mapping[str, int]) -> dict[str, PickledTensor]:
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


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> _View:
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, _Storage) or len(shape) != len(stride) or len(shape) > 64:
        raise PickleError("it describes a tensor that cannot be")
    if any(type(number) is not int or not 0 <= number < 2**62 for number in numbers):
        raise PickleError("it describes a tensor of negative or impossible size")
    return _View(storage=storage, offset=offset, shape=tuple(shape), stride=tuple(stride))


def _rebuild_parameter(tensor: Any, *_: Any) -> _View:
    if not isinstance(tensor, _View):
        raise PickleError("it describes a parameter that is no tensor")
    return tensor


class _Mapping(dict[str, Any]):
    """What stands for an ordered dict, which may carry attributes (``_metadata``)."""


_MAKERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _Mapping,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}
"""What a pickle may call, and what is called in its place."""


def _allow(*opcodes: bytes) -> dict[int, Callable[..., None]]:
    known = cast(Any, pickle)._Unpickler.dispatch
    return {opcode[0]: known[opcode[0]] for opcode in opcodes}


class _Limited:
    """Of the stream format, as much as may describe tensors."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._left = MAX_PROGRAM_BYTES

    def read(self, size: int, /) -> bytes:
        self._left -= size
        if self._left < 0:
            raise PickleError(f"it has more than {MAX_PROGRAM_BYTES:,} bytes before its tensors")
        return self._stream.read(size)

    def readline(self) -> bytes:
        return self._stream.readline(_MAX_NAME_BYTES)

    def readinto(self, buffer: bytearray, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


# In Python, because the one in C makes room for as many memo entries as a pickle names (16 GB by one opcode), and
# because opcodes can be left out: those that make objects by other ways than a call (INST, OBJ, NEWOBJ, EXT), and sets,
# whose elements are hashed however deeply they are nested.
class _Reader(cast(Any, pickle)._Unpickler):  # type: ignore[misc]
    dispatch = _allow(
        pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK, pickle.NONE,
        pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT,
        pickle.SHORT_BINUNICODE, pickle.BINUNICODE, pickle.BINUNICODE8, pickle.EMPTY_TUPLE, pickle.TUPLE,
        pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS,
        pickle.EMPTY_DICT, pickle.DICT, pickle.SETITEM, pickle.SETITEMS, pickle.GLOBAL, pickle.STACK_GLOBAL,
        pickle.REDUCE, pickle.BUILD, pickle.BINPERSID, pickle.BINGET, pickle.LONG_BINGET, pickle.BINPUT,
        pickle.LONG_BINPUT, pickle.MEMOIZE,
    )  # fmt: skip

    def __init__(self, stream: "BinaryIO | _Limited", *, archived: bool) -> None:
        super().__init__(stream, encoding="utf-8")
        self._archived = archived

    def load_tensors(self) -> dict[str, _View]:
        """The whole as tensors by name."""
        content = self.load()
        if not isinstance(content, dict):
            raise PickleError(f"it holds a {_name_of(content)}, not tensors by name")
        for name, value in content.items():
            if not isinstance(name, str) or not isinstance(value, _View):
                raise PickleError(f"{name!r:.80} is a {_name_of(value)}, not a tensor")
        return content

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _MAKERS:
            return _MAKERS[module, name]
        if module == "torch" and name in STORAGES:
            return _Class(dtype=STORAGES[name])
        raise PickleError(
            f"a pickle may run code, and only plain tensors are read: this one names {f'{module}.{name}'!r:.100}"
        )

    def persistent_load(self, told: Any) -> _Storage:
        kind, storage, key, _, num_elements, *view = told
        plain = isinstance(key, str) and type(num_elements) is int and 0 <= num_elements < 2**62
        if kind != "storage" or not isinstance(storage, _Class) or not plain:
            raise PickleError("it describes a storage that cannot be")
        if (self._archived and view) or (view and view != [None]):
            raise PickleError("it describes a storage that is part of another: save it anew with torch.save")
        return _Storage(key=key, dtype=storage.dtype, num_elements=num_elements)

    def load_setitem(self) -> None:
        _check_key(self.stack[-2])
        super().load_setitem()

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        for key in self.stack[::2]:
            _check_key(key)
        super().load_setitems()

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_dict(self) -> None:
        for key in self.stack[::2]:
            _check_key(key)
        super().load_dict()

    dispatch[pickle.DICT[0]] = load_dict

    def load_reduce(self) -> None:
        made, arguments = self.stack[-2], self.stack[-1]
        if made not in _MAKERS.values() or not isinstance(arguments, tuple) or (made is _Mapping and arguments):
            raise PickleError(f"it calls a {_name_of(made)}: only plain tensors are read")
        super().load_reduce()

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_build(self) -> None:
        # Attributes of an ordered dict, which nothing here reads.
        self.stack.pop()
        if not isinstance(self.stack[-1], _Mapping):
            raise PickleError(f"it gives attributes to a {_name_of(self.stack[-1])}: only plain tensors are read")

    dispatch[pickle.BUILD[0]] = load_build


def _check_key(key: Any) -> None:
    if not isinstance(key, str | int):
        raise PickleError(f"it has a {_name_of(key)} for a name")


def _name_of(value: Any) -> str:
    return {"_Mapping": "dict", "_View": "tensor"}.get(type(value).__name__, type(value).__name__)
