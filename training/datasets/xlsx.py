"""The first sheet of an Excel workbook as text: enough for a published table, with nothing to install."""

import re
import zipfile
from pathlib import Path
from xml.etree import ElementTree

from ..annotations import parse_xml_text
from ..cohort import CohortError

_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_MOST_BYTES = 64 << 20  # of one part, unpacked


def read_sheet(path: Path) -> list[list[str]]:
    """Rows of the first sheet, cells as text; an empty cell is "".

    Raises:
        CohortError: It is no workbook, or larger than any table of ours.
        AnnotationError: A part of it is no safe XML.
    """
    try:
        with zipfile.ZipFile(path) as book:
            sheets = [name for name in book.namelist() if re.fullmatch(r"xl/worksheets/sheet\d+\.xml", name)]
            if not sheets:
                raise CohortError(f"{path} is no Excel workbook: it holds no sheet. Save the table as .xlsx or .csv.")
            first = min(sheets, key=lambda name: int(re.sub(r"\D", "", name)))
            shared: list[str] = []
            if "xl/sharedStrings.xml" in book.namelist():
                root = _part(path, book, "xl/sharedStrings.xml")
                shared = [_text(item) for item in root.iter(f"{_MAIN}si")]
            return [_row(node, shared) for node in _part(path, book, first).iter(f"{_MAIN}row")]
    except (OSError, zipfile.BadZipFile, ValueError, IndexError) as error:
        raise CohortError(
            f"{path} cannot be read as an Excel workbook ({error}): copy it again, or save it as .csv."
        ) from error


def _part(path: Path, book: zipfile.ZipFile, name: str) -> ElementTree.Element:
    if book.getinfo(name).file_size > _MOST_BYTES:
        raise CohortError(f"{path} is larger than {_MOST_BYTES >> 20} MB unpacked: save the table as .csv.")
    return parse_xml_text(book.read(name).decode("utf-8-sig"), f"{path} ({name})")


def _row(node: ElementTree.Element, shared: list[str]) -> list[str]:
    cells: dict[int, str] = {}
    for position, cell in enumerate(node.iter(f"{_MAIN}c")):
        letters = re.match("[A-Z]+", cell.get("r", ""))
        value, kind = cell.findtext(f"{_MAIN}v", ""), cell.get("t", "n")
        if kind == "s":
            value = shared[int(value)]
        elif kind == "inlineStr":
            value = _text(cell)
        cells[_column(letters.group()) if letters else position] = value.strip()
    return [cells.get(number, "") for number in range(max(cells, default=-1) + 1)]


def _text(node: ElementTree.Element) -> str:
    """All runs of a rich text, without phonetic hints."""
    hints = {id(t) for hint in node.iter(f"{_MAIN}rPh") for t in hint.iter(f"{_MAIN}t")}
    return "".join(t.text or "" for t in node.iter(f"{_MAIN}t") if id(t) not in hints)


def _column(letters: str) -> int:
    """A is 0, Z 25, AA 26."""
    number = 0
    for letter in letters:
        number = 26 * number + ord(letter) - ord("A") + 1
    return number - 1
