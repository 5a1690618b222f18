"""An exported file cut in three: what fits images, the network, and what makes results of its outputs.

A network may compute in bfloat16; what lies around it may not. Of eight bits, a pixel that is an average keeps half a
grey level, a box of 500 pixels is off by two, and two classes that differ by less become one. And a network whose sizes
are all known runs faster, while images come in any.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

PIXELS = "pixels"
"""What a file's network reads, float32 (batch, 3, S, S) in 0..255."""

SIZE_HW, FITTED_HW = "size_hw", "fitted_hw"
"""Height and width of the images, and of their content in the square."""

LIMITS, ORIGINALS = "limits", "originals"
"""Height and width of what is image, in the square and in the images given."""

GEOMETRY = (SIZE_HW, FITTED_HW, LIMITS, ORIGINALS)
"""What is known of the images before the network runs, and needed after it; each file has the first two at least."""

MASK_LOGITS = "mask_logits"

RAW_OUTPUTS = ("class_logits", "box_codes", MASK_LOGITS)
"""What a file's network may give; each of them has some."""


def cut(model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto, onnx.ModelProto]:
    """Return the three stages of an exported model; each reads by name what the model is given or a stage before gives.

    Args:
        model: as `effdense.runtime.export.write_onnx` wrote it; an optional input may have lost its default.

    Raises:
        ValueError: no network stands out in the model.
    """
    made = {name for node in model.graph.node for name in node.output}
    raw, geometry = ([name for name in names if name in made] for names in (RAW_OUTPUTS, GEOMETRY))
    if PIXELS not in made or not raw:
        raise ValueError("no network stands out in it")
    inputs = [value.name for value in model.graph.input]
    outputs = [value.name for value in model.graph.output]
    return (
        between(model, inputs, [PIXELS, *geometry]),
        between(model, [PIXELS], raw),
        between(model, [*inputs, *raw, *geometry], outputs),
    )


def part(model: onnx.ModelProto, outputs: Sequence[str]) -> onnx.ModelProto:
    """Return what of a model is needed for some of its outputs, with the inputs that are read for them."""
    return between(model, [one.name for one in model.graph.input], outputs)


def between(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """Return what of a model lies between some of its values; an input that nothing reads is left out."""
    found = onnx.utils.Extractor(model).extract_model(list(inputs), list(outputs))
    read = {name for node in found.graph.node for name in node.input}
    needed = [one for one in found.graph.input if one.name in read]
    del found.graph.input[:]
    found.graph.input.extend(needed)
    return found
