"""Download a data set's official archives, check them, and unpack them into the data root.

Everything on the way lies in ``ROOT/.download``: the archive as far as it has come, the folder it is unpacked into, and
in the end a small file for each archive that is done. What is unpacked is renamed to its place whole, so that a crash
leaves nothing half there; what the user already has in that place is left as it is.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from effdense.datasets.archives import Archive, Content, count_files, is_there, official_archives, space_needed
from effdense.datasets.fetch import RemoteFile, discard, fetch
from effdense.datasets.unpack import ArchiveError, unpack
from effdense.errors import UserError
from effdense.files import write_atomically

_LOG = logging.getLogger("effdense")
_WORK = ".download"


def download(
    name: str,
    root: Path,
    *,
    panoptic: bool = False,
    archives: Sequence[Archive] | None = None,
    opener: urllib.request.OpenerDirector | None = None,
    timeout_s: float = 30.0,
) -> Path:
    """Bring a data set into a folder, as far as it is not there yet; where it is, nothing is fetched.

    Args:
        name: "voc" (2012, trainval) or "coco" (2017, train and val, instances).
        root: the data root; made if missing.
        panoptic: with COCO's panoptic PNGs.
        archives: others than the official ones.
        opener: as for ``fetch``.
        timeout_s: the longest that a server may be silent, in seconds.

    Returns:
        The data root, as ``open_dataset`` and ``open_segmentation`` take it.

    Raises:
        UserError: no connection, an archive that is not the expected one or tries to leave the folder, no space, or
            data in the way that are not whole.
        KeyboardInterrupt: with a text that says that the same command goes on.
    """
    archives = official_archives(name, panoptic=panoptic) if archives is None else tuple(archives)
    if not _missing(archives, root):
        _LOG.info("%s is in %s already: nothing is fetched", name, root)
        return root
    work = root / _WORK
    try:
        work.mkdir(parents=True, exist_ok=True)
        with _alone_in(work):
            wanted = _missing(archives, root)  # another process may have fetched them meanwhile
            _check_space(name, wanted, root)
            for archive in wanted:
                _bring(archive, root, opener, timeout_s)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"Stopped by Ctrl-C. What was fetched of {name} is kept in {work}: the same command goes on from there."
        ) from None
    except OSError as error:
        raise UserError(
            f"{name} cannot be downloaded to {root} ({error}); name another folder with --data-root"
        ) from error
    return root


def _missing(archives: Sequence[Archive], root: Path) -> tuple[Archive, ...]:
    """Return the archives of which something is not there.

    Raises:
        UserError: a folder lies in the way that we did not make and that is not whole.
    """
    wanted = []
    for archive in archives:
        done = _marker(archive, root).is_file()  # what the user takes out later is none of our business
        missing = [c for c in archive.contents if not is_there(c, root) and not (done and (root / c.place).exists())]
        for content in missing:
            _check_not_half(content, root, archive)
        if missing:
            wanted.append(archive)
    return tuple(wanted)


def _check_not_half(content: Content, root: Path, archive: Archive) -> None:
    if not (root / content.place).exists():
        return
    for sub, number in content.num_files:
        folder = root / content.place / sub
        if (found := count_files(folder)) < number:
            raise UserError(
                f"{folder} holds {found} of the {number} files that {archive.file_name} brings: complete it or move it "
                "out of the way, or name another folder with --data-root; nothing was changed"
            )


def _check_space(name: str, wanted: tuple[Archive, ...], root: Path) -> None:
    here = sum(part.stat().st_size for archive in wanted if (part := _part(archive, root)).is_file())
    needed, free = space_needed(wanted) - here, shutil.disk_usage(root).free
    if needed > free:
        raise UserError(
            f"downloading {name} takes {needed / 1e9:.1f} GB in {root}, and {free / 1e9:.1f} GB are free: free some "
            "space or name a folder on another disk with --data-root"
        )


def _bring(archive: Archive, root: Path, opener: urllib.request.OpenerDirector | None, timeout_s: float) -> None:
    """Fetch one archive, unpack it, put its contents in place and remove it."""
    part = _part(archive, root)
    remote = RemoteFile(archive.file_name, archive.urls, archive.num_bytes, archive.sha256)
    fetch(remote, part, reserve_bytes=archive.unpacked_bytes, opener=opener, timeout_s=timeout_s)
    draft = part.with_name(f"{archive.file_name}.unpacked")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        _unpack_wanted(archive, part, draft)
        for content in archive.contents:
            target = root / content.place
            if not target.exists() and not is_there(content, root):
                target.parent.mkdir(parents=True, exist_ok=True)
                (draft / content.place).rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    write_atomically(_marker(archive, root), f"{archive.sha256 or 'no hash known'}\n")
    discard(part)
    _LOG.info("%s is unpacked in %s", archive.file_name, root)


def _unpack_wanted(archive: Archive, part: Path, draft: Path) -> None:
    """Unpack what is kept of an archive, and of the archives in it."""

    def wanted(path: str) -> bool:
        return path in archive.inner or any(
            path == content.place or path.startswith(f"{content.place}/") for content in archive.contents
        )

    try:
        unpack(part, draft, wanted, archive.file_name)
        for inner in archive.inner:
            packed = draft / inner
            prefix = Path(inner).parent.as_posix()
            unpack(packed, packed.parent, lambda path, prefix=prefix: wanted(f"{prefix}/{path}"))  # type: ignore[misc]
            packed.unlink()
        for content in archive.contents:
            if not is_there(Content(content.place, content.num_files), draft):
                raise ArchiveError(f"{archive.file_name} does not hold {content.place}, or not the whole of it")
    except ArchiveError:
        discard(part)
        raise


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Let other processes that download into this folder wait; where files cannot be locked, do without."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _LOG.info("another process downloads into %s: waiting for it", folder.parent)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a network disk without locks
            _LOG.info("%s cannot be locked: start no second download into it", folder)
        yield


def _part(archive: Archive, root: Path) -> Path:
    return root / _WORK / f"{archive.file_name}.part"


def _marker(archive: Archive, root: Path) -> Path:
    return root / _WORK / f"{archive.file_name}.done"
