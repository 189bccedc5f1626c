"""The whole dataset: read, checked, compared with itself, split."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llava_api.run_config import RunConfig
from llava_api.spec import Dataset, Ubiai
from llava_trainer.data.check import Checked, Checker, PictureFolder
from llava_trainer.data.conversations import read_conversations
from llava_trainer.data.entries import ReadingPosition
from llava_trainer.data.findings import Finding, Findings, Kind, noted, refused
from llava_trainer.data.images import PictureFacts, resolve_inside
from llava_trainer.data.processing import Processing
from llava_trainer.data.samples import Sample
from llava_trainer.data.split import SplitError, split_by_group
from llava_trainer.data.ubiai import read_ubiai


@dataclass(frozen=True, kw_only=True)
class PreparedDataset:
    """What prepare knows about the data; ``findings`` tells whether it may be trained on.

    Attributes:
        train: samples to train on, in the export's order.
        validation: samples held out.
        num_read: samples that the export holds, usable or not.
        pictures: facts of every usable picture, by path.
        findings: everything found.
    """

    train: list[Checked] = field(default_factory=list)
    validation: list[Checked] = field(default_factory=list)
    num_read: int = 0
    pictures: dict[str, PictureFacts] = field(default_factory=dict)
    findings: Findings = field(default_factory=Findings)


def prepare_dataset(
    config: RunConfig, processing: Processing, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> PreparedDataset:
    """Read and check everything that the configuration names; bad data is found, not raised.

    Args:
        config: names dataset, split and prompts.
        processing: the checkpoint's, to count tokens with.
        on_progress: told the samples checked and their total.
    """
    dataset = config.dataset
    findings = Findings()
    folder = PictureFolder(root=config.dataset_dir, name=dataset.images)
    checker = Checker(folder, processing, config.training.max_length, findings)
    # Every sample is held in memory (see json_file): the split needs all of them.
    files = [dataset.file] if dataset.validation.file is None else [dataset.file, dataset.validation.file]
    read = [list(_read(dataset, config.dataset_dir, name)) for name in files]
    total = sum(isinstance(item, Sample) for items in read for item in items)
    counter = itertools.count(1)
    checked = [list(checker.check_all(items, lambda: on_progress(next(counter), total))) for items in read]
    _check_prompts(config, folder, checker, findings)
    train, validation = _split(config, checked, findings)
    _compare(train, validation, findings)
    pictures = {path: facts for path, facts in checker.pictures.items() if isinstance(facts, PictureFacts)}
    used = {path for item in (*train, *validation) for path in item.sample.images}
    return PreparedDataset(
        train=train,
        validation=validation,
        num_read=total,
        pictures={path: pictures[path] for path in sorted(used)},
        findings=findings,
    )


def _read(dataset: Dataset, root: Path, name: str) -> Iterator[Sample | Finding]:
    num_samples = 0
    complained = False
    for item in _read_format(dataset, root, name):
        num_samples += isinstance(item, Sample)
        complained |= isinstance(item, Finding) and item.kind is Kind.REFUSED
        yield item
    if num_samples == 0 and not complained:
        yield refused(name, "holds no sample")


def _read_format(dataset: Dataset, root: Path, name: str) -> Iterator[Sample | Finding]:
    try:
        path = resolve_inside(root, root, name)
    except (PermissionError, FileNotFoundError, ValueError) as error:
        yield refused(name, f"{error} (in {dataset.source})")
        return
    position = ReadingPosition()
    if dataset.format == "llava":
        yield from read_conversations(path, name, position)
        return
    settings = dataset.ubiai or Ubiai()
    if settings.documents is not None:
        try:
            resolve_inside(root, root, settings.documents)
        except (PermissionError, FileNotFoundError, ValueError) as error:
            yield refused(settings.documents, f"(dataset.ubiai.documents) {error}")
            return
    yield from read_ubiai(name, settings, lambda relative: resolve_inside(root, root, relative), position)


def _check_prompts(config: RunConfig, folder: PictureFolder, checker: Checker, findings: Findings) -> None:
    for index, prompt in enumerate(config.evaluation.prompts):
        if prompt.image is None:
            continue
        problem = checker.check_picture(prompt.image)
        if problem is not None:
            name = folder.display_name(prompt.image)
            findings.add(refused(f"evaluation.prompts[{index}]", f"picture {name} {problem}"))


def _split(
    config: RunConfig, checked: Sequence[list[Checked]], findings: Findings
) -> tuple[list[Checked], list[Checked]]:
    if config.dataset.validation.file is not None:
        return checked[0], checked[1]
    items = checked[0]
    fraction = config.dataset.validation.fraction
    if fraction is None or not items:
        return items, []
    try:
        return split_by_group(
            items,
            [item.group for item in items],
            [item.sample.num_pairs for item in items],
            fraction=fraction,
            seed=config.training.seed,
        )
    except SplitError as error:
        # Entries that were refused may hold the other pictures: they are the thing to tell then.
        if not findings.num_refused:
            findings.add(refused(config.dataset.file, str(error)))
        return items, []


def _compare(train: Sequence[Checked], validation: Sequence[Checked], findings: Findings) -> None:
    """Note what stands in the data more than once."""
    _compare_pictures((*train, *validation), findings)
    trained = _compare_pairs(train, findings)
    for item in validation:
        for _, question, _ in item.sample.pairs():
            if (item.group, question.text) in trained:
                findings.add(noted(Kind.OVERLAP, item.sample.source, f"{question.text!r:.80}"))
    _compare_pairs(validation, findings)


def _compare_pictures(items: Sequence[Checked], findings: Findings) -> None:
    paths: dict[str, str] = {}
    seen: set[str] = set()
    for item in items:
        for path in item.sample.images:
            if path in seen:
                continue
            seen.add(path)
            first = paths.setdefault(item.group, path)
            if first != path:
                findings.add(noted(Kind.SAME_PICTURE, path, f"same pixels as {first}"))


def _compare_pairs(items: Sequence[Checked], findings: Findings) -> dict[tuple[str, str], str]:
    """Note repeated and contradicting pairs of one side; returns its answers by (picture, question)."""
    answers: dict[tuple[str, str], str] = {}
    for item in items:
        for _, question, answer in item.sample.pairs():
            key = (item.group, question.text)
            if key not in answers:
                answers[key] = answer.text
                continue
            known, told = answers[key], f"{question.text!r:.80}"
            if known == answer.text:
                findings.add(noted(Kind.REPEATED_PAIR, item.sample.source, told))
            else:
                findings.add(
                    noted(Kind.CONTRADICTION, item.sample.source, f"{told}: {known!r:.40} and {answer.text!r:.40}")
                )
    return answers
