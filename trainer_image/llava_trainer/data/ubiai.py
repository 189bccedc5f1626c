"""A UBIAI export to samples: JSON with relations or with entities only, or an OCR archive.

The form is told from what the file holds. One conversation a document with all of its questions, or one sample a
question. No JSON export carries images: which one a document is about is told by ``documentName`` or by a mapping
file; an OCR archive names them. A document is a group: all that is asked about it stays on one side of a split.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from pydantic import ConfigDict, TypeAdapter, ValidationError

from llava_api.spec import Ubiai
from llava_trainer.data.box_heights import BoxHeights
from llava_trainer.data.entries import ReadingPosition, read_entries
from llava_trainer.data.findings import Finding, Kind, noted, refused
from llava_trainer.data.json_file import JsonFileError, describe_mismatch, is_writable, read_json
from llava_trainer.data.recognition import LOOKED_AT_BYTES, TAGGED_WORD
from llava_trainer.data.samples import Sample, Source, Turn
from llava_trainer.data.template import IMAGE_MARKER
from llava_trainer.data.ubiai_document import Document, DocumentError, read_document
from llava_trainer.data.ubiai_ocr import BOX_SUFFIX, IMAGE_SUFFIX, read_ocr
from llava_trainer.data.ubiai_pairs import Pair, find_pairs

Resolve = Callable[[str], Path]
"""Where a file of the dataset lies; raises ValueError or OSError if it may not be read."""

_LABELS_SHOWN = 10
_LABELS_COUNTED = 1000
"""Different labels that are remembered: a person has some dozens, and memory stays bounded whatever an export holds."""

_MAPPING = TypeAdapter(dict[str, str], config=ConfigDict(strict=True))


def read_ubiai(
    name: str, settings: Ubiai, resolve: Resolve, position: ReadingPosition, heights: BoxHeights | None = None
) -> Iterator[Sample | Finding]:
    """Read an export, document by document.

    Args:
        name: the file, as the person names it; what messages call it, too.
        settings: labels of questions, answers and their relation; mapping to images; samples wanted.
        resolve: finds ``name`` and what belongs to it.
        position: kept up to date.
        heights: counts how high the words of an OCR archive are, if anything does.

    Yields:
        A sample, or what was found about a document or the file, in the order of the file.
    """
    if settings.question_label == settings.answer_label:
        yield refused(name, f"dataset.ubiai.questionLabel and answerLabel are both {settings.answer_label!r}: they "
                            "must differ, or nobody can tell which end of a link is the question")  # fmt: skip
        return
    try:
        mapping = None if settings.documents is None else _read_mapping(resolve, settings.documents)
        tally = _Tally(settings)
        for source, document in _read_documents(name, resolve, position, heights):
            if isinstance(document, Finding):
                yield document
                continue
            tally.take_in(document)
            pairs = yield from find_pairs(document, source, settings)
            tally.num_pairs += len(pairs)
            yield from _samples_of(document, pairs, source, mapping, settings)
    except JsonFileError as error:
        yield refused(name, str(error))
        return
    yield from tally.conclude(name)


def _read_documents(
    name: str, resolve: Resolve, position: ReadingPosition, heights: BoxHeights | None
) -> Iterator[tuple[Source, Document | Finding]]:
    path = resolve(name)
    if _looks_like_json(path):
        for entry in read_entries(path, position):
            source = Source(file=name, index=entry.index)
            if isinstance(entry.value, JsonFileError):
                yield source, refused(source, str(entry.value))
                continue
            try:
                yield source, read_document(entry.value)
            except DocumentError as error:
                yield source, refused(source, str(error))
        return
    for index, found in enumerate(read_ocr(path, *_companions(name, resolve), position, heights)):
        source = Source(file=name, index=index)
        if found.num_repaired:
            yield source, noted(Kind.BOX_REPAIRED, source, f"{found.num_repaired} boxes")
        if found.num_orphans:
            yield source, noted(Kind.ORPHAN_TAG, source, f"{found.num_orphans} tags")
        yield source, found.document


def _looks_like_json(path: Path) -> bool:
    """Whether a file is JSON and not a table of words.

    Raises:
        JsonFileError: it is neither.
    """
    try:
        with path.open("rb") as stream:
            beginning = stream.read(LOOKED_AT_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError as error:
        raise JsonFileError(f"cannot be read: {error}") from error
    first_line = beginning.split(b"\n", 1)[0].rstrip()
    if TAGGED_WORD.fullmatch(first_line):
        return False
    if beginning[:1] in (b"[", b"{"):
        return True
    if b"\t" in first_line:
        return False
    raise JsonFileError(
        "is of none of UBIAI's forms: neither JSON (with relations or with entities only) nor the words of an OCR "
        "archive, a word, a tab and its tag on each line"
    )


def _companions(name: str, resolve: Resolve) -> tuple[Path, Path]:
    words = PurePosixPath(name)
    found = []
    for suffix in (BOX_SUFFIX, IMAGE_SUFFIX):
        if words.stem.endswith(suffix):
            raise JsonFileError(
                f"is one of the files that belong to an OCR archive: name {words.stem.removesuffix(suffix)}"
                f"{words.suffix} in dataset.file"
            )
    for suffix in (BOX_SUFFIX, IMAGE_SUFFIX):
        companion = str(words.with_name(f"{words.stem}{suffix}{words.suffix}"))
        try:
            found.append(resolve(companion))
        except (ValueError, OSError) as error:
            raise JsonFileError(f"is an OCR archive, but {companion} {error}") from error
    return found[0], found[1]


class _Tally:
    """What an export holds in all, for what is said about it as a whole."""

    def __init__(self, settings: Ubiai) -> None:
        self._settings = settings
        self._labels: Counter[str] = Counter()
        self._asked: set[str] = set()
        self._num_documents = 0
        self.num_pairs = 0

    def take_in(self, document: Document) -> None:
        """Count a document's labels."""
        self._num_documents += 1
        self._asked.update(span.label for span in document.spans if span.label in self._settings.questions)
        labels = [f"entity {span.label!r}" for span in document.spans]
        labels += [f"relation {relation.label!r}" for relation in document.relations]
        for label in labels:
            if label in self._labels or len(self._labels) < _LABELS_COUNTED:
                self._labels[label] += 1

    def conclude(self, name: str) -> Iterator[Finding]:
        """What there is to say once everything has been read."""
        if self._num_documents and self.num_pairs == 0:
            yield refused(name, self._describe_no_pairs())
        elif unused := [label for label in self._settings.questions if label not in self._asked]:
            for label in unused:
                yield noted(Kind.UNUSED_QUESTION, name, label)

    def _describe_no_pairs(self) -> str:
        settings = self._settings
        shown = ", ".join(label for label, _ in self._labels.most_common(_LABELS_SHOWN)) or "none"
        asked = ", nor a text with a label of dataset.ubiai.questions" if settings.questions else ""
        return (
            f"holds no relation {settings.relation_label!r} between {settings.question_label!r} and "
            f"{settings.answer_label!r}{asked}; labels in the export: {shown}. Set dataset.ubiai's questionLabel, "
            "answerLabel and relationLabel to the export's, or name a question for each label in "
            "dataset.ubiai.questions"
        )


