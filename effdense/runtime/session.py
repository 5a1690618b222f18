"""What runs an exported file: ONNX Runtime or OpenVINO, behind one call."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from effdense.errors import UserError, nearest
from effdense.runtime.onnx_header import EXPORT, header_errors_explained, read_onnx_header
from effdense.types import Int64, UInt8

log = logging.getLogger(__name__)

Runtime: TypeAlias = Literal["auto", "onnxruntime", "openvino"]
Precision: TypeAlias = Literal["float32", "bfloat16"]

Array: TypeAlias = npt.NDArray[Any]

IMAGES, CONTENTS, ORIGINAL = "images", "contents_hw", "original_hw"
"""What an exported file calls its inputs.

- uint8 (B, H, W, 3), RGB;
- optional, of files that detect: int64 (B, 2), the height and width that images really have where they are padded at
  the bottom and the right to one size. 0, 0, which it is by default, stands for the whole image;
- optional, of files that label pixels: int64 (2,), the height and width that images had before they were fitted into
  the square, which is then left out; label maps get this size. 0, 0, which it is by default, leaves it to the file.
"""

_SHOWN = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
_EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}
_PRECISIONS = ("float32", "bfloat16")
_PIXELS_AT_ONCE = 2 * 512 * 512
"""Of ONNX Runtime's images."""


class Session(Protocol):
    """An exported file, opened.

    Attributes:
        name: of the runtime: ``onnxruntime`` or ``openvino``.
        precision: that the network computes in, here: ``float32`` or ``bfloat16``.
        inputs: what the file takes.
        outputs: what it gives.
    """

    name: str
    precision: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(
        self, images: UInt8, contents_hw: Int64 | None = None, original_hw: Int64 | None = None
    ) -> dict[str, Array]:
        """Return the file's outputs by their names.

        Args:
            images: RGB, (B, H, W, 3).
            contents_hw: (B, 2), the height and width that images really have where they are padded at the bottom and
                the right; for files that detect.
            original_hw: (2,), the height and width that images had before they were fitted; for files that label
                pixels.

        Raises:
            UserError: the images do not fit into memory, or are larger than the square that they are said to fit.
        """
        ...


def open_session(
    path: str | Path, *, runtime: Runtime = "auto", precision: Precision | None = None, threads: int | None = None
) -> Session:
    """Open an exported file on the CPU.

    Args:
        path: what ``effdense export`` wrote.
        runtime: ``auto`` takes ONNX Runtime, or OpenVINO for a file exported in bfloat16, which ONNX Runtime computes
            in float32.
        precision: of the computation; by default what the file was exported, and hence checked, in.
        threads: that a run may use; by default as many as PyTorch uses. Processes that run side by side want fewer.

    Raises:
        UserError: no whole file that effdense exported, a runtime that is not installed or cannot do it, or no thread.
    """
    path = Path(path)
    header = read_onnx_header(path)
    with header_errors_explained(path):
        precision, side = precision or header[EXPORT]["precision"], header[EXPORT]["image_size"]
        if precision not in _PRECISIONS:
            raise ValueError(f"its precision is {precision!r}")
        if type(side) is not int:
            raise TypeError(f"its image_size is {side!r}")
    if threads is not None and threads < 1:
        raise UserError(f"threads is {threads}, expected 1 or more")
    chosen = choose_runtime(runtime, precision)
    opener = _open_onnxruntime if chosen == "onnxruntime" else _open_openvino
    return opener(path, precision, threads or torch.get_num_threads(), side)


def require_ends(session: Session, source: str, outputs: Sequence[str], inputs: Sequence[str] = (IMAGES,)) -> None:
    """Refuse a file that does not take and give what its header promises.

    Args:
        session: of the file.
        source: the file, for the error.
        outputs: that are expected.
        inputs: that are expected.

    Raises:
        UserError: names those that are missing.
    """
    lacking = [f"input {name}" for name in inputs if name not in session.inputs]
    lacking += [f"output {name}" for name in outputs if name not in session.outputs]
    if lacking:
        raise UserError(f"{source} lacks the {', '.join(lacking)} that its header promises; export it again")


def require_precision(session: Session, precision: str) -> None:
    """Refuse a session that computes in another precision, so that nothing could be said of this one.

    Raises:
        UserError: this CPU has no such precision.
    """
    if session.precision != precision:
        raise UserError(
            f"a file in {precision} cannot be compared with its checkpoint here: {_SHOWN[session.name]} computes in "
            f"{session.precision} on this CPU; export on one that has {precision}, or take --precision "
            f"{session.precision}"
        )


def choose_runtime(runtime: str, precision: str) -> str:
    """Return the runtime to take, which is installed."""
    if runtime not in ("auto", *_SHOWN):
        raise UserError(
            f"runtime is {runtime!r}, expected auto, {' or '.join(_SHOWN)}{nearest(runtime, tuple(_SHOWN))}"
        )
    wanted = runtime
    if runtime == "auto":
        wanted = "openvino" if precision == "bfloat16" else "onnxruntime"
        if wanted == "onnxruntime" and not _is_installed(wanted) and _is_installed("openvino"):
            return "openvino"
    if not _is_installed(wanted):
        why = " and computes in bfloat16, as this file asks for" if runtime == "auto" and wanted == "openvino" else ""
        raise UserError(
            f"{_SHOWN[wanted]} runs exported models{why}, and is not installed: "
            f"pip install 'effdense[{_EXTRAS[wanted]}]'"
        )
    return wanted


