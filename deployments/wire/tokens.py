"""TokenIds: a sequence of token ids in 4 bytes each, in memory and on the wire.

A Python list of a million ids is 36 MB in a million objects, which each garbage collection visits.
This is 4 MB in one object.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, cast

TYPECODE: Final = "I"
TOKEN_BYTES: Final = 4
"""Size of an id: vocabularies are below 2**18. Little-endian, as every machine with a GPU is."""
assert array(TYPECODE).itemsize == TOKEN_BYTES

if TYPE_CHECKING:
    _Ids = array[int]
else:
    _Ids = array


class TokenIds(_Ids):
    """Equals any sequence of the same ids, such as a list."""

    __slots__ = ()
    __hash__ = None

    def __new__(cls, ids: Iterable[int] = ()) -> TokenIds:
        """Raises ValueError for what is not a list of token ids."""
        try:
            return cast(TokenIds, super().__new__(cls, TYPECODE, ids))
        except (TypeError, OverflowError) as error:
            raise ValueError(f"not a list of token ids from 0 to 2**32 - 1: {error}") from None

    @classmethod
    def unpack(cls, data: bytes) -> TokenIds:
        """Read what `pack` made. Raises ValueError for a part of an id."""
        ids = cls()
        ids.frombytes(data)
        return ids

    def pack(self) -> bytes:
        return self.tobytes()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, array):
            return super().__eq__(other)
        return isinstance(other, list | tuple) and self.tolist() == list(other)

    def __repr__(self) -> str:
        return f"<{len(self)} tokens>"  # a prompt must not reach a log
