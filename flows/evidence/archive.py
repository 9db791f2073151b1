"""The zip file of a bundle: equal members give equal bytes, and reading accounts for every byte of the file."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from stages.core.errors import UsageError

LARGEST, LARGEST_SUM, MOST_MEMBERS = 24 * 2**20, 64 * 2**20, 4096  # bytes, bytes, members
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can store
# What a member's entry says besides its name, sizes and CRC-32. With it, only the compressed data could be other than
# `zip_members` writes, as they depend on the version of zlib; what they unpack to is compared.
_SAME = (
    *("date_time", "compress_type", "create_system", "create_version", "extract_version", "reserved", "volume"),
    *("internal_attr", "external_attr"),
)
_END = struct.Struct("<4s4H2IH")
_END_OF_ZIP64 = b"PK\x06\x07"
_UTF8 = 0x800  # the flag of a name that is not ASCII
_LARGEST_ENTRY = 512  # bytes of the directory


def zip_members(members: Mapping[str, bytes]) -> bytes:
    """Pack members; equal members give equal bytes."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as file:
        for name in sorted(members):
            file.writestr(zip_entry(name), members[name], zipfile.ZIP_DEFLATED, 6)
    return packed.getvalue()


def zip_entry(name: str) -> zipfile.ZipInfo:
    """The entry of a member, which is the same in every bundle."""
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.compress_type, entry.external_attr, entry.create_system = zipfile.ZIP_DEFLATED, 0o644 << 16, 3
    return entry


def unzip_members(path: Path, allowed: Callable[[str], object]) -> dict[str, bytes]:
    """Read all members into memory, if the file consists of its members and nothing else.

    Sizes are limited twice: by what headers declare before anything is unpacked, and while it is unpacked.

    Raises:
        UsageError: if it cannot be read, is damaged or too large, or contains anything that no bundle has.
    """
    try:
        with path.open("rb") as file:
            members_end = _check_end(file)
            with zipfile.ZipFile(file) as directory:
                entries = directory.infolist()
            _check_entries(entries, allowed)
            members = {}
            file.seek(0)
            for entry in entries:
                header = entry.FileHeader()
                if entry.header_offset != file.tell() or file.read(len(header)) != header:
                    raise zipfile.BadZipFile(f"the header at {entry.filename} does not match the directory")
                if file.tell() + entry.compress_size > members_end:
                    raise zipfile.BadZipFile(f"{entry.filename} reaches beyond the members")
                members[entry.filename] = _unpack(file.read(entry.compress_size), entry)
            if file.tell() != members_end:
                raise zipfile.BadZipFile("there is extra data between the last member and the directory")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, struct.error) as error:
        raise UsageError(f"{path} is not a valid evidence bundle: {error}") from None
    return members


def _check_end(file: BinaryIO) -> int:
    """Where members end and the directory begins. The end record must be the last bytes, so that nothing follows it."""
    size = file.seek(0, io.SEEK_END)
    limit = LARGEST_SUM + MOST_MEMBERS * 1024
    if size > limit:
        raise zipfile.BadZipFile(f"it has {size:,} bytes, expected {limit:,} at most")
    file.seek(max(0, size - _END.size - 20))
    tail = file.read()
    if len(tail) < _END.size or not tail.startswith(b"PK\x05\x06", -_END.size):
        raise zipfile.BadZipFile("it does not end as a zip file without a comment does")
    _, disk, first_disk, here, total, directory, start, comment = _END.unpack(tail[-_END.size :])
    if total > MOST_MEMBERS:
        raise zipfile.BadZipFile(f"{total:,} members, expected {MOST_MEMBERS:,} at most")
    several = disk or first_disk or here != total or tail.startswith(_END_OF_ZIP64)
    if several or comment or directory > total * _LARGEST_ENTRY:
        raise zipfile.BadZipFile("its end record is not that of one plain zip file")
    if start + directory + _END.size != size:
        raise zipfile.BadZipFile("there is extra data before or after what its end record describes")
    return int(start)


def _check_entries(entries: list[zipfile.ZipInfo], allowed: Callable[[str], object]) -> None:
    if [entry.filename for entry in entries] != sorted(entry.filename for entry in entries):
        raise zipfile.BadZipFile("its members are not in the order of their names")
    names = set()
    for entry in entries:
        name = entry.filename
        if entry.orig_filename != name or not allowed(name):
            raise zipfile.BadZipFile(
                f"it has a member {entry.orig_filename[:200]!r}, which does not belong in a bundle"
            )
        if name in names:
            raise zipfile.BadZipFile(f"it has {name} twice")
        names.add(name)
        if entry.flag_bits != (0 if name.isascii() else _UTF8) or entry.extra or entry.comment:
            raise zipfile.BadZipFile(f"{name} is encrypted, streamed or has a comment, as no member of a bundle is")
        if entry.file_size > LARGEST:
            raise zipfile.BadZipFile(f"{name} has {entry.file_size:,} bytes, larger than {LARGEST:,}")
        for key in _SAME:
            if (found := getattr(entry, key)) != (expected := getattr(zip_entry(name), key)):
                raise zipfile.BadZipFile(f"{name} has {key} {found}, expected {expected} as in every bundle")
    if (total := sum(entry.file_size for entry in entries)) > LARGEST_SUM:
        raise zipfile.BadZipFile(f"its members have {total:,} bytes, larger than {LARGEST_SUM:,}")


def _unpack(packed: bytes, entry: zipfile.ZipInfo) -> bytes:
    """A member's content, if it is complete and exactly as long as declared."""
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = unpacker.decompress(packed, entry.file_size + 1)
    except zlib.error as error:
        raise zipfile.BadZipFile(f"{entry.filename} is damaged: {error}") from None
    if not unpacker.eof or unpacker.unused_data or len(data) != entry.file_size or zlib.crc32(data) != entry.CRC:
        raise zipfile.BadZipFile(f"{entry.filename} is damaged: it is not as long as declared, or has another CRC-32")
    return data
