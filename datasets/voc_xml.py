"""One Pascal VOC annotation file, parsed with the line of every object.

The format: "The PASCAL VOC2012 Development Kit", section 4. Parts of objects (``<part>``) are passed over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from effdense.errors import UserError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_BOX = ("annotation", "object", "bndbox")


@dataclass(frozen=True)
class VocObject:
    """One object.

    Attributes:
        name: its class.
        corners: xmin, ymin, xmax, ymax as written.
        difficult: the annotator found it hard to recognise.
        line: where it starts in the file, counted from 1.
    """

    name: str
    corners: tuple[float, float, float, float]
    difficult: bool
    line: int


@dataclass
class VocFile:
    """One annotation file.

    Attributes:
        filename: the image's name as written, or "".
        size_hw: pixels as written; 0, 0 where the file states none.
        objects: in the order of the file.
    """

    filename: str = ""
    size_hw: tuple[int, int] = (0, 0)
    objects: list[VocObject] = field(default_factory=list)


def parse_voc(path: Path) -> VocFile:
    """Parse one annotation file.

    Raises:
        UserError: the file is missing, is no XML, is in an encoding that cannot be read, declares entities, or has an
            object without name or box; names file and line.
    """
    reader = _Reader(path)
    try:
        return reader.read(path.read_bytes())
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"annotation file {path} does not exist") from None
    except expat.ExpatError as error:
        raise UserError(f"{path}:{error.lineno}: not valid XML ({expat.ErrorString(error.code)})") from error
    except OSError as error:
        raise UserError(f"annotation file {path} cannot be read ({error})") from error
    except (ValueError, LookupError) as error:  # of a declared encoding: multi-byte, unknown, or no text's
        raise UserError(
            f"{reader.where()}: the declared encoding cannot be read ({error}); save it as UTF-8"
        ) from error


class _Reader:
    """State of one pass over one file: where in the tree it is, and what it has read of the object at hand."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._result = VocFile()
        self._tags: list[str] = []
        self._text: list[str] = []
        self._object: dict[str, str] = {}
        self._size: dict[str, str] = {}
        self._object_line = 0
        self._parser = expat.ParserCreate()
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text.append
        self._parser.StartDoctypeDeclHandler = self._refuse_doctype

    def read(self, data: bytes) -> VocFile:
        self._parser.Parse(data, True)
        if self._size:
            height, width = (self._number(self._size, side, self._path) for side in ("height", "width"))
            self._result.size_hw = (int(height), int(width))
        return self._result

    def _refuse_doctype(self, *_: object) -> None:
        raise UserError(f"{self.where()}: a document type is declared; VOC annotations need none, take it out")

    def where(self) -> str:
        """Return file and line of what is being read."""
        return f"{self._path}:{self._parser.CurrentLineNumber}"

    def _start(self, tag: str, _: dict[str, str]) -> None:
        if not self._tags and tag != "annotation":
            raise UserError(f"{self.where()}: expected <annotation>, got <{tag}>: this is no Pascal VOC annotation")
        self._tags.append(tag)
        self._text.clear()
        if self._tags == ["annotation", "object"]:
            self._object, self._object_line = {}, self._parser.CurrentLineNumber

    def _end(self, tag: str) -> None:
        text, parents = "".join(self._text).strip(), tuple(self._tags[:-1])
        self._text.clear()
        self._tags.pop()
        if parents == ("annotation",) and tag == "filename":
            self._result.filename = text
        elif parents == ("annotation", "size"):
            self._size[tag] = text
        elif (parents == ("annotation", "object") and tag in ("name", "difficult")) or parents == _BOX:
            self._object[tag] = text
        elif parents == ("annotation",) and tag == "object":
            self._finish_object()

    def _finish_object(self) -> None:
        where = f"{self._path}:{self._object_line}"
        if not self._object.get("name"):
            raise UserError(f"{where}: an object without a <name>")
        if missing := [corner for corner in _CORNERS if corner not in self._object]:
            raise UserError(f"{where}: object {self._object['name']!r} has no <bndbox> with {', '.join(missing)}")
        x1, y1, x2, y2 = (self._number(self._object, corner, where) for corner in _CORNERS)
        difficult = self._object.get("difficult", "0").lower() in ("1", "true")
        self._result.objects.append(VocObject(self._object["name"], (x1, y1, x2, y2), difficult, self._object_line))

    @staticmethod
    def _number(values: dict[str, str], key: str, where: object) -> float:
        try:
            number = float(values.get(key, "") or 0)
            if not math.isfinite(number):
                raise ValueError
            return number
        except ValueError:
            raise UserError(f"{where}: <{key}> must be a number, got {values[key]!r}") from None
