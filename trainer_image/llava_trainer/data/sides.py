"""Which samples are learned from, which select a step, and which give the scores: whole groups on one side each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llava_api.judging import can_decide, describe_too_few_groups, needed_groups
from llava_trainer.data.findings import Findings, Kind, noted, refused
from llava_trainer.data.request import DatasetRequest
from llava_trainer.data.sample_table import SampleTable
from llava_trainer.data.split import (
    LEAST_OF_EACH,
    Group,
    SplitError,
    choose_held_out,
    choose_selecting,
    find_fraction,
)


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Sides of the samples of a dataset.

    Attributes:
        held_out: bool [samples]: not learned from.
        selecting: bool [samples]: those of them that select a step; the others give the scores.
        sufficient_fraction: dataset.validation.fraction that would hold out enough groups for scores to decide by; None
            where they do, or no fraction does.
    """

    held_out: np.ndarray
    selecting: np.ndarray
    sufficient_fraction: float | None = None


def choose_sides(
    table: SampleTable, group_of: np.ndarray, groups: Sequence[Group], request: DatasetRequest, findings: Findings
) -> Sides:
    """Choose; what cannot be chosen as it was asked for is refused in ``findings``."""
    held_out = _hold_out(table, group_of, groups, request, findings)
    selecting = _choose_selecting(held_out, table, group_of, groups, request, findings)
    num_judging = len(np.unique(group_of[held_out & ~selecting]))
    fraction = (
        None if can_decide(num_judging, is_gated=request.is_gated) else _find_sufficient_fraction(groups, request)
    )
    if findings.num_refused == 0:
        _warn_of_few_groups(num_judging, len(np.unique(group_of[selecting])), fraction, request, findings)
    return Sides(held_out=held_out, selecting=selecting, sufficient_fraction=fraction)


def _warn_of_few_groups(
    num_judging: int, num_selecting: int, fraction: float | None, request: DatasetRequest, findings: Findings
) -> None:
    warning = describe_too_few_groups(
        num_judging, num_selecting, sufficient_fraction=fraction, is_gated=request.is_gated
    )
    if warning is not None:
        findings.add(noted(Kind.TOO_FEW_GROUPS, request.dataset.validation.file or request.dataset.file, warning))


def _find_sufficient_fraction(groups: Sequence[Group], request: DatasetRequest) -> float | None:
    if not request.hold_out or request.dataset.validation.file is not None or len(groups) < 2:
        return None
    wanted = needed_groups(is_gated=request.is_gated) * (2 if request.selects else 1)
    return find_fraction({group.key: group.weight for group in groups}, wanted=wanted, seed=request.seed)


def _hold_out(
    table: SampleTable, group_of: np.ndarray, groups: Sequence[Group], request: DatasetRequest, findings: Findings
) -> np.ndarray:
    """Which samples are held out, bool [samples]."""
    validation = request.dataset.validation
    nothing = np.zeros(len(table), dtype=bool)
    if not request.hold_out:
        return nothing
    if validation.file is not None:
        return table.from_validation
    if validation.fraction is None or not len(table):
        return nothing
    sizes = {group.key: group.weight for group in groups}
    try:
        chosen = choose_held_out(sizes, fraction=validation.fraction, seed=request.seed)
    except SplitError as error:
        # Entries that were refused may hold the other images: they are the thing to tell then.
        if not findings.num_refused:
            findings.add(refused(request.dataset.file, str(error)))
        return nothing
    held_out: np.ndarray = np.array([group.key in chosen for group in groups])[group_of]
    return held_out


def _choose_selecting(
    held_out: np.ndarray, table: SampleTable, group_of: np.ndarray, groups: Sequence[Group], request: DatasetRequest,
    findings: Findings,
) -> np.ndarray:  # fmt: skip
    """Which held-out samples select a step, bool [samples]."""
    nothing = np.zeros(len(table), dtype=bool)
    if not len(table) or findings.num_refused:
        return nothing
    if request.validates and not held_out.any():
        findings.add(
            refused(
                request.dataset.file,
                "nothing is held out that spec.training.validation could look at: set dataset.validation.fraction or "
                "file, or leave training.validation out",
            )
        )
    if not request.selects or not held_out.any():
        return nothing
    weights = np.bincount(group_of[held_out], weights=table.num_pairs[held_out], minlength=len(groups))
    sizes = {group.key: int(weight) for group, weight in zip(groups, weights, strict=True) if weight}
    try:
        chosen = choose_selecting(sizes, seed=request.seed)
    except SplitError as error:
        findings.add(refused(request.dataset.file, f"{error}: {_tell_fraction(groups, request)}"))
        return nothing
    selecting: np.ndarray = held_out & np.array([group.key in chosen for group in groups])[group_of]
    return selecting


def _tell_fraction(groups: Sequence[Group], request: DatasetRequest) -> str:
    """What to do where too few groups are held out."""
    otherwise = "or leave keepBest and earlyStopping out"
    if request.dataset.validation.file is not None:
        return f"add samples of other groups to dataset.validation.file, {otherwise}"
    sizes = {group.key: group.weight for group in groups}
    fraction = find_fraction(sizes, wanted=2 * LEAST_OF_EACH, seed=request.seed) if len(sizes) > 1 else None
    if fraction is None:
        return f"the dataset has {len(groups)} groups in all, so add others, {otherwise}"
    return f"set dataset.validation.fraction to {fraction:g}, {otherwise}"
