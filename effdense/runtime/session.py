"""What runs an exported file: ONNX Runtime or OpenVINO, behind one call."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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

IMAGES, CONTENTS = "images", "contents_hw"
"""What an exported file calls its inputs: uint8 (B, H, W, 3), RGB; and, optional and of files that detect, int64 (B,
2), the height and width that images really have where they are padded at the bottom and the right to one size. 0, 0,
which it is by default, stands for the whole image."""

_SHOWN = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
_EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}
_HINTS = {"float32": "f32", "bfloat16": "bf16"}


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

    def run(self, images: UInt8, contents_hw: Int64 | None = None) -> dict[str, Array]:
        """Return the file's outputs by their names.

        Args:
            images: RGB, (B, H, W, 3).
            contents_hw: (B, 2), the height and width that images really have where they are padded at the bottom and
                the right; for files that detect.

        Raises:
            UserError: the images do not fit into memory.
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
        precision = precision or header[EXPORT]["precision"]
        if precision not in _HINTS:
            raise ValueError(f"its precision is {precision!r}")
    if threads is not None and threads < 1:
        raise UserError(f"threads is {threads}, expected 1 or more")
    chosen = choose_runtime(runtime, precision)
    opener = _open_onnxruntime if chosen == "onnxruntime" else _open_openvino
    return opener(path, precision, threads or torch.get_num_threads())


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
    """A session of ONNX Runtime."""

    name = "onnxruntime"
    precision = "float32"

    def __init__(self, session: Any, source: Path) -> None:
        self._session, self._source = session, source
        optional = session.get_overridable_initializers()
        self.inputs = tuple(one.name for one in (*session.get_inputs(), *optional))
        self.outputs = tuple(one.name for one in session.get_outputs())

    def run(self, images: UInt8, contents_hw: Int64 | None = None) -> dict[str, Array]:
        """Return the file's outputs by their names."""
        given = {IMAGES: images} if contents_hw is None else {IMAGES: images, CONTENTS: contents_hw}
        with _memory_errors_explained(self._source, self.name, images):
            values = self._session.run(self.outputs, given)
        return dict(zip(self.outputs, values, strict=True))


def _open_onnxruntime(path: Path, precision: str, threads: int) -> Session:
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
    return _OnnxRuntime(session, path)


@dataclass(frozen=True)
class _Stage:
    """A compiled model, and the names of what it reads and gives, in its order."""

    compiled: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class _OpenVino:
    """A file compiled by OpenVINO, as a whole or in stages, each of which reads by name what those before it give."""

    name = "openvino"

    def __init__(self, stages: Sequence[_Stage], precision: str, source: Path) -> None:
        self.precision, self._source = precision, source
        self._stages = [(one.compiled.create_infer_request(), one.inputs, one.outputs) for one in stages]
        given = {name for _, _, outputs in self._stages for name in outputs}
        self.inputs = tuple(name for _, inputs, _ in self._stages for name in inputs if name not in given)
        self.outputs = self._stages[-1][2]
        self._lock = threading.Lock()  # a request does one thing at a time, and raises where it is asked for two

    def run(self, images: UInt8, contents_hw: Int64 | None = None) -> dict[str, Array]:
        """Return the file's outputs by their names."""
        known: dict[str, Any] = {
            IMAGES: np.ascontiguousarray(images),
            CONTENTS: np.zeros((1, 2), np.int64) if contents_hw is None else contents_hw,
        }
        with self._lock, _memory_errors_explained(self._source, self.name, images):
            for request, inputs, outputs in self._stages:
                given = {name: known[name] for name in inputs}
                passed_on = request is not self._stages[-1][0]  # and not kept, so that no copy is needed
                found = request.infer(given, share_inputs=True, share_outputs=passed_on)
                known |= {name: found[place] for place, name in enumerate(outputs)}
        return {name: known[name] for name in self.outputs}


_opening_core = threading.Lock()


@functools.cache
def _only_core() -> Any:
    import openvino

    return openvino.Core()


def _openvino_core() -> Any:
    """Return the process's one Core, which is never given up.

    Each Core gives the thread a stack for signals, and takes it away again when it goes. Where two overlap, the one
    that goes last brings back the stack of the one that went first: the next signal that Python handles, a child that
    ends or Ctrl-C, would kill the process.
    """
    with _opening_core:
        return _only_core()


def _open_openvino(path: Path, precision: str, threads: int) -> Session:
    import openvino

    core = _openvino_core()
    if precision == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        log.info("%s was exported in bfloat16; this CPU has none and computes it in float32", path)
        precision = "float32"
    common = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # pinned threads of two processes would share the same cores
    }
    try:
        stages = []
        for model, one in _stages_of(path, precision):
            # The precision is always said: left to itself, it computes in bfloat16 wherever the CPU can.
            settings = {**common, "INFERENCE_PRECISION_HINT": _HINTS[one]}
            compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", settings)
            inputs, outputs = _names(compiled.inputs, model.graph.input), _names(compiled.outputs, model.graph.output)
            stages.append(_Stage(compiled, inputs, outputs))
    except Exception as error:
        raise _unopened(error, path, "openvino", openvino.__version__) from error
    return _OpenVino(stages, precision, path)


def _names(ends: Sequence[Any], named: Sequence[Any]) -> tuple[str, ...]:
    """Return what the file calls the ends of a compiled model, which may have further names for them."""
    return tuple(next(one.name for one in named if one.name in end.get_names()) for end in ends)


def _stages_of(path: Path, precision: str) -> list[tuple[Any, str]]:
    """Return what of a file is compiled apart, and the precision of each: only the network computes in bfloat16."""
    import onnx

    model = onnx.load(path)
    inputs = {one.name for one in model.graph.input}
    constants = [one for one in model.graph.initializer if one.name not in inputs]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)  # an input that has a default there, OpenVINO takes for a constant
    if precision == "float32":
        return [(model, precision)]
    from effdense.runtime.stages import cut

    before, network, after = cut(model)
    return [(before, "float32"), (network, precision), (after, "float32")]


def _unopened(error: Exception, path: Path, runtime: str, version: str) -> UserError:
    return UserError(
        f"{path} cannot be opened by {_SHOWN[runtime]} {version} ({_first_line(error)}); take a newer {runtime}, or "
        "export the file again"
    )


@contextlib.contextmanager
def _memory_errors_explained(path: Path, runtime: str, images: UInt8) -> Iterator[None]:
    """Turn a runtime's error into a sentence, where it is for want of memory."""
    try:
        yield
    except Exception as error:
        said = str(error).lower()
        if not (isinstance(error, MemoryError) or "alloc" in said or "out of memory" in said):
            raise
        count, height, width, _ = images.shape
        raise UserError(
            f"{count} image{'s' * (count != 1)} of {width}x{height} pixels do not fit into memory ({_SHOWN[runtime]} "
            f"with {path}): use a smaller batch size, or smaller images"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
