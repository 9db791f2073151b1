"""The planted task with pictures: tallies, contact sheets, and exhibits with drawn pictures.

The colours it chooses for a subject if none is requested are part of its model: `shares`, {subject: share of red}.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from stages.tasks.contract import Exhibit, Sheet, Tally
from tests.planted import PlantedTask

DRAWN = 120  # answers per tally


def png(red: int, width: int = 1) -> bytes:
    """Make a PNG of one grey level, `width` pixels wide and one high, without a library."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, 1, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" + bytes([red] * width))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


class PlantedPictures(PlantedTask):
    """Draws one grey level that depends on the number of its planted regions, so that a repair is visible."""

    @property
    def shade(self) -> int:
        return 10 + len(self._regions)

    def exhibit(self, item_ids: Sequence[str], cells: np.ndarray) -> list[Exhibit]:
        shown = super().exhibit(item_ids, cells)
        words = [("a ", ""), ("very tilted", "tilt"), (" thing", "")]
        return [replace(e, text=None, drawn=png(self.shade), words=words) for e in shown]

    def tallies(self, split: str) -> list[Tally]:
        shares = self.model.get("shares", {"cat": 0.9, "dog": 0.5})
        reds = {subject: round(DRAWN * share) for subject, share in shares.items()}
        reference = {"red": 0.5, "blue": 0.5}
        return [Tally(s, "colour", 7.5, {"red": red, "blue": DRAWN - red}, reference) for s, red in reds.items()]

    def sheets(self, split: str) -> list[Sheet]:
        return [Sheet(f"things of the split {split}", ("one", "two"), [("row", png(self.shade, 2))])]
