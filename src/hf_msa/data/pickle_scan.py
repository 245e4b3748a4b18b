"""A look at a pickle's opcodes before it is read: files that would cost far more than their size are refused.

A few bytes can ask for a memo of a gigabyte, for a thousand copies of one string, or for a dictionary key that takes for
ever to hash. The scan follows the stack with the kinds and sizes of what lies on it, and builds nothing.
"""

import mmap
import pickle
import pickletools
from pathlib import Path
from typing import Any, Final

# A file may need memory and work of this many times its size, and this much besides.
_COST_FACTOR = 3
_COST_FREE = 1 << 25
# Arrays are few large pieces; each opcode costs as much time as it would have as tens of bytes of an array.
_OPCODES_FREE = 250_000
_BYTES_PER_OPCODE = 64
_MEMO_GAP = 1024
_LONGEST_NUMBER = 32
_LONGEST_KEY_NUMBER = 20

_NAMES: Final = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_STOP: Final = ord(".")
_CALL_COST = 200
_POINTER = 8
_NO_WIDTH = -1


class _Item:
    """What lies on the stack: whether it can be a key, its bytes, and those of what lies directly in it."""

    __slots__ = ("inner", "is_key", "size")

    def __init__(self, is_key: bool, size: int = 0, inner: int = 0) -> None:
        self.is_key = is_key
        self.size = size
        self.inner = inner


_ATOM: Final = _Item(True)


def _refuse(what: str) -> pickle.UnpicklingError:
    return pickle.UnpicklingError(what)


