"""Whether held-out samples are enough to say that one model is better than another. Pure.

What belongs together (a document, a patient) is one observation, however many questions are asked about it, so groups
count and not samples. Of G groups, the most that can speak for a model is all of them; by the sign test (W. J. Dixon
and A. M. Mood, "The Statistical Sign Test", Journal of the American Statistical Association 41, 1946) that happens by
chance, of two equal models, with probability 2 x 0.5^G in one direction or the other. Where even this is above 5 %, no
result says anything at 95 %, and no interval that is honest about so few groups excludes 0: that is so below six.
"""

import math

CONFIDENCE = 0.95
LEAST_GATE_GROUPS = 8
"""A gate says nothing of fewer: no interval was shown to be right for them (docs/evaluation.md)."""


def least_groups(confidence: float = CONFIDENCE) -> int:
    """The fewest groups with which a comparison can come out at this confidence: 6 at 95 %, 8 at 99 %.

    The smallest G with 2 x 0.5^G <= 1 - confidence.
    """
    return math.ceil(math.log2(2 / (1 - confidence)) - 1e-9)


def needed_groups(*, is_gated: bool) -> int:
    """The fewest groups with which scores tell two models apart, or a gate decides where there is one."""
    return LEAST_GATE_GROUPS if is_gated else least_groups()


def can_decide(num_groups: int, *, is_gated: bool) -> bool:
    """Whether scores of so many groups can tell two models apart, or a gate can where there is one."""
    return num_groups >= needed_groups(is_gated=is_gated)


def describe_too_few_retained(num_groups: int) -> str | None:
    """A warning where nothing can be decided of the retention set; None where it can, or nobody has counted groups."""
    if num_groups < 1 or num_groups >= LEAST_GATE_GROUPS:
        return None
    return (
        f"spec.evaluation.retention.dataset has {num_groups} {'group' if num_groups == 1 else 'groups'}, of which it "
        f"decides nothing: that takes {LEAST_GATE_GROUPS}; name a set of more pictures or documents"
    )


def describe_too_few_groups(
    judging: int, selecting: int = 0, *, sufficient_fraction: float | None, is_gated: bool
) -> str | None:
    """A warning where scores cannot decide; None where they can, or nobody has counted groups.

    Args:
        judging: groups that give the scores; 0 where nothing is held out, or they were not counted.
        selecting: groups that select a step.
        sufficient_fraction: the ``validation.fraction`` that would hold out enough; None where none does, or a file
            says what is held out.
        is_gated: whether the spec has an ``evaluation.gate``.
    """
    if judging < 1 or can_decide(judging, is_gated=is_gated):
        return None
    least = needed_groups(is_gated=is_gated)
    selected = f" and {selecting} of them select a step" if selecting else ""
    remedy = (
        f"set spec.dataset.validation.fraction to {sufficient_fraction:g}"
        if sufficient_fraction is not None
        else f"hold out samples of {2 * least if selecting else least} groups at least"
    )
    held_out = f"{judging + selecting} {'group is' if judging + selecting == 1 else 'groups are'} held out{selected}"
    if is_gated:
        return f"{held_out}: of {judging} spec.evaluation.gate decides nothing, which takes {least}; {remedy}"
    return (
        f"{held_out}: scores of {judging} cannot tell the tuned model from its base with {CONFIDENCE:.0%} confidence, "
        f"however clear they are, which takes {least}; {remedy}"
    )
