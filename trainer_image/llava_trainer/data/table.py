"""A table to samples: a row is a question with its answer, or a list of turns. The spec names the columns.

Images are paths, data: URLs, bytes, or the Hub's struct of bytes and path, one or a list. In text files lists are
written as JSON.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llava_api.spec import Table
from llava_trainer.data.chat import place_images, read_chat
from llava_trainer.data.dialogue import Dialogue, EntryError, build_sample, name_of, tell
from llava_trainer.data.embedded import Keep
from llava_trainer.data.entries import ReadingPosition
from llava_trainer.data.findings import Finding, Kind, noted, refused
from llava_trainer.data.rows import TableError, read_rows
from llava_trainer.data.samples import Sample, Source


def read_table(
    path: Path, name: str, settings: Table, keep: Keep, position: ReadingPosition
) -> Iterator[Sample | Finding]:
    """Read a table, row by row.

    Args:
        path: the file.
        name: what messages call it.
        settings: which column is what.
        keep: keeps the images that rows hold.
        position: kept up to date.

    Yields:
        A sample, or what is wrong with a row or the file, in the order of the file.
    """
    if settings.turns is None and (settings.question is None or settings.answer is None):
        yield refused(name, "dataset.table must name the columns question and answer, or turns")
        return
    try:
        columns = _list_columns(settings)
        may_lack = columns.keys() - {settings.question, settings.answer, settings.turns}
        for row in read_rows(path, columns, position, may_lack=may_lack):
            source = Source(file=name, index=row.index)
            if isinstance(row.values, TableError):
                yield refused(source, str(row.values))
                continue
            try:
                yield from _read_row(row.values, source, settings, keep)
            except EntryError as error:
                yield refused(source, str(error))
    except TableError as error:
        yield refused(name, str(error))


def _list_columns(settings: Table) -> dict[str, str]:
    """The columns that are read, and the field that names each."""
    fields = Table.model_fields.items()
    named = ((getattr(settings, name), f"dataset.table.{field.alias or name}") for name, field in fields)
    return {column: field for column, field in named if column is not None}


def _read_row(values: Mapping[str, Any], source: Source, settings: Table, keep: Keep) -> Iterator[Sample | Finding]:
    cells = _Cells(values)
    references = cells.texts(settings.references, packed=True)
    if settings.turns is not None:
        chat = read_chat(cells.items(settings.turns), settings.turns)
    else:
        question, answers = cells.text(settings.question), cells.texts(settings.answer)
        chat = read_chat([{"user": question, "assistant": answers[0] if answers else ""}], "row")
        # Several answers in one cell are right each; one is learned.
        references = references or (answers if len(answers) > 1 else [])
    if chat.system:
        message = "dataset.format messages reads them, where dataset.messages.systemMessage is use"
        yield noted(Kind.UNUSED_SYSTEM, source, message)
    turns, images = place_images(chat, cells.unpacked(settings.image), keep, settings.image or "dataset.table.image")
    dialogue = Dialogue(
        turns=turns,
        images=images,
        speakers=("user", "assistant"),
        id=cells.name(settings.id),
        references=references,
        question_type=cells.text(settings.question_type),
        group=cells.name(settings.group),
    )
    yield from build_sample(dialogue, source)


class _Cells:
    """The cells of one row by their columns; of a column that is not named, an empty one."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def __getitem__(self, column: str | None) -> Any:
        """What a cell holds; None where it is empty: CSV knows no null, and pandas writes NaN."""
        value = None if column is None else self._values[column]
        return None if value == "" or value != value else value

    def unpacked(self, column: str | None) -> Any:
        """The same; a list or an object that is written as JSON is read."""
        value = self[column]
        if not isinstance(value, str) or value[:1] not in ("[", "{"):
            return value
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value

    def items(self, column: str) -> list[Any]:
        """A list.

        Raises:
            EntryError: it is none.
        """
        value = self.unpacked(column)
        if not isinstance(value, list):
            raise EntryError(f"{column} must be a list of turns (is {tell(value)})")
        return value

    def text(self, column: str | None) -> str:
        """A text; whole numbers are taken as they are written.

        Raises:
            EntryError: it is neither.
        """
        value = self[column]
        return "" if value is None else _text_of(value, str(column))

    def name(self, column: str | None) -> str:
        """A name, as text or as a whole number: pandas makes 7.0 of a 7 where another row has none.

        Raises:
            EntryError: it is neither.
        """
        value = self[column]
        return name_of(int(value) if isinstance(value, float) and value.is_integer() else value, str(column))

    def texts(self, column: str | None, *, packed: bool = False) -> list[str]:
        """One text, or a list of them, which may be written as JSON where it is ``packed``.

        Raises:
            EntryError: it is neither.
        """
        value = self.unpacked(column) if packed else self[column]
        found = value if isinstance(value, list) else [] if value is None else [value]
        return [_text_of(one, str(column)) for one in found]


def _text_of(value: Any, column: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise EntryError(
        f"{column} must be a text (is {tell(value)}): write numbers as texts, since 9.00 and 9.0 are the same number"
    )
