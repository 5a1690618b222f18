"""State dicts: read them from a file without running anything in it, and load them completely or not at all."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from effdense.backbones.statistics import Triple, triple
from effdense.errors import UserError, nearest
from effdense.model_header import refuse_exported
from effdense.model_parts import DETECTION, SEGMENTATION
from effdense.training.checkpoint import save_model

if TYPE_CHECKING:
    from effdense.backbones.backbone import Backbone

_INSIDE = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Where training scripts keep the weights in a larger file; averaged weights come first, as they evaluate better."""

_WRAPPERS = ("module.", "_orig_mod.", "model.")
"""What training scripts, DistributedDataParallel and torch.compile put before every name."""

_LISTED = 10
"""How many names an error lists of each kind."""


def read_state(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the weights in a safetensors or weights-only torch file, onto the CPU.

    Args:
        path: the file; its content decides what it is, not its name.

    Returns:
        The state dict and what else the file says: the JSON header of an effdense model, other safetensors' metadata,
        or whatever a torch file holds beside the state dict.

    Raises:
        UserError: no such file, a damaged one, one without weights, or a pickle that would run code.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder; weights are a .safetensors or a .pth file") from error
    except OSError as error:
        raise UserError(f"cannot read weights from {path}: {error.strerror or error}") from error
    if start[8:9] == b"{":
        return _read_safetensors(path)
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return _read_torch(path)
    refuse_exported(path)
    what = "is empty" if not start else "is neither a safetensors nor a torch file, or is damaged"
    raise UserError(f"{path} {what}; fetch or save it again")


def read_model_state(path: str | Path, words: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``--weights`` names, as ``read_state`` does; what is put before every name is taken off.

    Args:
        path: the file.
        words: what the option takes in place of a file, to tell a mistyped word from a file that is not there.

    Raises:
        UserError: it cannot be read; where it looks like a mistyped word, the message lists those.
    """
    if Path(path).name == str(path) and not Path(path).suffix and not Path(path).exists():
        known = ", ".join(words)
        raise UserError(
            f"weights is {str(path)!r}, which is no file; expected {known} or a file{nearest(str(path), tuple(words))}"
        )
    state, header = read_state(path)
    for wrapper in _WRAPPERS:
        if all(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): value for name, value in state.items()}
    return state, header


def recorded_statistics(header: Mapping[str, Any]) -> tuple[Triple, Triple] | None:
    """Return the mean and std that a model file of effdense records, of either task or of a backbone alone.

    Raises:
        UserError: what it records is no three numbers.
    """
    for place in (header, header.get("preprocessing"), header.get("backbone")):
        if isinstance(place, Mapping) and "mean" in place and "std" in place:
            try:
                return triple(place["mean"], "a recorded mean"), triple(place["std"], "a recorded std")
            except (TypeError, ValueError) as error:
                raise UserError(f"the header of a weight file is damaged: {error}") from error
    return None


def recorded_backbone(header: Mapping[str, Any]) -> str | None:
    """Return the name of the backbone in a model file of effdense, where the file says it."""
    parts = [header, *(header.get(task) for task in (DETECTION, SEGMENTATION))]  # a multitask file says it in its parts
    for part in parts:
        model = part.get("model") if isinstance(part, Mapping) else None
        name = model.get("backbone") if isinstance(model, Mapping) else None
        if isinstance(name, str):
            return name
    return None


def save_backbone(backbone: Backbone, path: str | Path) -> None:
    """Write a backbone alone, with the mean and std of its input, to a file that ``create_backbone`` loads again.

    Args:
        backbone: of any model, whatever its strides.
        path: ends in .safetensors.

    Raises:
        UserError: the file cannot be written.
    """
    header = {
        "task": "backbone",
        "model": {"backbone": backbone.name},
        "preprocessing": {"mean": list(backbone.mean), "std": list(backbone.std)},
    }
    save_model(Path(path), backbone, header)


def load_complete(
    module: nn.Module, state: Mapping[str, Tensor], *, source: str, replace: tuple[str, ...] = ()
) -> list[str]:
    """Load every weight of a module from a state dict with exactly the same names, or change nothing.

    BatchNorm's ``num_batches_tracked`` may be missing: converted checkpoints lack it and nothing here reads it.

    Args:
        module: what to fill.
        state: weights by name.
        source: where they came from, for the error.
        replace: prefixes of names that keep the module's own weights where the shapes differ, as a head for another
            number of classes.

    Returns:
        Names that kept the module's own weights because of ``replace``.

    Raises:
        UserError: names are missing, unexpected or of another shape; the message lists them.
    """
    own = module.state_dict()
    differ = [name for name in own if name in state and own[name].shape != state[name].shape]
    replaced = [name for name in differ if replace and name.startswith(replace)]
    shapes = [
        f"{name} {tuple(state[name].shape)} where the model has {tuple(own[name].shape)}"
        for name in differ
        if name not in replaced
    ]
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if any(problems.values()):
        told = "; ".join(f"{len(names)} {what}: {_first(names)}" for what, names in problems.items() if names)
        raise UserError(f"weights from {source} do not fit the model: {told}")
    module.load_state_dict({name: value for name, value in state.items() if name not in replaced}, strict=False)
    return replaced


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no Mapping
            metadata = dict(file.metadata() or {})
            header = json.loads(metadata["effdense"]) if "effdense" in metadata else metadata
            if not isinstance(header, dict):
                raise ValueError("its effdense header is no JSON object")
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is a damaged safetensors file ({error}); fetch or save it again") from error
    if not state:
        raise UserError(f"{path} holds no weights")
    return state, header


def _read_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of other pickle protocols; what it cannot read, it refuses
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "nsupported" in str(error) or "GLOBAL" in str(error):
            raise UserError(
                f"{path} is a pickle that holds more than weights, which could run any code, so it is not loaded; save "
                "only the model's state_dict(), best as safetensors"
            ) from error
        raise _damaged(path, error) from error
    except Exception as error:  # a damaged file makes torch's reader fail in many ways: EOF, index, key, runtime errors
        raise _damaged(path, error) from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__} and not a state dict; save the model's state_dict()")
    inside = next((key for key in _INSIDE if _tensors(content.get(key))), None)
    state = _tensors(content if inside is None else content[inside])
    if not state:
        raise UserError(f"{path} holds no weights; its keys are {_first([str(key) for key in content]) or 'none'}")
    return state, {str(key): value for key, value in content.items() if key not in state and key != inside}


def _damaged(path: Path, error: Exception) -> UserError:
    told = str(error).strip().partition("\n")[0][:200] or type(error).__name__
    return UserError(f"{path} is a damaged torch file ({told}); fetch or save it again")


def _tensors(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        return {}
    return {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
