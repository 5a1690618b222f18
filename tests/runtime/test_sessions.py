"""What runs an exported file: which runtime, with which settings, and one sentence where it cannot."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
from onnx import parser
from small_export import Exported, photo

from effdense.errors import UserError
from effdense.runtime import session as sessions
from effdense.runtime.onnx_header import write_header
from effdense.runtime.session import (
    choose_runtime,
    memory_errors_explained,
    open_session,
    require_ends,
    require_precision,
)

SUMMING = """
<ir_version: 10, opset_import: ["" : 18]>
summing (uint8[batch, height, width, 3] images, int64[n, 2] contents_hw) => (float[batch] sums, int64[n, 2] seen)
    <int64[1, 2] contents_hw = {0, 0}>
{
    levels = Cast <to = 1> (images)
    axes = Constant <value_ints = [1, 2, 3]> ()
    sums = ReduceSum <keepdims = 0> (levels, axes)
    seen = Identity (contents_hw)
}
"""
BROKEN = """
<ir_version: 10, opset_import: ["" : 18]>
broken (uint8[batch, height, width, 3] images) => (float[batch] sums) { sums = NoSuchOperation (images) }
"""


def written(path: Path, text: str = SUMMING, precision: Any = "float32") -> Path:
    """Write a small graph, with a header as an export has it."""
    model = parser.parse_model(text)
    write_header(model, {"task": "detection", "export": {"precision": precision, "image_size": 64}})
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_both_runtimes_take_images_of_any_size_and_may_be_told_their_contents(runtime: str, tmp_path: Path) -> None:
    session = open_session(written(tmp_path / "x.onnx"), runtime=runtime, threads=1)
    assert (session.name, session.precision) == (runtime, "float32")
    assert set(session.inputs) == {"images", "contents_hw"}
    assert session.outputs == ("sums", "seen")
    for shape in [(1, 4, 5, 3), (3, 1, 1, 3), (2, 2, 900, 3), (1, 4, 5, 3)]:
        images = np.ones(shape, np.uint8)
        contents = np.full((shape[0], 2), 7)
        for given, seen in ((None, [[0, 0]]), (contents, contents.tolist())):
            found = session.run(images, given)
            np.testing.assert_array_equal(found["sums"], [np.prod(shape[1:])] * shape[0])
            assert found["seen"].tolist() == seen


def test_results_stay_as_they_are_when_the_session_runs_again(exported: Exported) -> None:
    for runtime in ("onnxruntime", "openvino"):
        session = open_session(exported.files["multitask"], runtime=runtime, threads=1)  # type: ignore[arg-type]
        first = session.run(photo(0, (64, 64))[None])
        kept = {name: value.copy() for name, value in first.items()}
        session.run(photo(1, (64, 64))[None])
        for name, value in first.items():
            np.testing.assert_array_equal(value, kept[name])


def test_the_network_alone_computes_in_bfloat16(exported: Exported, tmp_path: Path) -> None:
    model = onnx.load(exported.files["multitask"])
    header = sessions.read_onnx_header(exported.files["multitask"])
    write_header(model, {**header, "export": {**header["export"], "precision": "bfloat16"}})
    onnx.save(model, tmp_path / "x.onnx")
    session = open_session(tmp_path / "x.onnx", threads=1)
    has_it = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert (session.name, session.precision) == ("openvino", "bfloat16" if has_it else "float32")
    plain = open_session(exported.files["multitask"], runtime="openvino", threads=1)
    assert (session.inputs, session.outputs) == (plain.inputs, plain.outputs)
    image = photo(0, (64, 64))[None]
    np.testing.assert_allclose(session.run(image)["scores"], plain.run(image)["scores"], atol=0.05)
    on_onnx_runtime = open_session(tmp_path / "x.onnx", runtime="onnxruntime")
    assert on_onnx_runtime.precision == "float32"
    with pytest.raises(UserError, match="a file in bfloat16 cannot be compared with its checkpoint here"):
        require_precision(on_onnx_runtime, "bfloat16")


def test_a_network_is_compiled_once_whatever_the_batch_and_each_image_gets_what_it_gets_alone(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(exported.files["detection"], runtime="openvino", threads=1)
    monkeypatch.setattr(openvino.Core, "compile_model", None)
    images, contents = np.stack([photo(seed, (64, 64)) for seed in range(3)]), np.array([[64, 64], [40, 64], [64, 30]])
    for given in (None, contents):
        alone = [session.run(images[[i]], None if given is None else given[[i]]) for i in range(3)]
        for count in (1, 3, 2):
            together = session.run(images[:count], None if given is None else given[:count])
            for name, found in together.items():
                np.testing.assert_array_equal(found, np.concatenate([one[name] for one in alone[:count]]))


@pytest.mark.parametrize(("at_once", "runs"), [(64 * 64, [1, 1, 1]), (2 * 64 * 64, [1, 2]), (1e9, [3])])
def test_onnx_runtime_takes_a_few_images_at_a_time_and_each_gets_what_it_gets_alone(
    at_once: float, runs: list[int], exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    session: Any = open_session(exported.files["detection"], runtime="onnxruntime", threads=1)
    images, contents = np.stack([photo(seed, (64, 64)) for seed in range(3)]), np.array([[64, 64], [40, 64], [64, 30]])
    alone = {given: [session.run(images[[i]], contents[[i]] if given else None) for i in range(3)] for given in (0, 1)}
    monkeypatch.setattr(sessions, "_PIXELS_AT_ONCE", at_once)
    seen, inner = [], session._session
    session._session = SimpleNamespace(run=lambda names, x: seen.append(len(x["images"])) or inner.run(names, x))
    for given, each in alone.items():
        for name, found in session.run(images, contents if given else None).items():
            np.testing.assert_allclose(found, np.concatenate([one[name] for one in each]), rtol=1e-5, atol=1e-5)
    assert seen == 2 * runs


def test_signals_are_handled_when_overlapping_sessions_are_closed(tmp_path: Path) -> None:
    """OpenVINO gives a thread a stack for its signals, and may take it away while it is in use."""
    code = (
        "import faulthandler, gc, os, signal, sys\n"
        "from effdense.runtime.session import open_session\n"
        "faulthandler.enable()\n"
        "sessions = [open_session(sys.argv[1], runtime='openvino', threads=1) for _ in range(3)]\n"
        "while sessions:\n"
        "    del sessions[0]\n"
        "    gc.collect()\n"
        "signal.signal(signal.SIGCHLD, lambda *_: print('handled'))\n"
        "os.kill(os.getpid(), signal.SIGCHLD)\n"
    )
    command = [sys.executable, "-c", code, str(written(tmp_path / "x.onnx"))]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "handled\n"), ended.stderr


def test_openvino_is_always_told_its_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    compile_model = openvino.Core.compile_model

    def watched(core: Any, model: Any, device: str, settings: dict[str, Any]) -> Any:
        given.append(settings)
        return compile_model(core, model, device, settings)

    monkeypatch.setattr(openvino.Core, "compile_model", watched)
    open_session(written(tmp_path / "x.onnx"), runtime="openvino", threads=1)
    assert given == [
        {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": 1,
            "ENABLE_CPU_PINNING": False,
        }
    ]


def without(*names: str) -> Any:
    return lambda name: None if name in names else object()


@pytest.mark.parametrize(
    ("runtime", "precision", "missing", "chosen"),
    [
        pytest.param("auto", "float32", (), "onnxruntime", id="float32"),
        pytest.param("auto", "bfloat16", (), "openvino", id="bfloat16"),
        pytest.param("auto", "float32", ("onnxruntime",), "openvino", id="the-other-is-there"),
        pytest.param("onnxruntime", "bfloat16", ("openvino",), "onnxruntime", id="as-asked"),
        pytest.param("openvino", "float32", ("onnxruntime",), "openvino", id="as-asked-too"),
    ],
)
def test_the_runtime_follows_the_precision_and_what_is_installed(
    runtime: str, precision: str, missing: tuple[str, ...], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "find_spec", without(*missing))
    assert choose_runtime(runtime, precision) == chosen


@pytest.mark.parametrize(
    ("runtime", "precision", "missing", "says"),
    [
        pytest.param("auto", "float32", ("onnxruntime", "openvino"), "pip install 'effdense[onnx]'", id="neither"),
        pytest.param("onnxruntime", "float32", ("onnxruntime",), "ONNX Runtime runs exported models, and", id="onnx"),
        pytest.param("openvino", "float32", ("openvino",), "pip install 'effdense[openvino]'", id="openvino"),
        pytest.param("auto", "bfloat16", ("openvino",), "computes in bfloat16, as this file asks for", id="bfloat16"),
        pytest.param("opnvino", "float32", (), "did you mean 'openvino'?", id="misspelt"),
    ],
)
def test_a_runtime_that_is_not_there_is_named_with_how_to_get_it(
    runtime: str, precision: str, missing: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "find_spec", without(*missing))
    with pytest.raises(UserError) as refused:
        choose_runtime(runtime, precision)
    assert says in str(refused.value)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_graph_that_a_runtime_does_not_know_is_one_sentence(runtime: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "x.onnx", BROKEN)
    with pytest.raises(UserError, match=r"x\.onnx cannot be opened by .* \(.*\); take a newer") as refused:
        open_session(path, runtime=runtime)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("threads", [0, -1])
def test_less_than_a_thread_is_refused(threads: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"threads is {threads}, expected 1 or more"):
        open_session(written(tmp_path / "x.onnx"), threads=threads)


@pytest.mark.parametrize("precision", ["int4", None, 7])
def test_an_unknown_precision_is_a_damaged_header(precision: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.onnx is damaged or of another version of effdense \(its precision is"):
        open_session(written(tmp_path / "x.onnx", precision=precision))


def test_a_file_that_lacks_what_its_header_promises_is_refused(tmp_path: Path) -> None:
    session = open_session(written(tmp_path / "x.onnx"))
    require_ends(session, "x.onnx", ("sums", "seen"), ("images", "contents_hw"))
    with pytest.raises(UserError, match=r"x\.onnx lacks the input boxes, output scores that its header promises"):
        require_ends(session, "x.onnx", ("sums", "scores"), ("images", "boxes"))


@pytest.mark.parametrize(
    ("error", "explained"),
    [
        pytest.param(RuntimeError("Failed to allocate memory for requested buffer of size 9"), True, id="allocation"),
        pytest.param(MemoryError(), True, id="memory"),
        pytest.param(RuntimeError("bad_alloc"), True, id="c++"),
        pytest.param(RuntimeError("shapes do not fit"), False, id="a-fault-of-ours"),
    ],
)
def test_want_of_memory_is_one_sentence_and_no_other_error(error: Exception, explained: bool, tmp_path: Path) -> None:
    session = open_session(written(tmp_path / "x.onnx"), runtime="onnxruntime")

    class Failing:
        def run(self, *arguments: Any) -> Any:
            raise error

    session._session = Failing()  # type: ignore[attr-defined]
    with pytest.raises(UserError if explained else type(error)) as raised:
        session.run(np.zeros((2, 40, 60, 3), np.uint8))  # small enough to run together
    if explained:
        assert "2 images of 60x40 pixels do not fit into memory (ONNX Runtime with" in str(raised.value)
    else:
        assert raised.value is error


@pytest.mark.parametrize(
    ("runtime", "count", "original_hw", "says"),
    [
        pytest.param(
            "openvino", 2, None, "2 images of 60x40 pixels do not fit .*: use a smaller batch size, or smaller"
        ),
        pytest.param("openvino", 1, (0, 0), "1 image of 60x40 pixels does not fit .*: use smaller images$"),
        pytest.param("openvino", 1, (3000, 4000), "1 image of 4000x3000 pixels does not fit .*: use smaller images$"),
        pytest.param(
            "onnxruntime", 1, (3000, 4000), "image of 4000x3000 .*: use OpenVINO, which makes label maps in b"
        ),
        pytest.param("onnxruntime", 1, (3000, 0), "1 image of 60x3000 pixels"),
    ],
)
def test_what_does_not_fit_into_memory_is_named_in_its_own_size_with_what_helps(
    runtime: str, count: int, original_hw: tuple[int, int] | None, says: str
) -> None:
    given = None if original_hw is None else np.array(original_hw)
    with (
        pytest.raises(UserError, match=says),
        memory_errors_explained(Path("x.onnx"), runtime, np.zeros((count, 40, 60, 3), np.uint8), given),
    ):
        raise MemoryError


def test_onnx_runtime_names_the_images_of_the_run_that_did_not_fit(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> Any:
        raise MemoryError

    session: Any = open_session(exported.files["detection"], runtime="onnxruntime", threads=1)
    monkeypatch.setattr(sessions, "_PIXELS_AT_ONCE", 64 * 64)
    session._session = SimpleNamespace(run=fail)
    with pytest.raises(UserError, match=r"1 image of 64x64 pixels does not fit into memory .*: use smaller images$"):
        session.run(np.stack([photo(seed, (64, 64)) for seed in range(3)]))


def test_openvino_names_the_size_of_the_label_map_that_does_not_fit(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> Any:
        raise MemoryError

    session = open_session(exported.files["segmentation"], runtime="openvino", threads=1)
    monkeypatch.setattr(session, "_labelling", SimpleNamespace(label_map=fail))
    with pytest.raises(UserError, match="1 image of 4000x3000 pixels does not fit into memory"):
        session.run(photo(0, (48, 64))[None], original_hw=np.array([3000, 4000]))


@pytest.mark.parametrize("original_hw", [(65, 10), (0, 70)])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_an_image_larger_than_the_square_is_not_taken_for_a_fitted_one(
    runtime: Any, original_hw: tuple[int, int], exported: Exported
) -> None:
    session = open_session(exported.files["segmentation"], runtime=runtime, threads=1)
    with pytest.raises(
        UserError, match=r"images of 10x65 pixels are fitted already into the 64 pixels of .*, and they"
    ):
        session.run(photo(0, (65, 10))[None], original_hw=np.array(original_hw))
    assert session.run(photo(0, (65, 10))[None], original_hw=np.zeros(2, np.int64))["label_map"].shape == (1, 65, 10)


def test_a_file_in_bfloat16_says_that_onnx_runtime_computes_in_float32(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path / "x.onnx", precision="bfloat16")
    with caplog.at_level(logging.INFO, logger="effdense"):
        open_session(path, runtime="onnxruntime")
    assert "ONNX Runtime computes it in float32" in caplog.text
