"""A task's settings: one frozen flat dataclass is the YAML schema, the command line and the Python API.

Each field is documented by the string under it; that string is the help of the flag and the comment in the YAML file.

    @dataclass(frozen=True)
    class Settings:
        image_size: int = 512
        \"\"\"Side of the square that images are fitted into, in pixels.\"\"\"

    parsed = parse(Settings, argv, prog="train_det")     # --config my.yaml --image-size 320
    parsed.config.image_size, "image_size" in parsed.given

Values of either origin go through ``config_values.read_value``, hence the same checks. tyro draws ``--help``; the
flags are read by ``config_flags``, because an error has to name the nearest flag and to fit in one sentence.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, get_origin, get_type_hints

from effdense.config_flags import asks_help, flag, print_help, shown_name, split_flags
from effdense.config_values import NONE_WORDS, Quoted, Word, WrongValue, read_value, sentence, unknown_name
from effdense.errors import UserError

if TYPE_CHECKING:
    import yaml

T = TypeVar("T")


@dataclass(frozen=True)
class Parsed(Generic[T]):
    """A configuration and what of it the user set.

    Attributes:
        config: the instance.
        given: names of the fields that the file or the flags set, whatever their value.
    """

    config: T
    given: frozenset[str]

    def refuse_ignored(self, ignored: Mapping[str, str]) -> None:
        """Raise for a setting that the user set and that the chosen combination would ignore.

        A value equal to the default is let pass: nothing is lost by ignoring it, and a run's own ``config.yaml``, which
        lists every setting, stays readable.

        Args:
            ignored: field name to the reason, as in ``{"soft_nms_sigma": "nms is 'hard'"}``.

        Raises:
            UserError: names the first such setting and the reason.
        """
        defaults = _defaults(type(self.config))
        for name, reason in ignored.items():
            if name in self.given and getattr(self.config, name) != defaults.get(name, dataclasses.MISSING):
                raise UserError(f"{flag(name)} has no effect because {reason}; leave it out or change that.")


def parse(
    cls: type[T],
    argv: Sequence[str],
    *,
    prog: str,
    description: str = "",
    positional: Sequence[str] = (),
    base: T | None = None,
) -> Parsed[T]:
    """Return the configuration of a command line: defaults, then ``--config FILE.yaml``, then the flags.

    Args:
        cls: frozen dataclass; a field without a default must be given.
        argv: arguments without the program's name.
        prog: the program's name in the help.
        description: a sentence for the help.
        positional: fields that are given by place, in order, instead of by flag; the last may be a tuple of any length.
        base: start from this instance instead of the defaults, as when a run is resumed.

    Raises:
        UserError: an unknown flag or key (with the nearest real one), a wrong or a missing value.
        SystemExit: 0, after ``--help``.
    """
    hints = _hints(cls)
    if asks_help(argv):
        print_help(hints, _defaults(cls), field_docs(cls), prog=prog, description=description, positional=positional)
        raise SystemExit(0)
    config_file, texts = split_flags(hints, argv, positional)
    values = {} if config_file is None else _read_yaml(cls, config_file)
    for name, value in texts.items():
        try:
            values[name] = _checked(value, hints[name], shown_name(name, positional))
        except UserError as error:
            # Of a choice, what is wrong does not say what to take instead: the setting's own words do.
            about = field_docs(cls).get(name) if get_origin(hints[name]) is Literal else None
            raise UserError(f"{error} {about}" if about else str(error)) from None
    return Parsed(_build(cls, values, base, positional), frozenset(values))


def load_yaml(cls: type[T], path: Path) -> Parsed[T]:
    """Return the configuration in a YAML file, with defaults for what it leaves out.

    Raises:
        UserError: names the file, the line and the key that cannot be used.
    """
    values = _read_yaml(cls, path)
    return Parsed(_build(cls, values, None, ()), frozenset(values))


def from_mapping(cls: type[T], mapping: Mapping[str, Any], source: str) -> T:
    """Return the configuration in a mapping of Python values, as out of a checkpoint's header.

    Args:
        cls: the dataclass.
        mapping: field names to values; lists stand for tuples, text for paths.
        source: where it came from, for the errors.

    Raises:
        UserError: names the source and the key that cannot be used.
    """
    hints = _hints(cls)
    for name in mapping:
        if name not in hints:
            raise unknown_name(f"{source}: setting", str(name), list(hints))
    values = {name: _checked(value, hints[name], f"{source}: {name}") for name, value in mapping.items()}
    return _build(cls, values, None, ())


def to_mapping(config: Any) -> dict[str, Any]:
    """Return every setting as plain values that JSON and YAML can hold; ``from_mapping`` reads them back."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def to_yaml(config: Any) -> str:
    """Return every setting as YAML, each under its help as a comment; ``load_yaml`` reads it back the same."""
    import yaml

    documents = field_docs(type(config))
    lines: list[str] = []
    for name, value in to_mapping(config).items():
        lines += [f"# {line}" for line in textwrap.wrap(documents.get(name, ""), 110)]
        if value in NONE_WORDS:
            lines.append(f"{name}: '{value}'")
        else:  # dumped inside a list, so that it stays on one line; width: however long
            text = yaml.safe_dump([value], default_flow_style=True, width=10**6, allow_unicode=True)
            lines.append(f"{name}: {text.strip()[1:-1]}")
    return "\n".join(lines) + "\n"


