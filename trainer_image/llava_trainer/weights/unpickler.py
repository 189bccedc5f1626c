"""Reads the program that a pickle of PyTorch's is, and describes the tensors that it would have made.

PyTorch's own restricted unpickler allows what any imported library has registered with it, and maps entries of the
archive whatever way they are packed. Here a pickle may name what stands in ``_MAKERS`` and ``STORAGES`` and nothing
else, and nothing of PyTorch is called.

Format: torch/_utils.py (``_rebuild_tensor_v2``).
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import torch

MAX_PROGRAM_BYTES = 256 << 20
"""Of what describes the tensors: that of a model of 13B has 100 kB."""
_MAX_NAME_BYTES = 1024

STORAGES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
"""Classes of module ``torch`` that a pickle may name, and what they hold."""


class PickleError(ValueError):
    """The file is damaged, or holds something else than tensors by name; the message says what."""


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Elements of one type that tensors are cut out of."""

    key: str
    dtype: torch.dtype
    num_elements: int

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return self.num_elements * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class View:
    """A tensor before it is known where its storage lies."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _Class:
    """A name of ``STORAGES``."""

    dtype: torch.dtype


def read_tensors(stream: "BinaryIO | LimitedStream", *, archived: bool) -> dict[str, View]:
    """The tensors by name that the next pickle describes.

    Raises:
        PickleError: it describes something else.
        Exception: one of ``pickle``'s own, where it is damaged.
    """
    content = _Unpickler(stream, archived=archived).load()
    if not isinstance(content, dict):
        raise PickleError(f"it holds a {_name_of(content)}, not tensors by name")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, View):
            raise PickleError(f"{name!r:.80} is a {_name_of(value)}, not a tensor")
    return content


def read_value(stream: "LimitedStream") -> Any:
    """The plain value that the next pickle of the stream format makes; raises as ``read_tensors``."""
    return _Unpickler(stream, archived=False).load()


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> View:
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, Storage) or len(shape) != len(stride) or len(shape) > 64:
        raise PickleError("it describes a tensor that cannot be")
    if any(type(number) is not int or not 0 <= number < 2**62 for number in numbers):
        raise PickleError("it describes a tensor of negative or impossible size")
    return View(storage=storage, offset=offset, shape=tuple(shape), stride=tuple(stride))


def _rebuild_parameter(tensor: Any, *_: Any) -> View:
    if not isinstance(tensor, View):
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


class LimitedStream:
    """Of the stream format, as much as may describe tensors."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._left = MAX_PROGRAM_BYTES

    def read(self, size: int, /) -> bytes:
        """So many bytes, or as many as there are.

        Raises:
            PickleError: those were too many.
        """
        self._left -= size
        if self._left < 0:
            raise PickleError(f"it has more than {MAX_PROGRAM_BYTES:,} bytes before its tensors")
        return self._stream.read(size)

    def readline(self) -> bytes:
        """Up to the line's end, which a name comes to."""
        return self._stream.readline(_MAX_NAME_BYTES)

    def readinto(self, buffer: bytearray, /) -> int:
        """As ``read``."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


# In Python, because the one in C makes room for as many memo entries as a pickle names (16 GB by one opcode), and
# because opcodes can be left out: those that make objects by other ways than a call (INST, OBJ, NEWOBJ, EXT), and sets,
# whose elements are hashed however deeply they are nested.
class _Unpickler(cast(Any, pickle)._Unpickler):  # type: ignore[misc]
    dispatch = _allow(
        pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK, pickle.NONE,
        pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT,
        pickle.SHORT_BINUNICODE, pickle.BINUNICODE, pickle.BINUNICODE8, pickle.EMPTY_TUPLE, pickle.TUPLE,
        pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS,
        pickle.EMPTY_DICT, pickle.DICT, pickle.SETITEM, pickle.SETITEMS, pickle.GLOBAL, pickle.STACK_GLOBAL,
        pickle.REDUCE, pickle.BUILD, pickle.BINPERSID, pickle.BINGET, pickle.LONG_BINGET, pickle.BINPUT,
        pickle.LONG_BINPUT, pickle.MEMOIZE,
    )  # fmt: skip

    def __init__(self, stream: "BinaryIO | LimitedStream", *, archived: bool) -> None:
        super().__init__(stream, encoding="utf-8")
        self._archived = archived

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _MAKERS:
            return _MAKERS[module, name]
        if module == "torch" and name in STORAGES:
            return _Class(dtype=STORAGES[name])
        raise PickleError(
            f"a pickle may run code, and only plain tensors are read: this one names {f'{module}.{name}'!r:.100}"
        )

    def persistent_load(self, told: Any) -> Storage:
        kind, storage, key, _, num_elements, *view = told
        plain = isinstance(key, str) and type(num_elements) is int and 0 <= num_elements < 2**62
        if kind != "storage" or not isinstance(storage, _Class) or not plain:
            raise PickleError("it describes a storage that cannot be")
        if (self._archived and view) or (view and view != [None]):
            raise PickleError("it describes a storage that is part of another: save it anew with torch.save")
        return Storage(key=key, dtype=storage.dtype, num_elements=num_elements)

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
    return {"_Mapping": "dict", "View": "tensor"}.get(type(value).__name__, type(value).__name__)
