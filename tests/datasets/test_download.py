"""Downloads, from a server on loopback that can be told to misbehave. Nothing here reaches beyond 127.0.0.1."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import shutil
import socket
import stat
import tarfile
import threading
import time
import urllib.request
import zipfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from effdense.datasets import byte_progress, fetch
from effdense.datasets.archives import Archive, Content, official_archives, space_needed
from effdense.datasets.byte_progress import ByteProgress
from effdense.datasets.download import download
from effdense.datasets.layout import default_root, missing_data
from effdense.datasets.roots import ready_root
from effdense.datasets.voc import open_voc
from effdense.errors import UserError

Members = dict[str, bytes]
VOC: Members = {f"VOCdevkit/VOC2012/JPEGImages/{i}.jpg": bytes([i]) * 40_000 for i in range(6)} | {
    "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt": b"0\n1\n",
    "VOCdevkit/readme.txt": b"not kept",
}
VOC_CONTENT = Content("VOCdevkit/VOC2012", (("JPEGImages", 6),), ("VOC2012", "."))
Usage = namedtuple("Usage", "total used free")


@dataclass
class Server:
    """What is served, how, and what was asked for.

    Attributes:
        files: content by path.
        cut_after: for each coming answer the number of body bytes after which the connection breaks; None: whole.
        ranges: whether Range is honoured.
        etag: of every file; None: none is sent.
        status: instead of an answer.
        stated_length: instead of the true Content-Length.
        asked: (path, Range, If-Range) of each request.
        sent: body bytes of each answer.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cut_after: list[int | None] = field(default_factory=list)
    ranges: bool = True
    etag: str | None = '"v1"'
    status: int = 0
    stated_length: int | None = -1
    range_offset: int = 0
    redirect: str = ""
    silent_s: threading.Event | None = None
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)