class _Scan:
    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.place = 0
        self.cost = 0
        self._stack: list[_Item | None] = []  # None is a mark.
        self._marks: list[int] = []
        self._memo: dict[int, _Item] = {}

    def run(self) -> None:
        size = len(self.data)
        most_cost = _COST_FACTOR * size + _COST_FREE
        most_opcodes = _OPCODES_FREE + size // _BYTES_PER_OPCODE
        count = 0
        while True:
            if self.place >= size:
                raise EOFError
            opcode = self.data[self.place]
            self.place += 1
            count += 1
            if opcode == _STOP:
                break
            if opcode not in _ACTIONS:
                raise _refuse(
                    f"the opcode {_NAMES.get(opcode, opcode)}, which arrays and plain containers do not need"
                )
            action, *arguments = _ACTIONS[opcode]
            action(self, *arguments)
            if count > most_opcodes:
                raise _refuse(f"more than {most_opcodes} small pieces; store numbers as numpy arrays")
            if self.cost > most_cost:
                raise _refuse("a few bytes that ask for far more memory than the file has")
        if self.place < size:
            raise _refuse(
                f"{size - self.place} bytes after its end; several objects in one file cannot be told apart, store one "
                "dictionary"
            )

    # --- Opcodes ---

    def pass_over(self, width: int) -> None:
        self._skip(width)

    def frame(self) -> None:
        if self._integer(8) > len(self.data) - self.place:
            raise EOFError

    def number(self, width: int) -> None:
        self._skip(width)
        self._push(_ATOM, 32)

    def long(self, width: int) -> None:
        length = self._integer(width)
        if length > _LONGEST_NUMBER:
            raise _refuse("a number of many digits")
        self._skip(length)
        self._push(_Item(length <= _POINTER), 50)

    def written_number(self) -> None:
        length = len(self._line())
        if length > _LONGEST_NUMBER:
            raise _refuse("a number of many digits")
        self._push(_Item(length <= _LONGEST_KEY_NUMBER), 50)

    def text(self, width: int, is_key: bool = True) -> None:
        length = self._integer(width)
        self._skip(length)
        self._push(_Item(is_key, length), 50 + length)

    def written_text(self) -> None:
        length = len(self._line())
        self._push(_Item(True, length), 50 + length)

    def container(self, cost: int) -> None:
        self._push(_Item(False), cost + _POINTER)

    def mark(self) -> None:
        self._marks.append(len(self._stack))
        self._push(None, _POINTER)

    def make(self, keys_every: int) -> None:
        items = self._to_mark()
        self._push(_Item(False), 216)
        self._add(items, keys_every)

    def make_tuple(self, count: int | None = None) -> None:
        items = self._to_mark() if count is None else [self._pop() for _ in range(count)]
        width = _POINTER * len(items)
        # Tuples in tuples can be shared; to hash the outermost takes as long as if they were not.
        self._push(_Item(False, width, sum(item.size for item in items)), 56 + width)

    def add(self, count: int | None, keys_every: int) -> None:
        items = self._to_mark() if count is None else [self._pop() for _ in range(count)][::-1]
        self._add(items, keys_every)

    def pop(self) -> None:
        if self._stack and self._stack[-1] is None:
            self._to_mark()
        else:
            self._pop()

    def pop_mark(self) -> None:
        self._to_mark()

    def duplicate(self) -> None:
        item = self._pop()
        self._push(item, 0)
        self._push(item, _POINTER)

    def put(self, width: int) -> None:
        if not self._stack or self._stack[-1] is None:
            raise _refuse("a reference to nothing")
        index = len(self._memo) if width == _NO_WIDTH else self._index(width)
        # The memo is an array as long as its highest index.
        if index > len(self._memo) + _MEMO_GAP:
            raise _refuse("a few bytes that ask for a memo of gigabytes")
        self._memo[index] = self._stack[-1]
        self.cost += _POINTER

    def get(self, width: int) -> None:
        index = self._index(width)
        if index not in self._memo:
            raise _refuse("a reference to nothing")
        self._push(self._memo[index], _POINTER)

    def named(self) -> None:
        self._line(), self._line()
        self._push(_Item(False), _CALL_COST)

    def stack_named(self) -> None:
        self._pop(), self._pop()
        self._push(_Item(False), _CALL_COST)

    def call(self) -> None:
        arguments = self._pop()
        self._pop()
        self._push(_Item(True, arguments.inner), _CALL_COST + arguments.size + arguments.inner)

    def build(self) -> None:
        state = self._pop()
        self.cost += _CALL_COST + state.size + state.inner

    # --- The file ---

    def _skip(self, length: int) -> None:
        if not 0 <= length <= len(self.data) - self.place:
            raise EOFError
        self.place += length

    def _integer(self, width: int) -> int:
        start = self.place
        self._skip(width)
        return int.from_bytes(self.data[start : self.place], "little")

    def _line(self) -> bytes:
        end = self.data.find(b"\n", self.place)
        if end < 0:
            raise EOFError
        line = self.data[self.place : end]
        self.place = end + 1
        return line

    def _index(self, width: int) -> int:
        if width:
            return self._integer(width)
        line = self._line()
        if len(line) > _LONGEST_KEY_NUMBER or not line.strip().isdigit():
            raise _refuse("a reference that is no number")
        return int(line)

    # --- The stack ---

    def _push(self, item: _Item | None, cost: int) -> None:
        self._stack.append(item)
        self.cost += cost

    def _pop(self) -> _Item:
        item = self._stack.pop() if self._stack else None
        if item is None:
            raise _refuse("an operation without operands")
        return item

    def _to_mark(self) -> list[_Item]:
        if not self._marks:
            raise _refuse("an operation without operands")
        start = self._marks.pop()
        items = [item for item in self._stack[start + 1 :] if item is not None]
        del self._stack[start:]
        return items

    def _add(self, items: list[_Item], keys_every: int) -> None:
        """Add to the container on top of the stack; every `keys_every`-th item is a key of it, none where this is 0."""
        if not self._stack or (container := self._stack[-1]) is None:
            raise _refuse("an operation without operands")
        if keys_every and not all(item.is_key for item in items[::keys_every]):
            raise _refuse("a key of a dictionary or a set that is neither a text nor a small number")
        container.size += _POINTER * len(items)
        self.cost += (50 if keys_every else _POINTER) * len(items)


