"""What prepare has to tell about the data: what it refuses, and what it only notes."""

from collections import Counter
from dataclasses import dataclass, field, replace
from enum import StrEnum

from llava_api.text import show
from llava_trainer.data.refused_entries import RefusedEntries
from llava_trainer.data.samples import Source

KEPT_PER_KIND = 100
"""Findings of one kind that are kept word for word; the others are counted."""


class Kind(StrEnum):
    """Kinds of findings. The value is what a person reads in the dataset report."""

    REFUSED = "refused"
    """The entry cannot be trained on, and the run fails."""
    NOTHING_TO_LEARN = "samples left out: nothing to learn is left of them"
    """Every answer is blank or cut off, or an image is cut off. Too many of them fail the run."""
    SPECIAL_TOKEN = "samples left out: their text holds a token that means something else to the model"
    """Counted with those above: texts from the web have a ``<s>`` now and then."""
    OVERLONG = "samples cut off at training.maxLength"
    OPENING_ANSWER = "conversations whose opening answer was left out, as LLaVA does"
    BLANK_ANSWER = "blank answers, from which nothing is learned"
    UNUSED_SYSTEM = "system messages that were left out: LLaVA's own text stands in their place"
    UNLINKED_QUESTION = "questions without a link to an answer, left out"
    UNLINKED_ANSWER = "answers without a link to a question, left out"
    SEVERAL_ANSWERS = "questions linked to several answers, one pair each"
    SHARED_ANSWER = "answers linked to several questions, one pair each"
    LINKED_TWICE = "links that repeat another one, in the same or the other direction, left out"
    CYCLE = "links that form a ring, left out: which answer belongs to which question cannot be told"
    NOT_A_PAIR = "links that do not join a question and an answer, left out"
    SEVERAL_VALUES = "labels with several different texts in one document, left out"
    UNUSED_QUESTION = "labels in dataset.ubiai.questions that no span has"
    ORPHAN_TAG = "tags that continue an entity which nothing began, taken as its beginning"
    BOX_REPAIRED = "documents with boxes whose corners are swapped or negative, which does not matter here"
    EMPTY_DOCUMENT = "documents without a question-answer pair"
    SAME_PICTURE = "picture files that hold the same pixels as another one"
    REPEATED_PAIR = "pairs that repeat another one on the same picture"
    CONTRADICTION = "questions asked again on the same picture, with another answer"
    OVERLAP = "validation questions that training asks on the same picture"
    SHARED_PICTURE = "held-out pictures that training shows, too, with other questions"
    SHARED_GROUP = "held-out groups that training has samples of, too"
    ILLEGIBLE = "what the vision tower's resolution does not show"
    TOO_FEW_GROUPS = "held-out groups are too few to tell two models apart"
    WITHHELD = "samples left out: they show, ask or belong to what is held out"
    """Of the mixture: learned from, they would give the answers away that scores ask for."""
    RETENTION_OVERLAP = "samples that show, ask or belong to what training learns from"
    """Of the retention set: the score of what was learned anew says nothing of what was retained."""
    ALIGNMENT_OVERLAP = "captions in alignment of held-out pictures and groups"


LEFT_OUT = (Kind.NOTHING_TO_LEARN, Kind.SPECIAL_TOKEN)
"""Samples that are not trained on, and do not fail the run as long as they are few."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing found, and where: ``export.json[12]``."""

    kind: Kind
    where: str
    message: str
    needed_length: int = 0
    """training.maxLength that would do, in tokens, where it is too short."""
    file: str = ""
    """The file that it was found in, where it is about an entry of one."""
    index: int | None = None
    """The entry's number in it, from 0."""

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


@dataclass(kw_only=True)
class Findings:
    """Everything found, counted; the first of each kind word for word, in the order of the export."""

    counts: Counter[Kind] = field(default_factory=Counter)
    kept: dict[Kind, list[Finding]] = field(default_factory=dict)
    listed: RefusedEntries | None = None
    """Takes in every entry that cannot be used, if anything does."""
    needed_length: int = 0
    """Shortest training.maxLength, in tokens, with which no sample is refused for its length; 0 if none is."""

    def add(self, finding: Finding) -> None:
        """Take in one finding."""
        self.counts[finding.kind] += 1
        self.needed_length = max(self.needed_length, finding.needed_length)
        if self.listed is not None and finding.kind in (Kind.REFUSED, *LEFT_OUT):
            self.listed.add(
                {
                    "file": finding.file, "index": finding.index, "where": finding.where,
                    "kind": "refused" if finding.kind is Kind.REFUSED else "left out", "problem": finding.message,
                }
            )  # fmt: skip
        kept = self.kept.setdefault(finding.kind, [])
        if len(kept) < KEPT_PER_KIND:
            kept.append(finding)

    def count(self, kind: Kind, number: int) -> None:
        """Count further findings of a kind that are not kept."""
        if number:
            self.counts[kind] += number

    @property
    def num_refused(self) -> int:
        """Entries that cannot be trained on."""
        return self.counts[Kind.REFUSED]

    @property
    def num_left_out(self) -> int:
        """Samples that are not trained on although nothing was refused."""
        return sum(self.counts[kind] for kind in LEFT_OUT)

    def first(self, kind: Kind, count: int) -> list[Finding]:
        """The first ``count`` findings of a kind."""
        return self.kept.get(kind, [])[:count]


def refused(where: object, message: str, *, needed_length: int = 0) -> Finding:
    """An entry that cannot be trained on."""
    return noted(Kind.REFUSED, where, message, needed_length=needed_length)


def noted(kind: Kind, where: object, message: str, *, needed_length: int = 0) -> Finding:
    """Something worth telling that does not fail the run."""
    found = Finding(kind=kind, where=show(where), message=show(message), needed_length=needed_length)
    return replace(found, file=where.file, index=where.index) if isinstance(where, Source) else found
