"""Where ImageNet weights come from: our cache, an installed weight package, timm's hub."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import shutil
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from effdense.backbones.specs import BackboneSpec
from effdense.backbones.statistics import Triple, triple
from effdense.backbones.weights import read_state
from effdense.cache import cache_folder
from effdense.errors import UserError
from effdense.files import replacing

_LOG = logging.getLogger("effdense")

PROBE_SECONDS = 4.0
"""How long the hub may take to answer at all before it counts as unreachable."""

LITE_MEAN = (127 / 255,) * 3
LITE_STD = (128 / 255,) * 3
"""Input of the lite weights in lukemelas naming: (x - 127) / 128 on 0..255."""


class WeightsUnavailableError(Exception):
    """ImageNet weights are to be had from none of the sources; the message says why for each."""


@dataclass(frozen=True)
class Pretrained:
    """Weights that were found.

    Attributes:
        state: by the names of the file.
        source: where they came from, as a sentence without a full stop.
        mean: of the input in 0..1 they were trained with.
        std: likewise.
        task: what the weights were trained for, where a file of effdense says it, else empty.
        backbone: name of the network, likewise.
    """

    state: dict[str, Tensor]
    source: str
    mean: Triple
    std: Triple
    task: str = ""
    backbone: str = ""


@dataclass(frozen=True)
class _Candidate:
    path: Path
    source: str
    mean: Triple
    std: Triple


def pretrained_statistics(spec: BackboneSpec) -> tuple[Triple, Triple]:
    """Return the mean and std in 0..1 of the input that timm's weights for this network were trained with."""
    configuration = _configuration(spec)
    return triple(configuration.mean), triple(configuration.std)


def imagenet_weights(spec: BackboneSpec, *, offline: bool = False) -> Pretrained:
    """Return ImageNet weights from the first source that has them.

    Args:
        spec: of the network.
        offline: leave the network alone; what the hub's own cache holds is still used.

    Raises:
        WeightsUnavailableError: no source has them.
    """
    reasons: list[str] = []
    for candidate in _candidates(spec, offline, reasons):
        try:
            state, _ = read_state(candidate.path)
        except UserError as error:
            reasons.append(str(error))
            continue
        return Pretrained(state, candidate.source, candidate.mean, candidate.std)
    raise WeightsUnavailableError("; ".join(reasons))


def _configuration(spec: BackboneSpec) -> Any:
    """Return timm's entry for the weights of a network: its tag's, or its default tag's."""
    configuration = timm.get_pretrained_cfg(spec.timm_name)
    assert configuration is not None, spec
    return configuration


def _candidates(spec: BackboneSpec, offline: bool, reasons: list[str]) -> Iterator[_Candidate]:
    """Yield files that may hold the weights, nearest first; each source that has none adds a reason."""
    configuration = _configuration(spec)
    full_name = f"{configuration.architecture}.{configuration.tag}" if configuration.tag else spec.timm_name
    mean, std = pretrained_statistics(spec)
    cached = cache_folder() / f"{full_name}.safetensors"
    if cached.is_file():
        yield _Candidate(cached, f"{full_name} in the cache {cached.parent}", mean, std)
    else:
        reasons.append(f"not in the cache {cached.parent}")

    if spec.weight_package:
        file = _package_file(spec.weight_package)
        if file is None:
            reasons.append(f"package {spec.weight_package} is not installed (extra 'lite')")
        else:
            version = importlib.metadata.version(spec.weight_package)
            yield _Candidate(file, f"package {spec.weight_package} {version}", LITE_MEAN, LITE_STD)

    hub = _hub_file(configuration, offline, reasons)
    if hub is not None:
        _keep(hub, cached)
        yield _Candidate(hub, f"{full_name} from timm's hub", mean, std)


def _package_file(package: str) -> Path | None:
    """Return the weight file inside an installed package, without importing the package."""
    found = importlib.util.find_spec(package.replace("-", "_"))
    folders = (found.submodule_search_locations if found else None) or []
    files = [file for folder in folders for file in sorted(Path(folder, "models").glob("*.pth"))]
    return files[0] if files else None


def _hub_file(configuration: Any, offline: bool, reasons: list[str]) -> Path | None:
    """Return timm's weight file from the hub's cache or the hub, or add why there is none."""
    if not configuration.hf_hub_id:
        reasons.append("timm has no pretrained weights for it")
        return None
    import huggingface_hub
    from huggingface_hub import constants

    name = "model.safetensors"
    held = huggingface_hub.try_to_load_from_cache(configuration.hf_hub_id, name)
    if isinstance(held, str):
        return Path(held)
    if offline or constants.HF_HUB_OFFLINE:
        reasons.append("timm's hub was not asked (offline)")
        return None
    failure = why_unreachable(constants.ENDPOINT, PROBE_SECONDS)
    if failure is None:
        try:
            return Path(huggingface_hub.hf_hub_download(configuration.hf_hub_id, name, etag_timeout=PROBE_SECONDS))
        except Exception as error:  # whatever a network or a server does, the answer is the same: no weights from here
            failure = str(error).partition("\n")[0] or type(error).__name__
    reasons.append(f"timm's hub cannot be reached ({failure})")
    return None


def why_unreachable(url: str, seconds: float) -> str | None:
    """Ask a server whether it is there, and never wait for longer than said.

    The hub's client waits and tries again for half a minute, and a name look-up has no time-out of its own; a thread
    that is left behind bounds both.

    Args:
        url: an address of the server; any answer will do, an error too.
        seconds: the longest wait.

    Returns:
        Why it does not answer, as a few words, or None where it does.
    """
    outcome: list[str | None] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
        except urllib.error.HTTPError:
            outcome.append(None)  # it answered
        except Exception as error:  # whatever a network or a proxy does, a reason comes of it and no traceback
            reason = getattr(error, "reason", error)
            # a certificate that is unknown here may be known to the hub's client, which reads other settings
            outcome.append(None if isinstance(reason, ssl.SSLCertVerificationError) else str(reason) or "no answer")
        else:
            outcome.append(None)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return outcome[0] if outcome else f"no answer within {seconds:g} s"


def _keep(downloaded: Path, cached: Path) -> None:
    """Copy a download into our cache; where that fails, the weights are used all the same."""
    try:
        with replacing(cached, durable=False) as temporary:
            shutil.copyfile(downloaded, temporary)
    except UserError as error:
        _LOG.info("weights are used but not kept: %s", error)