def field_docs(cls: type[Any]) -> dict[str, str]:
    """Return the string under each field, inherited ones included, whitespace folded."""
    documents: dict[str, str] = {}
    for klass in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(klass):
            continue
        try:
            source = textwrap.dedent(inspect.getsource(klass))
        except (OSError, TypeError):  # no source at hand, as in a frozen application
            continue
        body = ast.parse(source).body[0]
        assert isinstance(body, ast.ClassDef)
        for node, after in zip(body.body, body.body[1:], strict=False):
            if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
                continue
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                documents[node.target.id] = " ".join(str(after.value.value).split())
    return documents


def _hints(cls: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _defaults(cls: type[Any]) -> dict[str, Any]:
    defaults = {}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            defaults[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = field.default_factory()
    return defaults


def _checked(value: Any, hint: Any, where: str) -> Any:
    try:
        return read_value(value, hint)
    except WrongValue as error:
        raise UserError(sentence(f"{where}: {error}")) from None


def _build(cls: type[T], values: Mapping[str, Any], base: T | None, positional: Sequence[str]) -> T:
    if base is not None:
        return cls(**{**{name: getattr(base, name) for name in _hints(cls)}, **values})
    missing = [name for name in _hints(cls) if name not in values and name not in _defaults(cls)]
    if missing:
        names = ", ".join(shown_name(name, positional) for name in missing)
        about = field_docs(cls).get(missing[0], "see --help")
        raise UserError(sentence(f"{names} must be given: {about}"))
    return cls(**values)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value


def _read_yaml(cls: type[Any], path: Path) -> dict[str, Any]:
    """Return the checked settings of a YAML file.

    Scalars are read by the field's type and not by YAML 1.1's rules, under which ``1e-3`` is text and ``off`` is false.
    """
    import yaml

    hints = _hints(cls)
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); --config takes a YAML file of settings.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text; --config takes a YAML file of settings.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable"
        raise UserError(f"{path}{where}: is not valid YAML ({problem}).") from None
    if root is None or root.tag == "tag:yaml.org,2002:null":
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path}, line {_line(root)}: expected settings as 'name: value', came something else.")
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key, node in root.value:
        name, where = str(key.value), f"{path}, line {_line(key)}"
        if name not in hints:
            raise unknown_name(f"{where}: setting", name, list(hints))
        if name in lines:
            raise UserError(f"{where}: {name} is set a second time, first in line {lines[name]}; keep one.")
        lines[name] = _line(key)
        values[name] = _checked(_node_value(node), hints[name], f"{where}: {name}")
    return values


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _node_value(node: yaml.Node) -> Any:
    import yaml

    if isinstance(node, yaml.MappingNode):
        return {}
    if isinstance(node, yaml.SequenceNode):
        return [_node_value(part) for part in node.value]
    assert isinstance(node, yaml.ScalarNode)
    if node.style is not None:
        return Quoted(node.value)
    return None if node.tag == "tag:yaml.org,2002:null" else Word(node.value)
