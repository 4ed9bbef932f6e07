"""The storage behind a hub that has Xet: takes apart the xorbs and shards that hf_xet sends, and gives the files back.

After the public specification of the protocol (https://huggingface.co/docs/xet): a xorb is a row of chunks, a shard
says of which of them a file consists. Hashes of chunks and xorbs are not recomputed; that of each file is, by who asks.
"""

from __future__ import annotations

import struct
from typing import Any

TOKEN = "xet-write"
_PLAIN, _LZ4, _GROUPED_LZ4 = range(3)
_ENTRY = 48  # bytes of every record of a shard
_END = b"\xff" * 32
_WITH_VERIFICATION, _WITH_METADATA = 1 << 31, 1 << 30


class Cas:
    """Chunks by xorb, and the files that shards have described since they were last taken."""

    def __init__(self) -> None:
        self.xorbs: dict[str, list[bytes]] = {}
        self.received_bytes = 0
        self._files: list[bytes] = []

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Answer a request; 404 for what is not offered, which hf_xet takes as a sign to use the older way."""
        kind, _, rest = path.removeprefix("v1/").partition("/")
        if path.startswith("v1/") and method == "POST" and kind == "xorbs":
            name = rest.rpartition("/")[2]
            inserted = name not in self.xorbs
            self.xorbs[name] = chunks_of(body)
            self.received_bytes += len(body)
            return 200, {"was_inserted": inserted}
        if path.startswith("v1/") and method == "POST" and kind == "shards":
            self._files += self._described(body)
            return 200, {"result": 1}
        return 404, {}

    def take_files(self) -> list[bytes]:
        """The files that became whole since this was last called."""
        taken, self._files = self._files, []
        return taken

    def _described(self, shard: bytes) -> list[bytes]:
        files, at = [], _ENTRY
        while shard[at : at + 32] != _END:
            flags, entries = struct.unpack_from("<II", shard, at + 32)
            at += _ENTRY
            content = b""
            for _ in range(entries):
                _, size, first, last = struct.unpack_from("<IIII", shard, at + 32)
                part = b"".join(self.xorbs[as_text(shard[at : at + 32])][first:last])
                assert len(part) == size
                content += part
                at += _ENTRY
            at += _ENTRY * entries * bool(flags & _WITH_VERIFICATION) + _ENTRY * bool(flags & _WITH_METADATA)
            files.append(content)
        return files


def as_text(digest: bytes) -> str:
    """A hash as it is written in addresses: four little-endian numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", digest))


def chunks_of(xorb: bytes) -> list[bytes]:
    """The chunks of a xorb, uncompressed. What follows them (a footer) is left out."""
    import pyarrow

    chunks, at = [], 0
    while at + 8 <= len(xorb) and xorb[at] == 0:
        packed, scheme, size = (
            int.from_bytes(xorb[at + 1 : at + 4], "little"),
            xorb[at + 4],
            int.from_bytes(xorb[at + 5 : at + 8], "little"),
        )
        data = xorb[at + 8 : at + 8 + packed]
        if scheme != _PLAIN:
            data = pyarrow.decompress(data, decompressed_size=size, codec="lz4", asbytes=True)
        if scheme == _GROUPED_LZ4:
            data = _ungrouped(data)
        assert len(data) == size
        chunks.append(data)
        at += 8 + packed
    return chunks


def _ungrouped(data: bytes) -> bytes:
    """Bytes that were grouped by their place in each four, in their order again."""
    restored, at = bytearray(len(data)), 0
    for place in range(4):
        size = len(range(place, len(data), 4))
        restored[place::4] = data[at : at + size]
        at += size
    return bytes(restored)