def _answer(handler: BaseHTTPRequestHandler, server: Server) -> None:
    wanted, version = handler.headers.get("Range"), handler.headers.get("If-Range")
    server.asked.append((handler.path, wanted, version))
    if server.silent_s is not None:
        server.silent_s.wait(20)
        return
    if server.redirect and handler.path != "/moved":
        handler.send_response(302)
        handler.send_header("Location", server.redirect)
        handler.end_headers()
        return
    content = server.files.get(handler.path)
    if server.status or content is None:
        handler.send_error(server.status or 404)
        return
    start = 0
    if wanted and server.ranges and version in (None, server.etag):
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) + server.range_offset
        if start >= len(content):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(content)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    else:
        handler.send_response(200)
    body = content[start:]
    if server.stated_length is not None:
        handler.send_header("Content-Length", str(len(body) if server.stated_length < 0 else server.stated_length))
    if server.etag:
        handler.send_header("ETag", server.etag)
    handler.end_headers()
    cut = server.cut_after.pop(0) if server.cut_after else None
    server.sent.append(len(body[:cut]))  # before the client has all of it and looks
    handler.wfile.write(body[:cut])
    handler.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server on loopback; pauses between two tries are short."""
    monkeypatch.setattr(fetch, "WAITS_S", (0.01, 0.01, 0.01))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _answer(self, state)

        def log_message(self, *_: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    state.url = f"http://127.0.0.1:{running.server_port}"
    thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield state
    if state.silent_s is not None:
        state.silent_s.set()
    running.shutdown()
    running.server_close()
    thread.join()


def _tar(members: Members, *extra: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in extra:
            archive.addfile(info)
    return buffer.getvalue()


def _zip(members: Members, *extra: zipfile.ZipInfo) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        for info in extra:
            archive.writestr(info, b"elsewhere")
    return buffer.getvalue()


def _serve(
    server: Server, content: bytes, name: str = "voc.tar", contents: tuple[Content, ...] = (VOC_CONTENT,)
) -> Archive:
    server.files[f"/{name}"] = content
    digest = hashlib.sha256(content).hexdigest()
    return Archive(name, (f"{server.url}/{name}",), contents, len(content), digest, 10)


def _tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _data(root: Path) -> dict[str, bytes]:
    return {name: content for name, content in _tree(root).items() if not name.startswith(".download/")}


KEPT = {name: content for name, content in VOC.items() if name.startswith("VOCdevkit/VOC2012/")}


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_is_fetched_checked_unpacked_and_removed(kind: str, server: Server, tmp_path: Path) -> None:
    archive = _serve(server, _tar(VOC) if kind == "tar" else _zip(VOC), f"voc.{kind}")
    root = tmp_path / "new" / "voc"
    assert download("voc", root, archives=[archive]) == root
    assert _data(root) == KEPT
    assert sorted(path.name for path in (root / ".download").iterdir()) == ["lock", f"voc.{kind}.done"]
    assert server.asked == [(f"/voc.{kind}", None, None)]


def test_what_was_downloaded_can_be_opened(server: Server, tmp_path: Path, write_voc: Callable[..., Path]) -> None:
    made = write_voc({"a": [("dog", (1, 1, 9, 9))], "b": []}, {"train": ["a"], "val": ["b"]}, tmp_path / "made")
    members = {f"VOCdevkit/VOC2012/{name}": content for name, content in _tree(made).items()}
    contents = (Content("VOCdevkit/VOC2012", (("JPEGImages", 2), ("Annotations", 2))),)
    root = download("voc", tmp_path / "root", archives=[_serve(server, _tar(members), contents=contents)])
    assert open_voc(root, "train").sample(0).boxes_xyxy.tolist() == [[0, 0, 9, 9]]
    assert len(open_voc(root, "val")) == 1


def test_what_is_there_is_not_fetched_again(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "effdense")
    archive = _serve(server, _tar(VOC))
    download("voc", tmp_path, archives=[archive])
    download("voc", tmp_path, archives=[archive])
    assert len(server.asked) == 1
    assert "already: nothing is fetched" in caplog.text
    (tmp_path / "VOCdevkit/VOC2012/JPEGImages/0.jpg").unlink()  # the user's own choice, once it was whole
    download("voc", tmp_path, archives=[archive])
    assert len(server.asked) == 1
    shutil.rmtree(tmp_path / "VOCdevkit")
    download("voc", tmp_path, archives=[archive])
    assert (len(server.asked), _data(tmp_path)) == (2, KEPT)


@pytest.mark.parametrize("place", ["VOCdevkit/VOC2012", "VOC2012", "."])
def test_data_that_the_user_unpacked_are_taken_as_they_are(place: str, server: Server, tmp_path: Path) -> None:
    for name, content in KEPT.items():
        path = tmp_path / place / name.removeprefix("VOCdevkit/VOC2012/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    before = _tree(tmp_path)
    download("voc", tmp_path, archives=[_serve(server, _tar(VOC))])
    assert (server.asked, _tree(tmp_path)) == ([], before)


def test_half_a_data_set_of_the_user_is_left_alone(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "VOCdevkit/VOC2012/JPEGImages/mine.jpg"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"JPEGImages holds 1 of the 6 files that voc\.tar brings: complete it or move"):
        download("voc", tmp_path, archives=[_serve(server, _tar(VOC))])
    assert (server.asked, _tree(tmp_path)) == ([], {"VOCdevkit/VOC2012/JPEGImages/mine.jpg": b"mine"})


def test_only_what_is_missing_is_put_in_place(server: Server, tmp_path: Path) -> None:
    members = {"annotations/a.json": b"a", "annotations/b.json": b"b", "annotations/unused.json": b"c"}
    contents = (Content("annotations/a.json"), Content("annotations/b.json"))
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/a.json").write_bytes(b"mine")
    download("coco", tmp_path, archives=[_serve(server, _zip(members), "annotations.zip", contents)])
    assert _data(tmp_path) == {"annotations/a.json": b"mine", "annotations/b.json": b"b"}


def test_an_archive_within_an_archive_is_unpacked_beside_it(server: Server, tmp_path: Path) -> None:
    inner = _zip({"panoptic_val/1.png": b"1", "panoptic_val/2.png": b"2", "__MACOSX/panoptic_val/._1.png": b"litter"})
    members = {"annotations/panoptic_val.json": b"{}", "annotations/panoptic_val.zip": inner}
    contents = (Content("annotations/panoptic_val.json"), Content("annotations/panoptic_val", ((".", 2),)))
    archive = replace(_serve(server, _zip(members), "panoptic.zip", contents), inner=("annotations/panoptic_val.zip",))
    download("coco", tmp_path, archives=[archive])
    assert _data(tmp_path) == {
        "annotations/panoptic_val.json": b"{}",
        "annotations/panoptic_val/1.png": b"1",
        "annotations/panoptic_val/2.png": b"2",
    }


def test_a_dropped_connection_is_taken_up_where_it_broke(server: Server, tmp_path: Path) -> None:
    archive = _serve(server, _tar(VOC))
    server.cut_after = [1000, 50_000, 0]
    download("voc", tmp_path, archives=[archive])
    assert _data(tmp_path) == KEPT
    assert [asked[1:] for asked in server.asked] == [
        (None, None), ("bytes=1000-", '"v1"'), ("bytes=51000-", '"v1"'), ("bytes=51000-", '"v1"'),
    ]  # fmt: skip
    assert sum(server.sent) == archive.num_bytes


def test_after_too_many_broken_connections_the_next_call_goes_on(server: Server, tmp_path: Path) -> None:
    archive = _serve(server, _tar(VOC))
    server.cut_after = [1000, 0, 0, 0]
    with pytest.raises(UserError, match=r"ended after 1000 of \d+ bytes\)\. The 0\.0 MB so far are kept: the same"):
        download("voc", tmp_path, archives=[archive])
    assert len(server.asked) == 4
    assert (tmp_path / ".download/voc.tar.part").stat().st_size == 1000
    assert _data(tmp_path) == {}
    download("voc", tmp_path, archives=[archive])
    assert server.asked[4:] == [("/voc.tar", "bytes=1000-", '"v1"')]
    assert _data(tmp_path) == KEPT


def test_ctrl_c_keeps_what_has_come_and_says_so(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = _serve(server, _tar(VOC))
    advance = ByteProgress.advance

    def interrupted(self: ByteProgress, num_bytes: int) -> None:
        advance(self, num_bytes)
        if self.done >= 100_000:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ByteProgress, "advance", interrupted)
        with pytest.raises(KeyboardInterrupt, match=r"Stopped by Ctrl-C\. What was fetched of voc is kept .* goes on"):
            download("voc", tmp_path, archives=[archive])
    have = (tmp_path / ".download/voc.tar.part").stat().st_size
    assert 100_000 <= have < (archive.num_bytes or 0)
    download("voc", tmp_path, archives=[archive])
    assert server.asked[1:] == [("/voc.tar", f"bytes={have}-", '"v1"')]
    assert _data(tmp_path) == KEPT


@pytest.mark.parametrize("fault", ["unpacking", "renaming"])
def test_a_crash_after_fetching_leaves_nothing_half_and_fetches_nothing_again(
    fault: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = _serve(server, _tar(VOC))

    def crash(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "the disk is failing")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crash) if fault == "renaming" else patch.setattr(
            "effdense.datasets.unpack._write", crash
        )
        with pytest.raises(UserError, match="the disk is failing"):
            download("voc", tmp_path, archives=[archive])
    assert _data(tmp_path) == {}
    assert "voc.tar.unpacked" not in [path.name for path in (tmp_path / ".download").iterdir()]
    download("voc", tmp_path, archives=[archive])
    assert (len(server.asked), _data(tmp_path)) == (1, KEPT)


def test_what_a_killed_process_left_unpacked_is_not_mixed_in(server: Server, tmp_path: Path) -> None:
    stale = tmp_path / ".download/voc.tar.unpacked/VOCdevkit/VOC2012/JPEGImages/stale.jpg"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"half")
    download("voc", tmp_path, archives=[_serve(server, _tar(VOC))])
    assert _data(tmp_path) == KEPT


RESUMES = {
    "no-ranges": ({"ranges": False}, "bytes=1000-", '"v1"', True),
    "another-version": ({"etag": '"v2"'}, "bytes=1000-", '"v1"', True),
    "no-version-but-a-hash": ({"etag": None}, "bytes=1000-", None, False),
    "weak-etag": ({"etag": 'W/"v1"'}, "bytes=1000-", None, False),
}


@pytest.mark.parametrize("case", RESUMES)
def test_a_server_that_cannot_go_on_starts_over(case: str, server: Server, tmp_path: Path) -> None:
    changes, wanted_range, version, from_the_start = RESUMES[case]
    archive = _serve(server, _tar(VOC))
    if case in ("no-version-but-a-hash", "weak-etag"):
        server.etag = changes["etag"]
    server.cut_after = [1000, 0, 0, 0]
    with pytest.raises(UserError):
        download("voc", tmp_path, archives=[archive])
    del server.asked[:], server.sent[:]
    for name, value in changes.items():
        setattr(server, name, value)
    download("voc", tmp_path, archives=[archive])
    assert server.asked == [("/voc.tar", wanted_range, version)]
    assert server.sent == [(archive.num_bytes or 0) - (0 if from_the_start else 1000)]
    assert _data(tmp_path) == KEPT


def test_without_version_and_hash_nothing_is_patched_together(server: Server, tmp_path: Path) -> None:
    archive = replace(_serve(server, _zip(VOC), "voc.zip"), sha256=None)
    server.etag, server.cut_after = None, [1000]
    download("voc", tmp_path, archives=[archive])
    assert [asked[1] for asked in server.asked] == [None, None]
    assert _data(tmp_path) == KEPT


def test_a_file_of_unknown_size_and_hash_is_checked_by_what_is_in_it(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "effdense")
    archive = replace(_serve(server, _zip(VOC), "voc.zip"), sha256=None, num_bytes=None)
    server.stated_length = None
    download("voc", tmp_path, archives=[archive])
    assert _data(tmp_path) == KEPT
    assert "voc.zip: no hash is published" in caplog.text


def test_a_whole_file_of_unknown_size_is_not_fetched_twice(server: Server, tmp_path: Path) -> None:
    archive = replace(_serve(server, _zip(VOC), "voc.zip"), num_bytes=None)
    part = tmp_path / ".download/voc.zip.part"
    part.parent.mkdir()
    part.write_bytes(server.files["/voc.zip"])
    download("voc", tmp_path, archives=[archive])
    assert (server.sent, _data(tmp_path)) == ([], KEPT)


def test_more_than_the_file_has_is_thrown_away(server: Server, tmp_path: Path) -> None:
    archive = _serve(server, _tar(VOC))
    part = tmp_path / ".download/voc.tar.part"
    part.parent.mkdir()
    part.write_bytes(bytes((archive.num_bytes or 0) + 5))
    download("voc", tmp_path, archives=[archive])
    assert _data(tmp_path) == KEPT


def test_a_wrong_hash_is_said_and_the_file_removed(server: Server, tmp_path: Path) -> None:
    archive = _serve(server, _tar(VOC))
    content = bytearray(server.files["/voc.tar"])
    content[5000] ^= 1
    server.files["/voc.tar"] = bytes(content)
    with pytest.raises(UserError, match=rf"voc\.tar as fetched has SHA-256 \w+, not {archive.sha256}, and was removed"):
        download("voc", tmp_path, archives=[archive])
    assert list(_tree(tmp_path)) == [".download/lock"]


def test_another_file_in_its_place_is_not_fetched_at_all(server: Server, tmp_path: Path) -> None:
    archive = _serve(server, _tar(VOC))
    server.files["/voc.tar"] = b"<html>please log in to the network</html>"
    with pytest.raises(UserError, match=r"offers 41 bytes, not \d+"):
        download("voc", tmp_path, archives=[archive])
    assert list(_tree(tmp_path)) == [".download/lock"]


def test_a_body_shorter_than_stated_is_not_taken_for_whole(server: Server, tmp_path: Path) -> None:
    archive = replace(_serve(server, _zip(VOC), "voc.zip"), num_bytes=None, sha256=None)
    server.stated_length = len(server.files["/voc.zip"]) + 7
    server.ranges = False
    with pytest.raises(UserError, match=r"the connection ended after \d+ of \d+ bytes"):
        download("voc", tmp_path, archives=[archive])
    assert _data(tmp_path) == {}


def test_a_server_that_sends_another_part_is_not_believed(server: Server, tmp_path: Path) -> None:
    archive = _serve(server, _tar(VOC))
    server.cut_after, server.range_offset = [1000], 10
    with pytest.raises(UserError, match=r"was asked for bytes from 1000 on and sends 'bytes 1010-"):
        download("voc", tmp_path, archives=[archive])
    assert (tmp_path / ".download/voc.tar.part").stat().st_size == 1000


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (503, 4), (429, 4)])
def test_a_refusal_is_final_and_a_busy_server_is_asked_again(
    status: int, requests: int, server: Server, tmp_path: Path
) -> None:
    archive = _serve(server, _tar(VOC))
    server.status = status
    with pytest.raises(
        UserError, match=rf"voc\.tar cannot be fetched \({server.url}/voc\.tar: the server says {status} "
    ):
        download("voc", tmp_path, archives=[archive])
    assert len(server.asked) == requests


def test_the_second_address_is_used_where_the_first_has_nothing(server: Server, tmp_path: Path) -> None:
    archive = _serve(server, _tar(VOC))
    archive = replace(archive, urls=(f"{server.url}/gone.tar", *archive.urls))
    download("voc", tmp_path, archives=[archive])
    assert [asked[0] for asked in server.asked] == ["/gone.tar", "/voc.tar"]
    assert _data(tmp_path) == KEPT


def _unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_without_a_connection_one_sentence_comes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(seconds: float) -> None:
        raise AssertionError(f"waited {seconds} s for a server that never answered")

    monkeypatch.setattr(fetch.time, "sleep", never)
    url = f"http://127.0.0.1:{_unused_port()}/voc.tar"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(UserError, match=r"voc\.tar cannot be fetched .*refused.*online\?$") as caught:
        download("voc", tmp_path, archives=[Archive("voc.tar", (url,), (VOC_CONTENT,), 10)], opener=opener)
    assert "\n" not in str(caught.value)


def test_a_silent_server_is_not_waited_for_long(server: Server, tmp_path: Path) -> None:
    server.silent_s = threading.Event()
    started = time.monotonic()
    with pytest.raises(UserError, match=r"timed out"):
        download("voc", tmp_path, archives=[_serve(server, _tar(VOC))], timeout_s=0.1)
    assert time.monotonic() - started < 2
    assert len(server.asked) == 1


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/voc.tar", "file:///etc/passwd", "voc.tar"])
def test_nothing_but_http_is_fetched(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only http and https are"):
        download("voc", tmp_path, archives=[Archive("voc.tar", (url,), (VOC_CONTENT,))])


def test_a_redirection_is_followed_to_http_and_to_nothing_else(server: Server, tmp_path: Path) -> None:
    archive = _serve(server, _tar(VOC))
    server.files["/moved"] = server.files["/voc.tar"]
    for target in ("ftp://127.0.0.1/voc.tar", "file:///etc/passwd"):
        server.redirect = target
        with pytest.raises(UserError, match=r"cannot be fetched"):
            download("voc", tmp_path, archives=[archive])
    server.redirect = f"{server.url}/moved"
    download("voc", tmp_path, archives=[archive])
    assert _data(tmp_path) == KEPT


def _link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def _zipped(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


INSIDE = "VOCdevkit/VOC2012/JPEGImages/x"
HOSTILE: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "tar-up": (lambda: _tar(VOC | {"../evil": b"x"}), "tar", r"'\.\./evil' that would leave the folder"),
    "tar-up-within": (lambda: _tar(VOC | {f"{INSIDE}/../../../../../evil": b"x"}), "tar", "would leave the folder"),
    "tar-absolute": (lambda: _tar(VOC | {"/tmp/evil": b"x"}), "tar", r"'/tmp/evil' that would leave the folder"),
    "tar-symlink": (lambda: _tar(VOC, _link(INSIDE, "/etc", tarfile.SYMTYPE)), "tar", r"is a link to '/etc'"),
    "tar-symlink-up": (lambda: _tar(VOC, _link(INSIDE, "../../../..", tarfile.SYMTYPE)), "tar", r"is a link to '\.\."),
    "tar-hardlink": (lambda: _tar(VOC, _link(INSIDE, "/etc/passwd", tarfile.LNKTYPE)), "tar", r"is a link to '/etc"),
    "tar-device": (lambda: _tar(VOC, _link(INSIDE, "", tarfile.CHRTYPE)), "tar", r"is no ordinary file"),
    "tar-fifo": (lambda: _tar(VOC, _link(INSIDE, "", tarfile.FIFOTYPE)), "tar", r"is no ordinary file"),
    "zip-up": (lambda: _zip(VOC | {"../evil": b"x"}), "zip", r"'\.\./evil' that would leave the folder"),
    "zip-up-by-backslash": (lambda: _zip(VOC | {"..\\evil": b"x"}), "zip", "would leave the folder"),
    "zip-absolute": (lambda: _zip(VOC | {"/tmp/evil": b"x"}), "zip", r"'/tmp/evil' that would leave the folder"),
    "zip-drive": (lambda: _zip(VOC | {"C:/evil": b"x"}), "zip", r"'C:/evil' that would leave the folder"),
    "zip-symlink": (lambda: _zip(VOC, _zipped(INSIDE, stat.S_IFLNK | 0o777)), "zip", r"is a link"),
    "zip-device": (lambda: _zip(VOC, _zipped(INSIDE, stat.S_IFCHR | 0o600)), "zip", r"is no ordinary file"),
    "zip-within": (
        lambda: _zip(VOC | {"VOCdevkit/inner.zip": _zip({"VOC2012/../../../evil": b"x"})}),
        "zip",
        "would leave the folder",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_member_that_would_leave_the_folder_is_refused(case: str, server: Server, tmp_path: Path) -> None:
    make, kind, message = HOSTILE[case]
    root = tmp_path / "a" / "b" / "c" / "d"
    archive = _serve(server, make(), f"voc.{kind}")
    if case == "zip-within":
        archive = replace(archive, inner=("VOCdevkit/inner.zip",))
    with pytest.raises(UserError, match=rf"has a member .*{message}.*: refused, nothing was unpacked"):
        download("voc", root, archives=[archive])
    assert [name for name in _tree(tmp_path) if not name.endswith("/.download/lock")] == []


BROKEN = {
    "no-tar": (b"x" * 5000, "tar"),
    "cut-tar": (_tar(VOC)[:100_000], "tar"),
    "no-zip": (b"x" * 5000, "zip"),
    "cut-zip": (_zip(VOC)[:-500], "zip"),
    "damaged-zip": (_zip(VOC).replace(b"\x03" * 1000, b"\x04" * 1000), "zip"),
    "other-contents": (_zip({"readme.txt": b"moved"}), "zip"),
    "some-missing": (_zip(dict(list(KEPT.items())[1:])), "zip"),
    "empty": (_zip({}), "zip"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_archive_leaves_nothing(case: str, server: Server, tmp_path: Path) -> None:
    content, kind = BROKEN[case]
    archive = replace(_serve(server, content, f"voc.{kind}"), sha256=None)
    with pytest.raises(UserError, match=rf"voc\.{kind} (is broken|does not hold VOCdevkit/VOC2012)"):
        download("voc", tmp_path, archives=[archive])
    assert list(_tree(tmp_path)) == [".download/lock"]
    assert [path.name for path in tmp_path.iterdir()] == [".download"]


def _free(monkeypatch: pytest.MonkeyPatch, *amounts: int) -> None:
    left = list(amounts)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, left.pop(0) if len(left) > 1 else left[0]))


def test_a_disk_too_small_is_seen_before_anything_is_fetched(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = replace(_serve(server, _tar(VOC)), unpacked_bytes=3 * 10**9)
    _free(monkeypatch, 2 * 10**9)
    with pytest.raises(UserError, match=r"downloading voc takes 3\.0 GB in .*, and 2\.0 GB are free: free some space"):
        download("voc", tmp_path, archives=[archive])
    assert server.asked == []
    unknown = replace(archive, num_bytes=None)
    server.stated_length = 5 * 10**9
    _free(monkeypatch, 4 * 10**9)
    with pytest.raises(
        UserError, match=r"voc\.tar takes another 8\.0 GB in .*unpacking included, and 4\.0 GB are free"
    ):
        download("voc", tmp_path, archives=[unknown])


def test_a_disk_too_small_to_unpack_keeps_what_was_fetched(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = _serve(server, _tar(VOC))
    with monkeypatch.context() as patch:
        _free(patch, 10**9, 10**9, 1000)
        with pytest.raises(UserError, match=r"unpacking voc\.tar takes 0\.0 GB in .*: free some space"):
            download("voc", tmp_path, archives=[archive])
    assert _data(tmp_path) == {}
    download("voc", tmp_path, archives=[archive])
    assert (len(server.asked), _data(tmp_path)) == (1, KEPT)


def test_a_disk_that_fills_up_keeps_what_has_come(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = _serve(server, _tar(VOC))

    def full(self: ByteProgress, num_bytes: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ByteProgress, "advance", full)
        with pytest.raises(UserError, match=r"voc\.tar\.part cannot be written \(the disk is full\); what is there"):
            download("voc", tmp_path, archives=[archive])
    assert (tmp_path / ".download/voc.tar.part").stat().st_size > 0
    download("voc", tmp_path, archives=[archive])
    assert (server.asked[1][1] or "").startswith("bytes=")
    assert _data(tmp_path) == KEPT


def test_a_root_that_cannot_be_written_to_is_said(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"voc cannot be downloaded to .*file.*name another folder with --data-root"):
        download("voc", tmp_path / "file", archives=[_serve(server, _tar(VOC))])


def test_two_processes_fetch_once(server: Server, tmp_path: Path) -> None:
    archive = _serve(server, _tar(VOC))
    threads = [
        threading.Thread(target=download, args=("voc", tmp_path), kwargs={"archives": [archive]}) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(server.asked), _data(tmp_path)) == (1, KEPT)


def test_progress_is_logged_every_few_seconds(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "effdense")
    monkeypatch.setattr(byte_progress, "SECONDS_BETWEEN_LINES", 0.0)
    download("voc", tmp_path, archives=[_serve(server, _tar(VOC))])
    for what in (r"fetching voc.tar: 0 of 0 MB", "checking voc.tar", "unpacking voc.tar", "MB/s", "min left"):
        assert what in caplog.text


def test_the_official_archives_are_complete_in_the_table() -> None:
    voc, coco, panoptic = official_archives("voc"), official_archives("coco"), official_archives("coco", panoptic=True)
    assert [archive.file_name for archive in panoptic[:3]] == [archive.file_name for archive in coco]
    for archive in (*voc, *panoptic):
        assert archive.num_bytes
        assert len(bytes.fromhex(archive.sha256 or "")) == 32
        assert all(url.endswith(f"/{archive.file_name}") for url in archive.urls)
    assert 20e9 < sum(archive.num_bytes or 0 for archive in coco) < 21e9
    assert 40e9 < space_needed(coco) < 42e9
    with pytest.raises(UserError, match=r"'vok' cannot be downloaded, only voc and coco; did you mean 'voc'\?"):
        official_archives("vok")


@pytest.mark.parity
def test_the_address_and_hash_of_voc_are_those_of_torchvision() -> None:
    from torchvision.datasets import voc

    theirs = voc.DATASET_YEAR_DICT["2012"]
    (ours,) = official_archives("voc")
    assert theirs["filename"] == ours.file_name
    assert {url.partition("://")[2] for url in ours.urls} >= {theirs["url"].partition("://")[2]}
    assert theirs["md5"] == "6cd6e144f989b92b3379bac3b3de84fd"  # of the file whose SHA-256 is ours
    assert ours.contents[0].place == theirs["base_dir"]


@pytest.mark.parametrize("task", ["detection", "segmentation"])
@pytest.mark.parametrize("name", ["voc", "coco"])
def test_missing_data_say_where_what_and_how(
    name: str, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = str(missing_data(name, default_root(name), task))
    assert f"looked in {tmp_path / 'data' / name}. That folder does not exist." in text
    assert ("SegmentationClass/" in text) == (name == "voc" and task == "segmentation")
    assert ("instances_train2017.json" in text) == (name == "coco")
    assert f"--download: it fetches the official archives, {'2.0' if name == 'voc' else '20.4'} GB" in text
    default_root(name).mkdir(parents=True)
    (default_root(name) / "note.txt").touch()
    assert "Found there: note.txt." in str(missing_data(name, default_root(name), task))


def test_the_note_on_a_version_may_be_nonsense(server: Server, tmp_path: Path) -> None:
    archive = _serve(server, _tar(VOC))
    part = tmp_path / ".download/voc.tar.part"
    part.parent.mkdir()
    for nonsense in ("", "[]", json.dumps({"url": archive.urls[0], "version": 5})):
        part.write_bytes(server.files["/voc.tar"][:1000])
        part.with_name("voc.tar.part.json").write_text(nonsense)
        download("voc", tmp_path, archives=[archive])
        assert _data(tmp_path) == KEPT
        shutil.rmtree(tmp_path / "VOCdevkit")


@pytest.mark.parametrize("place", ["http://[bad/x", "http://a..b/x", "http://a:b/x"])
def test_a_redirection_to_no_address_leaves_the_next_one_to_be_tried(
    place: str, server: Server, tmp_path: Path
) -> None:
    server.redirect = place
    with pytest.raises(UserError, match=r"voc\.tar cannot be fetched \(http://127"):
        download("voc", tmp_path, archives=[_serve(server, _tar(VOC))])
    archive = _serve(server, _tar(VOC))
    server.files["/moved"] = server.files["/voc.tar"]
    download("voc", tmp_path, archives=[replace(archive, urls=(archive.urls[0], f"{server.url}/moved"))])
    assert _data(tmp_path) == KEPT


def test_a_body_without_end_is_cut_off_and_not_kept(server: Server, tmp_path: Path) -> None:
    archive = _serve(server, _tar(VOC))
    server.files["/voc.tar"] += bytes(20_000_000)
    server.stated_length = None
    with pytest.raises(UserError, match=rf"sends more than the {archive.num_bytes} bytes of the file"):
        download("voc", tmp_path, archives=[archive])
    assert [path.name for path in (tmp_path / ".download").iterdir()] == ["lock"]


def test_the_space_of_a_file_whose_length_is_not_stated_is_that_of_the_table(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = _serve(server, _tar(VOC))
    server.stated_length = None
    _free(monkeypatch, 10**9, archive.num_bytes or 0)
    with pytest.raises(UserError, match=r"voc\.tar takes another 0\.0 GB in"):
        download("voc", tmp_path, archives=[archive])


@pytest.mark.parametrize("litter", [".DS_Store", ".download", "__MACOSX"])
def test_a_root_with_litter_alone_is_empty(litter: str, tmp_path: Path) -> None:
    (tmp_path / litter).mkdir()
    with pytest.raises(UserError, match=r"no data for --dataset coco.*\n(.*\n)*.*add --download: it fetches"):
        ready_root("coco", tmp_path, "detection")
    with pytest.raises(UserError, match=r"begin with train_det\.py --dataset coco --download --data-root .*: it"):
        ready_root("coco", tmp_path, "detection", can_download=False)
    (tmp_path / "annotations").mkdir()
    assert ready_root("coco", tmp_path, "detection") == tmp_path
