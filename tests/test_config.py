"""Settings: YAML and command line are read alike, strictly, and errors say where and what to do."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from effdense.config import Parsed, field_docs, from_mapping, load_yaml, parse, to_mapping, to_yaml
from effdense.errors import UserError


@dataclass(frozen=True)
class Shared:
    """Fields that two tasks have."""

    epochs: int = 12
    """Passes over the training images."""


@dataclass(frozen=True)
class Settings(Shared):
    """One field of every kind."""

    image_size: int = 512
    """Side of the square that images are fitted into,
    in pixels."""
    lr: float = 0.01
    """Learning rate per 64 images."""
    ema: bool = True
    """Average the weights."""
    amp: Literal["auto", "off", "bf16"] = "auto"
    """Mixed precision."""
    bits: Literal[8, 16] = 8
    """Bits of a weight."""
    seed: int | None = None
    """Seed, or none for a new one each time."""
    scale: tuple[float, float] = (0.1, 2.0)
    """Range of the scale jitter."""
    crop: tuple[int, int] | None = None
    """Height and width of a crop, in pixels."""
    names: tuple[str, ...] = ()
    """Class names."""
    freeze: int | Literal["all"] = 0
    """Stages to freeze."""
    device: str | int = "auto"
    """Device by name or number."""
    out: Path = Path("runs")
    """Where to write."""
    note: str | None = None
    """Free text."""
    weights: str = "auto"
    """Where the weights come from."""

    def __post_init__(self) -> None:
        if self.image_size % 2:
            raise UserError(f"image_size {self.image_size} is odd; take {self.image_size + 1}.")


@dataclass(frozen=True)
class Places:
    """Arguments by place."""

    checkpoint: Path
    """Model file."""
    inputs: tuple[Path, ...]
    """Images or folders."""
    out: Path = Path("drawn")
    """Where to write."""


def read(*argv: str) -> Parsed[Settings]:
    return parse(Settings, argv, prog="train")


def read_file(tmp_path: Path, text: str) -> Parsed[Settings]:
    path = tmp_path / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return load_yaml(Settings, path)


VALUES: list[Any] = [
    pytest.param("image_size", "--image-size 320", "image_size: 320", 320, id="int"),
    pytest.param("epochs", "--epochs 3", "epochs: 3", 3, id="inherited"),
    pytest.param("lr", "--lr 1e-3", "lr: 1e-3", 0.001, id="float-without-point-which-yaml-1.1-calls-text"),
    pytest.param("lr", "--lr=1", "lr: 1", 1.0, id="float-from-integer"),
    pytest.param("lr", "--lr -.5", "lr: -.5", -0.5, id="negative-number-is-no-flag"),
    pytest.param("ema", "--no-ema", "ema: false", False, id="bool-off"),
    pytest.param("ema", "--no-ema --ema", "ema: yes", True, id="bool-last-wins"),
    pytest.param("amp", "--amp off", "amp: off", "off", id="choice-off-which-yaml-1.1-calls-false"),
    pytest.param("amp", "--amp=bf16", 'amp: "bf16"', "bf16", id="choice-quoted"),
    pytest.param("bits", "--bits 16", "bits: 16", 16, id="choice-of-numbers"),
    pytest.param("seed", "--seed none", "seed: null", None, id="none"),
    pytest.param("seed", "--seed 7", "seed: 7", 7, id="optional"),
    pytest.param("scale", "--scale 0.5 2", "scale: [0.5, 2]", (0.5, 2.0), id="pair"),
    pytest.param("scale", "--scale -1 -2", "scale:\n- -1\n- -2", (-1.0, -2.0), id="pair-negative"),
    pytest.param("crop", "--crop 3 4", "crop: [3, 4]", (3, 4), id="optional-pair"),
    pytest.param("crop", "--crop none", "crop:", None, id="optional-pair-none"),
    pytest.param("names", "--names a b", "names: [a, b]", ("a", "b"), id="many"),
    pytest.param("names", "--names", "names: []", (), id="many-empty"),
    pytest.param("names", "--names 1", "names: [1]", ("1",), id="many-single"),
    pytest.param("freeze", "--freeze all", "freeze: all", "all", id="union-choice"),
    pytest.param("freeze", "--freeze 3", "freeze: 3", 3, id="union-number"),
    pytest.param("device", "--device 1", "device: 1", 1, id="union-text-comes-last"),
    pytest.param("device", "--device cpu", "device: cpu", "cpu", id="union-text"),
    pytest.param("out", "--out a/b", "out: a/b", Path("a/b"), id="path"),
    pytest.param("weights", "--weights none", "weights: none", "none", id="text-none-stays-text"),
    pytest.param("weights", "--weights 12", "weights: 12", "12", id="text-of-digits"),
]


@pytest.mark.parametrize(("name", "argv", "yaml_text", "expected"), VALUES)
def test_a_value_reads_the_same_from_flags_and_file(
    tmp_path: Path, name: str, argv: str, yaml_text: str, expected: Any
) -> None:
    for parsed in (read(*argv.split()), read_file(tmp_path, yaml_text)):
        assert getattr(parsed.config, name) == expected
        assert type(getattr(parsed.config, name)) is type(expected)
        assert parsed.given == {name}


WRONG: list[Any] = [
    pytest.param("image_size", "--image-size big", "image_size: big", "expected an integer, came 'big'", id="int"),
    pytest.param("image_size", "--image-size 1.5", "image_size: 1.5", "expected an integer, came '1.5'", id="fraction"),
    pytest.param("lr", "--lr fast", "lr: fast", "expected a number, came 'fast'", id="float"),
    pytest.param("lr", "--lr nan", "lr: nan", "expected a number, came 'nan'", id="nan"),
    pytest.param("lr", "--lr 1e999", "lr: 1e999", "expected a number, came '1e999'", id="infinite"),
    pytest.param("seed", "--seed x", "seed: x", "expected an integer or none, came 'x'", id="optional"),
    pytest.param("image_size", "--image-size none", "image_size: none", "expected an integer, came", id="no-none"),
    pytest.param("amp", "--amp of", "amp: of", "'of' is none of auto, off, bf16; did you mean 'off'?", id="choice"),
    pytest.param("bits", "--bits 4", "bits: 4", "'4' is none of 8, 16.", id="choice-of-numbers"),
    pytest.param("scale", "--scale 1", "scale: [1]", "expected 2 values (a number, a number), came", id="too-few"),
    pytest.param("scale", "--scale 1 b", "scale: [1, b]", "expected a number, came 'b'", id="inside-pair"),
    pytest.param("freeze", "--freeze al", "freeze: al", "expected an integer or one of all, came 'al'", id="union"),
]


@pytest.mark.parametrize(("name", "argv", "yaml_text", "message"), WRONG)
def test_a_wrong_value_is_refused_alike_and_named(
    tmp_path: Path, name: str, argv: str, yaml_text: str, message: str
) -> None:
    with pytest.raises(UserError) as flags_error:
        read(*argv.split())
    with pytest.raises(UserError) as file_error:
        read_file(tmp_path, f"# a comment\n\n{yaml_text}\n")
    assert str(flags_error.value).startswith(f"--{name.replace('_', '-')}: {message}")
    assert str(file_error.value).startswith(f"{tmp_path}/my.yaml, line 3: {name}: {message}")
    assert "\n" not in str(flags_error.value) + str(file_error.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        pytest.param("--imagesize 3", "flag '--imagesize' is unknown; did you mean '--image-size'?", id="typo"),
        pytest.param("--image_size 3", "flag '--image_size' is unknown; did you mean '--image-size'?", id="underscore"),
        pytest.param("--noema", "flag '--noema' is unknown; did you mean '--no-ema' or '--ema'?", id="switch"),
        pytest.param("--qqqqqq", "flag '--qqqqqq' is unknown.", id="nothing-near"),
        pytest.param("-e 3", "flag '-e' is unknown", id="short"),
        pytest.param("--no-lr", "flag '--no-lr' is unknown", id="no-of-a-number"),
        pytest.param("--lr", "--lr: expected a number, nothing came.", id="value-missing-at-the-end"),
        pytest.param("--lr --ema", "--lr: expected a number, nothing came.", id="value-missing-before-a-flag"),
        pytest.param("--scale 1 2 3", "argument '3' is one too many", id="one-too-many"),
        pytest.param("lr=3", "argument 'lr=3' is one too many; a setting is written --name value; did you", id="bare"),
        pytest.param("--ema=true", "--ema takes no value; write --ema or --no-ema.", id="switch-with-value"),
        pytest.param("--config a --config b", "--config is given twice", id="two-files"),
        pytest.param("--config", "--config: expected a YAML file, nothing came.", id="config-without-file"),
        pytest.param("--config nowhere.yaml", "nowhere.yaml: cannot be read (No such file", id="config-missing"),
        pytest.param("--image-size 321", "image_size 321 is odd; take 322.", id="cross-check-as-written"),
    ],
)
def test_a_wrong_command_line_says_what_and_what_instead(argv: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        read(*argv.split())
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        pytest.param("epochs: 3\nimagesize: 3", 2, "setting 'imagesize' is unknown; did you mean 'image_", id="typo"),
        pytest.param("image-size: 3", 1, "setting 'image-size' is unknown; did you mean 'image_size'?", id="dash"),
        pytest.param("epochs: 3\nlr: 1\nepochs: 4", 3, "epochs is set a second time, first in line 1", id="twice"),
        pytest.param("epochs: [3", 1, "is not valid YAML", id="broken"),
        pytest.param("a: 1\n\tb: 2", 2, "is not valid YAML", id="tab"),
        pytest.param("- epochs", 1, "expected settings as 'name: value'", id="list"),
        pytest.param("hello", 1, "expected settings as 'name: value'", id="text"),
        pytest.param("a: 1\n---\nb: 2", 2, "is not valid YAML", id="two-documents"),
        pytest.param("lr: {a: 1}", 1, "lr: expected a number, came a mapping.", id="nested"),
        pytest.param("lr: [1]", 1, "lr: expected a number, came 1 value (1).", id="list-for-number"),
        pytest.param("epochs:", 1, "epochs: expected an integer, came nothing.", id="empty-value"),
        pytest.param('epochs: "3"', 1, "epochs: expected an integer, came the quoted text '3'.", id="quoted-number"),
        pytest.param("ema: maybe", 1, "ema: expected true or false, came 'maybe'.", id="bool"),
        pytest.param("out: ''", 1, "out: expected a path", id="empty-path"),
        pytest.param("lr: !!python/object/apply:os.getcwd []", 1, "lr: expected a number", id="tag-runs-nothing"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_file(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path}/my.yaml, line {line}: {message}")
    assert "\n" not in str(error.value)


def test_text_that_is_not_utf8_and_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("note: \xe9".encode("latin-1"))
    with pytest.raises(UserError, match="is not UTF-8 text"):
        load_yaml(Settings, tmp_path / "latin.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        load_yaml(Settings, tmp_path)


def test_an_empty_file_and_an_empty_command_line_are_the_defaults(tmp_path: Path) -> None:
    for text in ("", "# nothing\n", "---\n"):
        assert read_file(tmp_path, text) == Parsed(Settings(), frozenset())
    assert read() == Parsed(Settings(), frozenset())


def test_flags_override_the_file_wherever_config_stands(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("lr: 0.5\nepochs: 3\n")
    parsed = read("--lr", "0.25", "--config", str(path))
    assert (parsed.config.lr, parsed.config.epochs) == (0.25, 3)
    assert parsed.given == {"lr", "epochs"}


def test_a_base_takes_the_place_of_the_defaults() -> None:
    base = Settings(epochs=99, lr=0.5)
    parsed = parse(Settings, ["--lr", "1"], prog="train", base=base)
    assert parsed == Parsed(Settings(epochs=99, lr=1.0), frozenset({"lr"}))


EXTREME = Settings(
    lr=1e-05, ema=False, amp="off", seed=0, crop=(1, 2), names=("yes", "1", "a: b", "#"), freeze="all",
    out=Path("a b/c"), note="None", weights="none",
)  # fmt: skip


@pytest.mark.parametrize("config", [Settings(), EXTREME, Settings(note="x " * 200), Settings(note="1e3\n'\"é: #")])
def test_writing_and_reading_back_changes_nothing(tmp_path: Path, config: Settings) -> None:
    parsed = read_file(tmp_path, to_yaml(config))
    assert parsed.config == config
    assert from_mapping(Settings, to_mapping(config), "a header") == config


def test_the_yaml_carries_the_help_as_comments() -> None:
    text = to_yaml(Settings())
    side = "Side of the square that images are fitted into, in pixels."
    assert f"# {side}\nimage_size: 512\n" in text
    assert field_docs(Settings)["image_size"] == side
    assert set(field_docs(Settings)) == set(to_mapping(Settings()))


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        pytest.param({"imagesize": 3}, "a header: setting 'imagesize' is unknown; did you mean 'image_size'", id="key"),
        pytest.param({"epochs": 1.5}, "a header: epochs: expected an integer, came 1.5.", id="float-for-int"),
        pytest.param({"epochs": True}, "a header: epochs: expected an integer, came True.", id="bool-for-int"),
        pytest.param({"lr": True}, "a header: lr: expected a number, came True.", id="bool-for-float"),
        pytest.param({"ema": 1}, "a header: ema: expected true or false, came 1.", id="int-for-bool"),
        pytest.param({"weights": 3}, "a header: weights: expected text, came 3.", id="int-for-text"),
        pytest.param({"lr": float("inf")}, "a header: lr: expected a number, came inf.", id="infinite"),
    ],
)
def test_a_mapping_is_read_as_strictly(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        from_mapping(Settings, mapping, "a header")
    assert str(error.value).startswith(message)


def test_arguments_by_place_fill_their_fields_in_order() -> None:
    def places(*argv: str) -> Places:
        return parse(Places, argv, prog="predict", positional=("checkpoint", "inputs")).config

    assert places("m", "a", "b", "--out", "o") == Places(Path("m"), (Path("a"), Path("b")), Path("o"))
    assert places("--out", "o", "m", "a") == Places(Path("m"), (Path("a"),), Path("o"))
    assert places("m", "--", "--odd.jpg") == Places(Path("m"), (Path("--odd.jpg"),))
    with pytest.raises(UserError, match=r"^CHECKPOINT, INPUTS must be given: Model file\.$"):
        places()
    with pytest.raises(UserError, match=r"^INPUTS must be given: Images or folders\.$"):
        places("m")
    with pytest.raises(UserError, match="flag '--checkpoint' is unknown"):
        places("--checkpoint", "m")


def test_an_ignored_setting_is_refused_only_where_the_user_changed_it() -> None:
    ignored = {"scale": "jitter is off", "crop": "jitter is off"}
    read("--lr", "1").refuse_ignored(ignored)
    read("--scale", "0.1", "2").refuse_ignored(ignored)
    with pytest.raises(UserError, match="--scale has no effect because jitter is off; leave it out"):
        read("--scale", "0.2", "2").refuse_ignored(ignored)


def test_help_lists_every_flag_on_stdout_and_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse(Places, ["m", "--help"], prog="predict", description="Find things.", positional=("checkpoint", "inputs"))
    assert exit_info.value.code == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    for text in (
        "usage: predict",
        "Find things.",
        "CHECKPOINT",
        "Model file",
        "--out",
        "drawn",
        "--config",
        "Images or",
    ):
        assert text in shown.out
    with pytest.raises(SystemExit):
        parse(Settings, ["-h"], prog="train")
    shown = capsys.readouterr()
    assert "--no-ema" in shown.out
    assert "Passes over the training images." in shown.out


def test_reading_settings_loads_neither_numpy_nor_torch_nor_tyro() -> None:
    code = "import sys, effdense.config; print({'torch', 'numpy', 'tyro', 'yaml'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