# Opcode -> what it does and with which arguments; what is not here has no place in a file of arrays.
_BY_NAME: Final[dict[str, tuple[Any, ...]]] = {
    "PROTO": (_Scan.pass_over, 1),
    "FRAME": (_Scan.frame,),
    **dict.fromkeys(("NONE", "NEWTRUE", "NEWFALSE"), (_Scan.number, 0)),
    "BININT1": (_Scan.number, 1),
    "BININT2": (_Scan.number, 2),
    "BININT": (_Scan.number, 4),
    "BINFLOAT": (_Scan.number, 8),
    "LONG1": (_Scan.long, 1),
    "LONG4": (_Scan.long, 4),
    **dict.fromkeys(("INT", "LONG", "FLOAT"), (_Scan.written_number,)),
    **dict.fromkeys(("SHORT_BINUNICODE", "SHORT_BINBYTES", "SHORT_BINSTRING"), (_Scan.text, 1)),
    **dict.fromkeys(("BINUNICODE", "BINBYTES", "BINSTRING"), (_Scan.text, 4)),
    **dict.fromkeys(("BINUNICODE8", "BINBYTES8"), (_Scan.text, 8)),
    "BYTEARRAY8": (_Scan.text, 8, False),
    **dict.fromkeys(("STRING", "UNICODE"), (_Scan.written_text,)),
    # What Python keeps of an empty one, in bytes.
    "EMPTY_TUPLE": (_Scan.container, 0),
    "EMPTY_LIST": (_Scan.container, 56),
    "EMPTY_DICT": (_Scan.container, 64),
    "EMPTY_SET": (_Scan.container, 216),
    "MARK": (_Scan.mark,),
    "LIST": (_Scan.make, 0),
    "DICT": (_Scan.make, 2),
    "FROZENSET": (_Scan.make, 1),
    "TUPLE": (_Scan.make_tuple,),
    "TUPLE1": (_Scan.make_tuple, 1),
    "TUPLE2": (_Scan.make_tuple, 2),
    "TUPLE3": (_Scan.make_tuple, 3),
    "APPEND": (_Scan.add, 1, 0),
    "APPENDS": (_Scan.add, None, 0),
    "SETITEM": (_Scan.add, 2, 2),
    "SETITEMS": (_Scan.add, None, 2),
    "ADDITEMS": (_Scan.add, None, 1),
    "POP": (_Scan.pop,),
    "POP_MARK": (_Scan.pop_mark,),
    "DUP": (_Scan.duplicate,),
    "MEMOIZE": (_Scan.put, _NO_WIDTH),
    "PUT": (_Scan.put, 0),
    "BINPUT": (_Scan.put, 1),
    "LONG_BINPUT": (_Scan.put, 4),
    "GET": (_Scan.get, 0),
    "BINGET": (_Scan.get, 1),
    "LONG_BINGET": (_Scan.get, 4),
    "GLOBAL": (_Scan.named,),
    "STACK_GLOBAL": (_Scan.stack_named,),
    # Of classes that are not on the list: refused by name when the file is read.
    "NEWOBJ": (_Scan.call,),
    "REDUCE": (_Scan.call,),
    "BUILD": (_Scan.build,),
}
_ACTIONS: Final = {opcode: _BY_NAME[name] for opcode, name in _NAMES.items() if name in _BY_NAME}


def scan_pickle(path: Path) -> None:
    """Follow the opcodes of a pickle, in about a microsecond each, without building anything.

    Args:
        path: The file.

    Raises:
        pickle.UnpicklingError: If reading it would cost far more than its size, or it does what only objects other than
            arrays and plain containers need.
        EOFError: If it ends in the middle.
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise EOFError
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _Scan(data).run()
