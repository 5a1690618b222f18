"""Fetch one large file over HTTP so that nothing is fetched twice: what an interruption leaves is gone on from.

The bytes so far lie in ``x.part``. Beside it ``x.part.json`` holds what the server said of the file's version (ETag or
Last-Modified); with If-Range a server sends the rest only if the file is still that one, and else the whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import logging
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from effdense.command_line import is_disk_full
from effdense.datasets.byte_progress import ByteProgress
from effdense.errors import UserError

_LOG = logging.getLogger("effdense")

WAITS_S = (1.0, 2.0, 4.0, 8.0)
"""Pauses before another try after a connection that broke, from the last time that any bytes came."""

_CHUNK_BYTES = 1 << 18
_HASH_BYTES = 1 << 22
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)
_RANGE_NOT_SATISFIABLE = 416


class _Broken(Exception):
    """A connection that failed and may do better the next time."""


class _Refused(Exception):
    """An answer that will be the same the next time."""


@dataclass(frozen=True)
class RemoteFile:
    """What is to be fetched.

    Attributes:
        name: in messages.
        urls: http or https; the first that answers is used.
        num_bytes: what it must have, or None.
        sha256: what it must be, or None.
    """

    name: str
    urls: tuple[str, ...]
    num_bytes: int | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        for url in self.urls:
            if urlsplit(url).scheme not in ("http", "https"):
                raise UserError(f"{self.name} is not fetched from {url}: only http and https are")


def web_opener() -> urllib.request.OpenerDirector:
    """Return an opener that follows redirections, obeys the environment's proxies, and knows http and https alone."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def fetch(
    remote: RemoteFile,
    part: Path,
    *,
    reserve_bytes: int = 0,
    opener: urllib.request.OpenerDirector | None = None,
    timeout_s: float = 30.0,
) -> None:
    """Bring a whole file to ``part`` and check it; whatever lies there from before is gone on from.

    Args:
        remote: the file.
        part: where it goes. An interruption, Ctrl-C too, leaves it for the next call.
        reserve_bytes: space on the disk that must be free beside the file.
        opener: ``web_opener()`` if None.
        timeout_s: the longest that a server may be silent, in seconds.

    Raises:
        UserError: no address answers, the file is another than expected (``part`` is removed), or the disk is full.
    """
    part.parent.mkdir(parents=True, exist_ok=True)
    if remote.num_bytes is None or _size(part) != remote.num_bytes:
        _Transfer(remote, part, reserve_bytes, opener or web_opener(), timeout_s).run()
    _verify(remote, part)


def discard(part: Path) -> None:
    """Remove what was fetched, and the note on its version."""
    part.unlink(missing_ok=True)
    _note_path(part).unlink(missing_ok=True)


