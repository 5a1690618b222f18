"""The command line of a settings dataclass: arguments to texts by field, and the help that tyro draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from effdense.config_values import NONE_WORDS, Word, describe, is_tuple, sentence, tuple_length, unknown_name
from effdense.errors import UserError, nearest

_OPTIONAL_METAVARS: dict[Any, str] = {
    int | None: "INT",
    float | None: "FLOAT",
    str | None: "STR",
    Path | None: "PATH",
    tuple[float, ...] | None: "[FLOAT ...]",
    tuple[str, ...] | None: "[STR ...]",
}
"""How the help shows what may also be none; tyro's own ``{None}|INT`` hides the plain word."""


def flag(name: str) -> str:
    """Return the flag of a field: ``image_size`` is ``--image-size``."""
    return "--" + name.replace("_", "-")


def shown_name(name: str, positional: Sequence[str]) -> str:
    """Return how the help and the errors call a field: its flag, or capitals where it is given by place."""
    return name.upper() if name in positional else flag(name)


def asks_help(argv: Sequence[str]) -> bool:
    """Return whether ``--help`` or ``-h`` stands among the flags."""
    flags = list(argv)[: list(argv).index("--")] if "--" in argv else argv
    return "--help" in flags or "-h" in flags


def split_flags(
    hints: Mapping[str, Any], argv: Sequence[str], positional: Sequence[str] = ()
) -> tuple[Path | None, dict[str, Any]]:
    """Return the file behind ``--config`` and each given field's value, still as text; the later of two flags wins.

    Args:
        hints: every field's type.
        argv: arguments without the program's name.
        positional: fields given by place.

    Returns:
        The file or None, and for each field given a ``Word``, a list of them for a tuple, or a bool for a switch.

    Raises:
        UserError: an unknown flag, with the nearest; a flag without its value; an argument too many.
    """
    named = {flag(name): name for name in hints if name not in positional}
    switches = {text: (name, True) for text, name in named.items() if hints[name] is bool}
    switches.update({f"--no-{text[2:]}": (name, False) for text, (name, _) in switches.items()})
    known = sorted({"--config", "--help", *named, *switches})
    config_file: Path | None = None
    texts: dict[str, Any] = {}
    placed: list[str] = []
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        if token == "--":
            placed += rest
            break
        if not _is_flag(token):
            placed.append(token)
            continue
        given, equals, inline = token.partition("=")
        values = [inline] if equals else []
        if given == "--config":
            if config_file is not None:
                raise UserError("--config is given twice; put everything into one file.")
            config_file = Path(_take(given, values, rest, 1, "a YAML file")[0])
        elif given in switches:
            name, on = switches[given]
            if equals:
                raise UserError(f"{given} takes no value; write {flag(name)} or --no-{flag(name)[2:]}.")
            texts[name] = on
        elif given in named:
            texts[named[given]] = _take_field(given, values, rest, hints[named[given]])
        else:
            raise unknown_name("flag", given, known)
    texts.update(_place(placed, positional, hints, known))
    return config_file, texts


def print_help(
    hints: Mapping[str, Any],
    defaults: Mapping[str, Any],
    documents: Mapping[str, str],
    *,
    prog: str,
    description: str,
    positional: Sequence[str],
) -> None:
    """Let tyro print the help of a dataclass of the same fields, with ``--config`` and the positional ones marked.

    Raises:
        SystemExit: 0, always; tyro leaves the program once it has printed.
    """
    import tyro

    rows: list[tuple[str, Any, Any]] = []
    for name, hint in hints.items():
        metavar = name.upper() if name in positional else _OPTIONAL_METAVARS.get(hint)
        markers = [tyro.conf.arg(help=documents.get(name, ""), metavar=metavar)]
        if name in positional:
            markers.append(tyro.conf.Positional)
        shown: Any = Annotated.__class_getitem__((hint, *markers))  # type: ignore[attr-defined]
        field = dataclasses.field(default=defaults[name]) if name in defaults else dataclasses.field()
        rows.append((name, shown, field))
    about = "YAML file of settings by their names, as in image_size: 320; flags override it."
    config_file = Annotated[Path | None, tyro.conf.arg(help=about, metavar="FILE")]
    rows.append(("config", config_file, dataclasses.field(default=None)))
    tyro.cli(
        dataclasses.make_dataclass("Settings", rows, kw_only=True), prog=prog, description=description, args=["-h"]
    )


def _is_flag(token: str) -> bool:
    """A flag begins with a dash; ``-`` alone and negative numbers are values."""
    return len(token) > 1 and token.startswith("-") and not token[1].isdigit() and token[1] != "."


def _take_field(given: str, inline: list[str], rest: list[str], hint: Any) -> Any:
    first = (inline + rest[:1] or [""])[0]
    if not is_tuple(hint) or first in NONE_WORDS:
        return Word(_take(given, inline, rest, 1, describe(hint))[0])
    return [Word(text) for text in _take(given, inline, rest, tuple_length(hint), describe(hint))]


def _take(given: str, inline: list[str], rest: list[str], length: int | None, expected: str) -> list[str]:
    """Pop a flag's values off ``rest``: ``length`` of them, or all before the next flag where it is None."""
    values = list(inline)
    while rest and not _is_flag(rest[0]) and (length is None or len(values) < length):
        values.append(rest.pop(0))
    if length is not None and len(values) != length:
        came = f"came {' '.join(values)!r}" if values else "nothing came"
        raise UserError(f"{given}: expected {expected}, {came}.")
    return values


def _place(placed: list[str], positional: Sequence[str], hints: Mapping[str, Any], known: list[str]) -> dict[str, Any]:
    """Return the arguments without a flag by field, in the order of ``positional``."""
    values: dict[str, Any] = {}
    rest = list(placed)
    for name in positional:
        if rest and tuple_length(hints[name]) is None:
            values[name], rest = [Word(text) for text in rest], []
        elif rest:
            values[name] = Word(rest.pop(0))
    if rest:
        near = nearest("--" + rest[0].partition("=")[0], known)
        raise UserError(sentence(f"argument {rest[0]!r} is one too many; a setting is written --name value{near}"))
    return values
