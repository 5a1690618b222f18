import pytest

from effdense.tools.backbones import main


def test_table_shows_published_beside_measured(capsys):
    assert main(["--names", "lite[01]"]) == 0
    out = capsys.readouterr().out
    assert "tf_efficientnet_lite0" in out
    assert "tf_efficientnet_b0" not in out
    row = next(line for line in out.splitlines() if "tf_efficientnet_lite0" in line)
    for cell in ("224", "75.1", "4.7", "0.407", "4.65", "0.385", "16 24 40 112 320"):
        assert cell in row


def test_network_outside_the_table_is_measured(capsys):
    assert main(["--names", "test_efficientnet"]) == 0
    assert "16 24 32 48 64" in capsys.readouterr().out


def test_all_of_the_table_without_building(capsys, monkeypatch):
    monkeypatch.setattr("effdense.backbones.registry.create_backbone", lambda *_: pytest.fail("built"))
    assert main(["--no-measure"]) == 0
    out = capsys.readouterr().out
    assert "tf_efficientnet_l2" in out
    assert "measured" not in out


def test_pattern_without_match_is_told(capsys):
    assert main(["--names", "resnet*"]) == 2
    assert "no backbone is called 'resnet*'" in capsys.readouterr().err
