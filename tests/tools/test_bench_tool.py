"""The command: what it refuses, what it prints, what it writes where; parts are stand-ins."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from effdense.tools import bench
from effdense.tools.benchmarks import machine, parts
from effdense.tools.benchmarks.document import markers, replace_section
from effdense.tools.benchmarks.rows import BenchSettings, Curve, Line, Part, Row, Unequal
from effdense.tools.benchmarks.table import cells, curve_table, markdown_table, number

ROOT = Path(__file__).resolve().parents[2]
HALF = Row("halves", "ms", 5.0, 10.0, 2.0, 1.9, 2.1, target=4.0, note="equal | checked")
BYTES = Row("bytes", "MiB", 1.0, None, target=2.0, target_is="most")


def good(settings: BenchSettings) -> list[Row]:
    return [HALF, BYTES]


def unequal(settings: BenchSettings) -> list[Row]:
    raise Unequal("the boxes differ by up to 3")


def line(settings: BenchSettings) -> list[Line]:
    return [Line("effdense", (1, 1000), (10.0, 20.0)), Line("effdet", (1,), (5.0,))]


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {
        "good": Part("good", "things", "a peer", good),
        "bad": Part("bad", "other things", "a peer", unequal, ("cpu", "cuda")),
    }

    def find(names: tuple[str, ...]) -> list[Part]:
        return [made[name] for name in names or ("good",)]

    monkeypatch.setattr(bench, "find_parts", find)
    monkeypatch.setattr(bench, "find_curves", lambda names: [Curve("batch", "by batch", "images", "images/s", line)])


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "page.md"
    sections = ["\n".join([markers(name)[0], "old", markers(name)[1]]) for name in ("cpu", "cuda", "curves cpu")]
    path.write_text("\n\n".join(["before", *sections, "after"]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--parts", "inferense"], "did you mean 'inference'"),
        (["--curves", "--parts", "bach"], "did you mean 'batch'"),
        (["--curves", "--parts", "loss"], "Known are batch, size, training"),
        (["--figure", "a.png"], "give --curves"),
        (["--device", "tpu"], "cpu, cuda"),
        (["--threads", "0"], "threads is 0"),
        (["--repeats", "0"], "repeats is 0"),
        (["--write", "missing.md"], "missing.md: cannot be read"),
        (["--write", "page.md", "--parts", "loss"], "--parts would leave less"),
        (["--write", "page.md", "--quick"], "--quick would leave less"),
        (["--part", "loss"], "--parts"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_wrong_arguments_are_refused_before_anything_runs(
    flags: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(flags) == 2
    assert told in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert bench.main(["--device", "cuda", "--parts", "inference"]) == 2
    assert "no GPU here" in capsys.readouterr().err


def test_every_part_and_curve_is_there_under_its_name() -> None:
    assert [part.name for part in parts.find_parts(())] == list(parts.PARTS)
    names = [curve.name for curve in parts.find_curves(())]
    assert len(set(names)) == len(names) > 0


def test_the_help_names_every_part_and_curve(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--help"])
    words = set(re.findall(r"[\w-]+", capsys.readouterr().out))
    assert words >= {*parts.PARTS, *(curve.name for curve in parts.find_curves(()))}


@pytest.mark.usefixtures("stand_ins")
def test_a_figure_is_drawn_of_a_quick_run_too(tmp_path: Path) -> None:
    assert bench.main(["--curves", "--quick", "--figure", str(tmp_path / "a.png")]) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("stand_ins")
def test_the_table_has_a_row_for_each_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--quick"]) == 0
    rows = [[cell.strip() for cell in text.split("│")[1:-1]] for text in capsys.readouterr().out.splitlines()]
    shown = ["good", "halves", "10.0 ms", "5.00 ms", "2.00x", "1.90 to 2.10", "4x", "no", "equal | checked"]
    assert shown in rows


@pytest.mark.usefixtures("stand_ins")
def test_results_that_differ_are_said_and_nothing_is_written(
    document: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "find_parts", lambda names: [Part("good", "", "", good), Part("bad", "", "", unequal)])
    before = document.read_text(encoding="utf-8")
    assert bench.main(["--write", str(document)]) == 1
    said = capsys.readouterr()
    assert "halves" in said.out
    assert "DIFFERENT RESULTS, no ratio: bad: the boxes differ by up to 3" in said.err
    assert document.read_text(encoding="utf-8") == before


@pytest.mark.usefixtures("stand_ins")
def test_the_table_takes_the_place_of_the_old_one_and_nothing_else_changes(document: Path) -> None:
    before = document.read_text(encoding="utf-8")
    for _ in range(2):  # a second time over the first
        assert bench.main(["--write", str(document), "--threads", "1"]) == 0
    after = document.read_text(encoding="utf-8")
    first, last = markers("cpu")
    head, _, rest = after.partition(first)
    section, _, tail = rest.partition(last)
    assert head == before.partition(first)[0]
    assert tail == before.partition(last)[2]
    assert "| good | halves | 10.0 ms | 5.00 ms | 2.00x | 1.90 to 2.10 | 4x | **no** | equal \\| checked |" in section
    assert "threads: 1" in section
    assert "torch " in section
    assert "python tools/bench.py --write" in section
    assert "- good: things; beside a peer" in section
    assert "old" not in section


@pytest.mark.usefixtures("stand_ins")
def test_curves_write_their_tables_and_the_picture_beside_the_document(document: Path) -> None:
    assert bench.main(["--curves", "--write", str(document)]) == 0
    text = document.read_text(encoding="utf-8")
    assert "![How cost grows](images/curves.png)" in text
    assert "| 1 | 10.0 | 5.00 |\n| 1,000 | 20.0 |  |" in text
    assert (document.parent / "images" / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("stand_ins")
def test_a_device_on_which_nothing_is_measured_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert bench.main(["--device", "cuda", "--parts", "good"]) == 2
    assert "none of these measures anything on cuda" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    ["", "{0}", "{1}\n{0}", "{0}\n{1}\n{0}\n{1}"],
    ids=["empty", "no-end", "wrong-order", "twice"],
)
def test_a_document_without_its_markers_is_refused_and_left(text: str, tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(text.format(*markers("cpu")), encoding="utf-8")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="once each, in this order"):
        replace_section(path, "cpu", "new")
    assert path.read_bytes() == before


def test_the_projects_own_document_has_a_place_for_every_table() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for name in ("cpu", "cuda", "curves cpu"):
        assert [text.count(marker) for marker in markers(name)] == [1, 1]


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.1234, "0.123"), (1.5, "1.50"), (12.34, "12.3"), (123456, "123,456")]
)
def test_numbers_have_three_digits_that_count(value: float, text: str) -> None:
    assert number(value) == text


def test_an_amount_without_a_peer_has_empty_cells() -> None:
    part = Part("good", "things", "a peer", good)
    assert cells(part, BYTES) == ("good", "bytes", "", "1.00 MiB", "", "", "at most 2.00 MiB", "yes", "")


def test_tables_without_rows_have_headings() -> None:
    assert markdown_table([]).startswith("| part | case |")
    assert "images" in curve_table(Curve("a", "what", "images", "s", line), [])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("model name\t: A CPU\nflags\t\t: avx2 amx_bf16\n", "A CPU (AVX2, AMX bf16)"),
        ("model name : A CPU\nmodel name : A CPU\n", "A CPU"),
    ],
    ids=["flags", "no-flags"],
)
def test_the_cpu_is_named_with_what_networks_use_of_it(text: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert machine.cpu_name(tmp_path / "cpuinfo") == name


def test_a_system_that_describes_no_cpu_still_has_a_name(tmp_path: Path) -> None:
    assert machine.cpu_name(tmp_path / "missing")