def _is_installed(runtime: str) -> bool:
    return find_spec(runtime) is not None


class _OnnxRuntime:
    """A session of ONNX Runtime: a few images at a time, as maps that outgrow the caches slow it down.

    D0 at 512 pixels runs 1.17 times as many images a second one by one as in batches of sixteen; small images gain from
    company.
    """

    name = "onnxruntime"
    precision = "float32"

    def __init__(self, session: Any, source: Path, side: int) -> None:
        self._session, self._source, self._side = session, source, side
        optional = session.get_overridable_initializers()
        self.inputs = tuple(one.name for one in (*session.get_inputs(), *optional))
        self.outputs = tuple(one.name for one in session.get_outputs())

    def run(
        self, images: UInt8, contents_hw: Int64 | None = None, original_hw: Int64 | None = None
    ) -> dict[str, Array]:
        """Return the file's outputs by their names."""
        if ORIGINAL in self.inputs:
            require_fitted(self._source, images, original_hw, self._side)
        count, height, width, _ = images.shape
        runs = max(1, min(count, round(count * height * width / _PIXELS_AT_ONCE)))
        found = [
            self._run(images[some], None if contents_hw is None else contents_hw[some], original_hw)
            for some in _slices(count, runs)
        ]
        if len(found) == 1:
            return found[0]
        return {name: np.concatenate([one[name] for one in found]) for name in self.outputs}

    def _run(self, images: UInt8, contents_hw: Int64 | None, original_hw: Int64 | None) -> dict[str, Array]:
        optional = {CONTENTS: contents_hw, ORIGINAL: original_hw}
        given = {IMAGES: images} | {name: value for name, value in optional.items() if value is not None}
        with memory_errors_explained(self._source, self.name, images, original_hw):
            return dict(zip(self.outputs, self._session.run(self.outputs, given), strict=True))


def _slices(count: int, parts: int) -> list[slice]:
    """Return slices that part so many images as evenly as can be."""
    edges = [count * place // parts for place in range(parts + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(edges)]


def _open_onnxruntime(path: Path, precision: str, threads: int, side: int) -> Session:
    import onnxruntime

    if precision == "bfloat16":
        log.info("%s was exported in bfloat16; ONNX Runtime computes it in float32", path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors alone; its warnings are for those who make a file
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # each kind of fault has a class of its own, without a common base
        raise _unopened(error, path, "onnxruntime", onnxruntime.__version__) from error
    return _OnnxRuntime(session, path, side)


def _open_openvino(path: Path, precision: str, threads: int, side: int) -> Session:
    import openvino

    from effdense.runtime.openvino_session import OpenVino, openvino_core

    core = openvino_core()
    if precision == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        log.info("%s was exported in bfloat16; this CPU has none and computes it in float32", path)
        precision = "float32"
    try:
        return OpenVino(path, precision, threads, side)
    except Exception as error:
        raise _unopened(error, path, "openvino", openvino.__version__) from error


def _unopened(error: Exception, path: Path, runtime: str, version: str) -> UserError:
    return UserError(
        f"{path} cannot be opened by {_SHOWN[runtime]} {version} ({_first_line(error)}); take a newer {runtime}, or "
        "export the file again"
    )


def require_fitted(path: Path, images: UInt8, original_hw: Int64 | None, side: int) -> None:
    """Refuse images that are said to be fitted and are not; runtimes would write where they must not.

    Args:
        path: the file.
        images: (B, H, W, 3), that it is given.
        original_hw: (2,), the size that they had before they were fitted; 0 where that is not said.
        side: S, of the file's square, in pixels.

    Raises:
        UserError: an image is larger than the square.
    """
    height, width = images.shape[1:3]
    if original_hw is not None and (original_hw > 0).any() and max(height, width) > side:
        raise UserError(
            f"{ORIGINAL} says that images of {width}x{height} pixels are fitted already into the {side} pixels of "
            f"{path}, and they are larger: fit them first, or leave {ORIGINAL} out, and the file fits them"
        )


@contextlib.contextmanager
def memory_errors_explained(
    path: Path, runtime: str, images: UInt8, original_hw: Int64 | None = None
) -> Iterator[None]:
    """Turn a runtime's error into a sentence, where it is for want of memory.

    Args:
        path: the file.
        runtime: that runs it.
        images: (B, H, W, 3), that it was given.
        original_hw: (2,), the size that it was asked to make label maps of; 0 stands for that of the images.
    """
    try:
        yield
    except Exception as error:
        said = str(error).lower()
        if not (isinstance(error, MemoryError) or "alloc" in said or "out of memory" in said):
            raise
        raise UserError(_too_large(path, runtime, images.shape, original_hw)) from error


def _too_large(path: Path, runtime: str, shape: tuple[int, ...], original_hw: Int64 | None) -> str:
    """Return the sentence that says what does not fit into memory, and what helps."""
    count, *size_hw, _ = shape
    given = (0, 0) if original_hw is None else original_hw.tolist()
    height, width = (own or fitted for own, fitted in zip(given, size_hw, strict=True))
    advice = ["a smaller batch size"] if count > 1 else []
    if runtime == "onnxruntime" and any(given):
        advice.append("OpenVINO, which makes label maps in bands")
    return (
        f"{count} image{'s' * (count > 1)} of {width}x{height} pixels {'do' if count > 1 else 'does'} not fit into "
        f"memory ({_SHOWN[runtime]} with {path}): use {', or '.join([*advice, 'smaller images'])}"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
