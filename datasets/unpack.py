"""Unpack a zip or tar that nobody vouches for: no member may leave the folder, and none may be anything but a file."""

from __future__ import annotations

import contextlib
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from effdense.command_line import is_disk_full
from effdense.datasets.byte_progress import ByteProgress
from effdense.errors import UserError

_CHUNK_BYTES = 1 << 20
_ENCRYPTED = 1
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, NotImplementedError)


class ArchiveError(UserError):
    """An archive that is broken or not to be trusted: to unpack it once more would come to the same."""


@dataclass(frozen=True)
class _Member:
    """A file in an archive: its path as parts, its size in bytes, and how to open it."""

    parts: tuple[str, ...]
    num_bytes: int
    open: Callable[[], IO[bytes] | None]


def unpack(archive: Path, folder: Path, wanted: Callable[[str], bool], name: str | None = None) -> None:
    """Unpack the wanted files of an archive into a folder that holds nothing yet.

    All members are looked at before the first is written. Links are refused wherever they lead.

    Args:
        archive: a zip or tar, tar also compressed.
        folder: made if missing.
        wanted: says of a path in the archive whether that file is to be unpacked.
        name: what the archive is called, where the file is called otherwise; decides on zip or tar.

    Raises:
        ArchiveError: a member that would leave the folder, or is a link or a device (names it; nothing was written), or
            a broken archive.
        UserError: not enough space for what is in it, or the folder cannot be written to.
    """
    name = name or archive.name
    try:
        with _opened(archive, name) as members:
            chosen = [member for member in members if wanted("/".join(member.parts))]
            needed, free = sum(member.num_bytes for member in chosen), shutil.disk_usage(archive.parent).free
            if needed > free:
                raise UserError(
                    f"unpacking {name} takes {needed / 1e9:.1f} GB in {folder.parent}, {free / 1e9:.1f} GB are free: "
                    "free some space and run the same again"
                )
            with ByteProgress(f"unpacking {name}", needed) as progress:
                for member in chosen:
                    _write(member, folder, progress)
    except UserError:
        raise
    except _BROKEN as error:
        raise ArchiveError(f"{name} is broken ({error}); run the same again to fetch it anew") from error
    except (OSError, RuntimeError, ValueError) as error:
        reason = "the disk is full" if is_disk_full(error) else error
        raise UserError(f"{name} cannot be unpacked into {folder.parent} ({reason})") from error


@contextlib.contextmanager
def _opened(archive: Path, name: str) -> Iterator[list[_Member]]:
    if name.endswith(".zip"):
        with zipfile.ZipFile(archive) as zipped:
            yield [
                _Member(parts, info.file_size, lambda info=info: zipped.open(info))  # type: ignore[misc]
                for info in zipped.infolist()
                if (parts := _parts_of_zipped(info, name))
            ]
    else:
        with tarfile.open(archive, "r:*") as taped:
            yield [
                _Member(parts, info.size, lambda info=info: taped.extractfile(info))  # type: ignore[misc]
                for info in taped
                if (parts := _parts_of_taped(info, name))
            ]


def _parts_of_zipped(info: zipfile.ZipInfo, name: str) -> tuple[str, ...]:
    """Return the path of a file, or nothing for a folder."""
    parts = _checked(info.filename, name)
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the zip was not made on a Unix
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _refusal(info.filename, name, "is a link" if kind == stat.S_IFLNK else "is no ordinary file")
    if info.flag_bits & _ENCRYPTED:
        raise _refusal(info.filename, name, "is encrypted")
    return () if info.is_dir() else parts


def _parts_of_taped(info: tarfile.TarInfo, name: str) -> tuple[str, ...]:
    """Return the path of a file, or nothing for a folder."""
    parts = _checked(info.name, name)
    if info.issym() or info.islnk():
        raise _refusal(info.name, name, f"is a link to {info.linkname!r}")
    if not info.isfile() and not info.isdir():
        raise _refusal(info.name, name, "is no ordinary file")
    return () if info.isdir() else parts


def _checked(member: str, name: str) -> tuple[str, ...]:
    path = PurePosixPath(member.replace("\\", "/"))
    if path.is_absolute() or PureWindowsPath(member).drive or ".." in path.parts:
        raise _refusal(member, name, "would leave the folder")
    return path.parts


def _refusal(member: str, name: str, fault: str) -> ArchiveError:
    return ArchiveError(f"{name} has a member {member!r} that {fault}: refused, nothing was unpacked")


def _write(member: _Member, folder: Path, progress: ByteProgress) -> None:
    target = folder.joinpath(*member.parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    source = member.open()
    assert source is not None, member  # of a file it never is
    written = 0
    with source, target.open("wb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            file.write(chunk)
            written += len(chunk)
            progress.advance(len(chunk))
    if written != member.num_bytes:
        raise EOFError(f"{'/'.join(member.parts)} ends after {written} of {member.num_bytes} bytes")
