"""From what is labelled in a document to its questions and answers.

A relation links a question to its answer; where none does, a label may have a question of its own
(``dataset.ubiai.questions``). What the labels do not say is never guessed: it is left out, counted and told.
"""

from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

from llava_api.spec import Ubiai
from llava_trainer.data.findings import Finding, Kind, noted, refused
from llava_trainer.data.samples import Source
from llava_trainer.data.ubiai_document import Document, Relation, Span


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A question and its answer.

    Attributes:
        part: what of the document it comes from, for messages: ``.relations[0]``.
        key: what tells it from the document's other pairs.
    """

    question: str
    answer: str
    part: str
    key: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Link:
    """A relation that joins a question and an answer, by their places in the document's spans."""

    index: int
    question: int
    answer: int


def find_pairs(document: Document, source: Source, settings: Ubiai) -> Generator[Finding, None, list[Pair]]:
    """Find the questions and answers of a document, in the order of its relations, then of ``settings.questions``.

    Args:
        document: what is labelled.
        source: where it stands, for messages.
        settings: labels of questions, answers and their relation; questions of further labels.

    Yields:
        What was found about spans and relations.
    """
    found = yield from _find_links(document, source, settings)
    rings = _find_rings(found)
    for ring in rings:
        yield noted(Kind.CYCLE, source, _describe_ring(document, ring))
    ringed = {link for ring in rings for link in ring}
    links = [link for link in found if link not in ringed]
    used = {end for link in found for end in (link.question, link.answer)}
    pairs = [
        Pair(
            question=document.spans[link.question].text.strip(),
            answer=document.spans[link.answer].text.strip(),
            part=f".relations[{link.index}]",
            key=f"{document.spans[link.question].start}-{document.spans[link.answer].start}",
        )
        for link in links
    ]
    pairs += yield from _ask(document, used, source, settings)
    yield from _note_spans(document, found, links, source, settings)
    if not pairs:
        yield noted(Kind.EMPTY_DOCUMENT, source, "has no question with an answer")
    return pairs


def _find_links(document: Document, source: Source, settings: Ubiai) -> Generator[Finding, None, list[_Link]]:
    links: dict[tuple[int, int], _Link] = {}
    places = _Places(document.spans, settings)
    for index, relation in enumerate(document.relations):
        if relation.label != settings.relation_label:
            continue
        where = Source(file=source.file, index=source.index, part=f".relations[{index}]")
        ends = _resolve(relation, places)
        if isinstance(ends, str):
            yield refused(where, ends)
            continue
        head, child = ends
        labels = (document.spans[head].label, document.spans[child].label)
        if labels == (settings.question_label, settings.answer_label):
            link = _Link(index=index, question=head, answer=child)
        elif labels == (settings.answer_label, settings.question_label):
            link = _Link(index=index, question=child, answer=head)
        else:
            yield noted(Kind.NOT_A_PAIR, where, f"joins {labels[0]} and {labels[1]}")
            continue
        known = links.setdefault((link.question, link.answer), link)
        if known is not link:
            yield noted(Kind.LINKED_TWICE, where, f"repeats relations[{known.index}]")
    return list(links.values())


def _resolve(relation: Relation, places: "_Places") -> tuple[int, int] | str:
    """The spans that a relation joins, by their places; or why they cannot be told."""
    found = []
    for end, place in (("head", relation.head), ("child", relation.child)):
        candidates = places[place]
        if not candidates:
            return f"{end} is {place}, where no labelled span begins or stands"
        if len(candidates) > 1:
            return f"{end} is {place}, where {len(candidates)} questions or answers stand"
        found.append(candidates[0])
    return found[0], found[1]


class _Places:
    """Which spans a place may mean: those that begin there, else those around it; questions and answers first."""

    def __init__(self, spans: Sequence[Span], settings: Ubiai) -> None:
        self._spans = spans
        self._labels = (settings.question_label, settings.answer_label)
        self._beginning: dict[int, list[int]] = {}
        for index, span in enumerate(spans):
            for first in {first for first, _ in span.ranges}:
                self._beginning.setdefault(first, []).append(index)

    def __getitem__(self, place: int) -> list[int]:
        around = (index for index, span in enumerate(self._spans) if span.contains(place))
        found = self._beginning.get(place) or list(around)
        wanted = [index for index in found if self._spans[index].label in self._labels]
        # Several spans of other labels on one place do not matter: none of them makes a pair.
        return wanted or found[:1]


def _find_rings(links: Sequence[_Link]) -> list[list[_Link]]:
    """Links that form rings: which answer belongs to which question cannot be told there."""
    left = list(links)
    while True:
        ends = Counter(end for link in left for end in (link.question, link.answer))
        inner = [link for link in left if ends[link.question] > 1 and ends[link.answer] > 1]
        if len(inner) == len(left):
            break
        left = inner
    rings: list[list[_Link]] = []
    for link in left:
        joined = [ring for ring in rings if any({link.question, link.answer} & {r.question, r.answer} for r in ring)]
        rings = [ring for ring in rings if ring not in joined]
        rings.append([other for ring in joined for other in ring] + [link])
    return rings


def _describe_ring(document: Document, ring: Sequence[_Link]) -> str:
    places = ", ".join(f"relations[{link.index}]" for link in sorted(ring, key=lambda link: link.index))
    texts = ", ".join(f"{document.spans[index].text!r:.40}" for index in sorted({link.question for link in ring}))
    return f"{places}, about {texts}"


def _ask(document: Document, used: set[int], source: Source, settings: Ubiai) -> Generator[Finding, None, list[Pair]]:
    """Ask the questions that labels have of their own, about spans that no relation has used."""
    pairs = []
    for label, question in settings.questions.items():
        spans = (span for index, span in enumerate(document.spans) if span.label == label and index not in used)
        texts = list(dict.fromkeys(" ".join(span.text.split()) for span in spans))
        if len(texts) > 1:
            yield noted(Kind.SEVERAL_VALUES, source, f"{label}: {', '.join(f'{text!r:.40}' for text in texts[:3])}")
        elif texts:
            pairs.append(Pair(question=question.strip(), answer=texts[0], part=f".{label}", key=label))
    return pairs


def _note_spans(
    document: Document, found: Sequence[_Link], links: Sequence[_Link], source: Source, settings: Ubiai
) -> Iterator[Finding]:
    """What the links leave out, or use more than once; rings have been told."""
    questions = Counter(link.question for link in links)
    answers = Counter(link.answer for link in links)
    ringed = {end for link in found for end in (link.question, link.answer)} - questions.keys() - answers.keys()
    for index, span in enumerate(document.spans):
        if index in ringed:
            continue
        told = f"{span.text!r:.80} (at {span.start})"
        if span.label == settings.question_label and span.label not in settings.questions:
            if questions[index] == 0:
                yield noted(Kind.UNLINKED_QUESTION, source, told)
            elif questions[index] > 1:
                yield noted(Kind.SEVERAL_ANSWERS, source, f"{told}: {questions[index]} answers")
        elif span.label == settings.answer_label and span.label not in settings.questions:
            if answers[index] == 0:
                yield noted(Kind.UNLINKED_ANSWER, source, told)
            elif answers[index] > 1:
                yield noted(Kind.SHARED_ANSWER, source, f"{told}: {answers[index]} questions")