def _read_mapping(resolve: Resolve, name: str) -> Mapping[str, str]:
    try:
        return _MAPPING.validate_python(read_json(resolve(name)))
    except (JsonFileError, OSError) as error:
        raise JsonFileError(f"dataset.ubiai.documents: {name} {error}") from error
    except ValidationError as error:
        raise JsonFileError(f"dataset.ubiai.documents: {name}: {describe_mismatch(error)}") from error
    except ValueError as error:
        raise JsonFileError(f"dataset.ubiai.documents: {name} {error}") from error


def _samples_of(
    document: Document, pairs: Sequence[Pair], source: Source, mapping: Mapping[str, str] | None, settings: Ubiai
) -> Iterator[Sample | Finding]:
    if not pairs:
        return
    image = _image_of(document, source, mapping)
    if isinstance(image, Finding):
        yield image
        return
    name = document.name or str(source.index)
    # Numbers of one file say nothing about documents of another one.
    group = document.name or str(source)
    usable = []
    for pair in pairs:
        problem = _problem_of(pair, name, image)
        if problem:
            yield refused(Source(file=source.file, index=source.index, part=pair.part), problem)
        else:
            usable.append(pair)
    if settings.samples == "document" and usable:
        yield _build_sample(name, usable, source, image, group)
    elif settings.samples == "pair":
        for pair in usable:
            where = Source(file=source.file, index=source.index, part=pair.part)
            yield _build_sample(f"{name}:{pair.key}", [pair], where, image, group)


def _build_sample(identity: str, pairs: Sequence[Pair], source: Source, image: str, group: str) -> Sample:
    turns: list[Turn] = []
    for pair in pairs:
        turns += [Turn(role="user", text=pair.question), Turn(role="assistant", text=pair.answer)]
    return Sample(id=identity, images=(image,), turns=tuple(turns), source=source, image_turns=(0,), group=group)


def _problem_of(pair: Pair, *others: str) -> str | None:
    for side, text in (("question", pair.question), ("answer", pair.answer)):
        if not text:
            return f"the {side} is empty"
        if IMAGE_MARKER in text:
            return f"the {side} contains {IMAGE_MARKER}, which stands for a picture: take it out"
    if not is_writable(pair.question, pair.answer, *others):
        return "a text holds half a surrogate pair (a \\ud800 to \\udfff alone): correct the encoding"
    return None


def _image_of(document: Document, source: Source, mapping: Mapping[str, str] | None) -> str | Finding:
    if mapping is None:
        if document.name:
            return document.name
        return refused(
            source, "has no documentName to find its picture by: map it to one in a file, and name that file in "
                    "dataset.ubiai.documents"
        )  # fmt: skip
    keys = [str(source.index)] if document.name is None else [document.name, str(source.index)]
    for key in keys:
        if mapping.get(key):
            return mapping[key]
    return refused(
        source, f"dataset.ubiai.documents has no picture for it, neither under {' nor '.join(map(repr, keys))}"
    )
