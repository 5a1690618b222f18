"""A tool's frame: what went wrong is one sentence and an exit code; faults of ours keep their traceback."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from effdense.command_line import run_tool
from effdense.errors import UserError
from effdense.tools import main as dispatcher

ROOT = Path(__file__).resolve().parents[1]


def raising(error: BaseException) -> int:
    @run_tool
    def tool(argv: list[str] | None = None) -> int:
        raise error

    return tool([])


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        pytest.param(UserError("no such folder: x."), 2, "no such folder: x.\n", id="user-error"),
        pytest.param(KeyboardInterrupt(), 130, "Stopped by Ctrl-C.\n", id="ctrl-c"),
        pytest.param(KeyboardInterrupt("Saved; resume with X."), 130, "Saved; resume with X.\n", id="ctrl-c-with-text"),
        pytest.param(OSError(errno.ENOSPC, "No space", "a/b.pt"), 2, "The disk is full: a/b.pt cannot", id="disk-full"),
        pytest.param(OSError(errno.EDQUOT, "quota"), 2, "The disk is full: a file cannot be written", id="quota"),
        pytest.param(RuntimeError("No space left on device (os error 28)"), 2, "The disk is full", id="full-as-text"),
    ],
)
def test_what_the_user_can_put_right_is_a_sentence(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raising(error) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(message)
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("a"), OSError(errno.EACCES, "b"), RuntimeError("c"), SystemExit(3)])
def test_any_other_exception_passes_through(error: BaseException) -> None:
    with pytest.raises(type(error)):
        raising(error)


def test_the_exit_code_passes_through() -> None:
    assert run_tool(lambda argv: 7)([]) == 7


@pytest.mark.parametrize("length", [1, 1_000_000], ids=["fits-the-buffer", "exceeds-the-buffer"])
def test_a_closed_pipe_ends_the_tool_without_a_word(length: int) -> None:
    code = (
        "import sys; from effdense.command_line import run_tool\n"
        f"sys.exit(run_tool(lambda argv: input() or print('x' * {length}) or 0)())"
    )
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, env=buffered) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.close()
        _, err = process.communicate(b"\n", timeout=60)
    assert (process.returncode, err) == (141, b"")


@pytest.mark.parametrize(
    ("argv", "code", "out", "err"),
    [
        pytest.param(["--version"], 0, "effdense 0.1.0\n", "", id="version"),
        pytest.param(["--help"], 0, "usage: effdense", "", id="help"),
        pytest.param([], 2, "", "usage: effdense", id="nothing"),
        pytest.param(["trian-det"], 2, "", "command 'trian-det' is unknown; did you mean 'train-det'", id="typo"),
        pytest.param(["--verison"], 2, "", "command '--verison' is unknown; did you mean '--version'?\n", id="flag"),
    ],
)
def test_the_dispatcher_answers(
    argv: list[str], code: int, out: str, err: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dispatcher.main(argv) == code
    shown = capsys.readouterr()
    assert shown.out.startswith(out)
    assert shown.err.startswith(err)
    assert bool(shown.out) == bool(out)
    assert bool(shown.err) == bool(err)


def test_a_command_gets_the_arguments_behind_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    class Tool:
        @staticmethod
        def main(argv: list[str]) -> int:
            asked.append(argv)
            return 5

    def fake_import(name: str) -> type[Tool]:
        asked.append(name)
        return Tool

    monkeypatch.setattr(dispatcher.importlib, "import_module", fake_import)
    assert dispatcher.main(["eval-det", "a", "--b"]) == 5
    assert asked == ["effdense.tools.eval_det", ["a", "--b"]]


@pytest.mark.parametrize("name", list(dispatcher.COMMANDS))
def test_every_command_has_its_tool_file(name: str) -> None:
    assert (ROOT / "tools" / f"{dispatcher.COMMANDS[name].module}.py").is_file()


def test_a_tool_run_as_a_file_takes_the_code_beside_it(tmp_path: Path) -> None:
    probe = ROOT / "tools" / "main.py"
    code = f"import runpy, sys; sys.argv = ['main.py', '--version']; sys.path.insert(0, {str(probe.parent)!r})\n"
    code += (
        f"try: runpy.run_path({str(probe)!r}, run_name='__main__')\n"
        "except SystemExit as stop: print(stop.code, sys.path[0])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert out.stdout.splitlines() == ["effdense 0.1.0", f"0 {ROOT}"]


def test_a_tool_run_by_a_python_without_the_packages_says_how_to_install_them(tmp_path: Path) -> None:
    command = [sys.executable, "-S", "-s", str(ROOT / "tools" / "main.py"), "--version"]  # -S: no site-packages
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "lacks torch" in done.stderr
    assert "make env" in done.stderr
    assert done.stderr.count("\n") == 1