@dataclass(frozen=True)
class _Transfer:
    """The fetching itself; the fields are the arguments of ``fetch``."""

    remote: RemoteFile
    part: Path
    reserve_bytes: int
    opener: urllib.request.OpenerDirector
    timeout_s: float

    def run(self) -> None:
        """Try each address, and all of them again while they break off rather than refuse."""
        reasons: dict[str, str] = {}
        tries, ever_answered = 0, False
        while True:
            for url in self.remote.urls:
                before = _size(self.part)
                try:
                    return self.receive(url)
                except _Refused as error:
                    reasons[url] = str(error)
                except _Broken as error:
                    reasons[url], ever_answered = str(error), True
                except (OSError, http.client.HTTPException) as error:
                    reasons[url] = _reason(error)
                if _size(self.part) > before:
                    tries = 0
            if tries == len(WAITS_S) or not ever_answered:
                raise self.failure(reasons)
            _LOG.info("%s: %s; trying again in %g s", self.remote.name, "; ".join(reasons.values()), WAITS_S[tries])
            time.sleep(WAITS_S[tries])
            tries += 1

    def receive(self, url: str) -> None:
        """Ask one address for what is missing and write it; returns once the file is whole."""
        have, version = _size(self.part), _noted(self.part, url)
        request = urllib.request.Request(url, headers={"User-Agent": "effdense", "Accept-Encoding": "identity"})
        # Without a word on the version a hash must tell in the end whether both halves are of one file.
        resume = have > 0 and (version is not None or self.remote.sha256 is not None)
        if resume:
            request.add_header("Range", f"bytes={have}-")
        if resume and version is not None:
            request.add_header("If-Range", version)
        try:
            response = self.opener.open(request, timeout=self.timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                if error.code != _RANGE_NOT_SATISFIABLE or not resume:
                    kind = _Broken if error.code in _TEMPORARY else _Refused
                    raise kind(f"the server says {error.code} {error.reason}") from error
                if _stated_total(error.headers.get("Content-Range")) == have:
                    return
                discard(self.part)
                raise _Broken("what was fetched before is longer than the file") from error
        except ValueError as error:  # of an address that is none
            raise _Refused(f"leads to an address that cannot be read: {error}") from error
        assert response is not None
        with response:
            start, total = _place(response, have if resume else 0)
            if self.remote.num_bytes is not None and total not in (None, self.remote.num_bytes):
                raise _Refused(f"offers {total} bytes, not {self.remote.num_bytes}")
            expected = self.remote.num_bytes if total is None else total
            self.check_space((expected or 0) - start)
            self.copy(url, response, start, expected)

    def copy(self, url: str, response: http.client.HTTPResponse, start: int, expected: int | None) -> None:
        """Write what comes from ``start`` on.

        Raises:
            _Broken: it ends before the file does.
            _Refused: more comes than the file has; nothing is kept, and no disk is filled with it.
            UserError: the disk does not take it.
        """
        size = start
        try:
            with self.part.open("ab" if start else "wb") as file:
                _note(self.part, url, response)
                with ByteProgress(f"fetching {self.remote.name}", expected, start) as progress:
                    for chunk in _chunks(response):
                        size += len(chunk)
                        if expected is not None and size > expected:
                            break
                        file.write(chunk)
                        progress.advance(len(chunk))
        except OSError as error:
            reason = "the disk is full" if is_disk_full(error) else _reason(error)
            raise UserError(
                f"{self.part} cannot be written ({reason}); what is there already is kept: free some space and run the "
                "same again"
            ) from error
        if expected is not None and size > expected:
            discard(self.part)
            raise _Refused(f"sends more than the {expected} bytes of the file")
        if expected is not None and (size := _size(self.part)) != expected:
            raise _Broken(f"the connection ended after {size} of {expected} bytes")

    def check_space(self, missing_bytes: int) -> None:
        """See that the disk has room for the rest of the file, and for what is reserved beside it."""
        needed, free = missing_bytes + self.reserve_bytes, shutil.disk_usage(self.part.parent).free
        if needed > free:
            raise UserError(
                f"{self.remote.name} takes another {needed / 1e9:.1f} GB in {self.part.parent}, unpacking included, "
                f"and {free / 1e9:.1f} GB are free: free some space or name a folder on another disk"
            )

    def failure(self, reasons: dict[str, str]) -> UserError:
        """Return the sentence for a file that no address gives."""
        failed = "; ".join(f"{url}: {reason}" for url, reason in reasons.items())
        kept = ""
        if have := _size(self.part):
            kept = f" The {have / 1e6:,.1f} MB so far are kept: the same command goes on from there."
        return UserError(f"{self.remote.name} cannot be fetched ({failed}).{kept} Is this machine online?")


def _place(response: http.client.HTTPResponse, asked: int) -> tuple[int, int | None]:
    """Return where in the file the answer's bytes begin, and how long the file is where that is said."""
    if response.status == 206:
        content_range = response.headers.get("Content-Range") or ""
        found = re.match(r"bytes (\d+)-", content_range)
        if found is None or int(found[1]) != asked:
            raise _Refused(f"was asked for bytes from {asked} on and sends {content_range!r}")
        return asked, _stated_total(content_range)
    if response.status != 200:
        raise _Refused(f"the server says {response.status} {response.reason}")
    length = response.headers.get("Content-Length") or ""
    return 0, int(length) if length.isdecimal() else None


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield what has come, as soon as it has; a fault of the network is no fault of the disk."""
    try:
        while chunk := response.read1(_CHUNK_BYTES):
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(_reason(error)) from error


def _verify(remote: RemoteFile, part: Path) -> None:
    """See that the file is the one that was meant, or remove it."""
    size = _size(part)
    fault = ""
    if remote.num_bytes is not None and size != remote.num_bytes:
        fault = f"has {size} bytes, not {remote.num_bytes}"
    elif remote.sha256 is not None and (found := _sha256(part, remote.name)) != remote.sha256:
        fault = f"has SHA-256 {found}, not {remote.sha256}"
    elif remote.sha256 is None:
        _LOG.info("%s: no hash is published; its size and the checksums within it are all that is checked", remote.name)
    if fault:
        discard(part)
        raise UserError(
            f"{remote.name} as fetched {fault}, and was removed; run the same again: if it comes out the same, the "
            "file on the server has changed, or something on the way changes it"
        )


def _sha256(part: Path, name: str) -> str:
    digest = hashlib.sha256()
    with part.open("rb") as file, ByteProgress(f"checking {name}", _size(part)) as progress:
        while chunk := file.read(_HASH_BYTES):
            digest.update(chunk)
            progress.advance(len(chunk))
    return digest.hexdigest()


def _note_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _note(part: Path, url: str, response: http.client.HTTPResponse) -> None:
    """Write down which version of the file the server sends; a weak ETag does not stand for its bytes."""
    etag = response.headers.get("ETag") or ""
    version = etag if etag.startswith('"') else response.headers.get("Last-Modified")
    _note_path(part).write_text(json.dumps({"url": url, "version": version}), encoding="utf-8")


def _noted(part: Path, url: str) -> str | None:
    """Return the version of the file that the bytes so far are of, as this address calls it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        note = json.loads(_note_path(part).read_text(encoding="utf-8"))
        if note.get("url") == url and isinstance(note.get("version"), str):
            return str(note["version"])
    return None


def _stated_total(content_range: str | None) -> int | None:
    found = re.fullmatch(r"bytes (?:\d+-\d+|\*)/(\d+)", content_range or "")
    return int(found[1]) if found else None


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", error)) or type(error).__name__
