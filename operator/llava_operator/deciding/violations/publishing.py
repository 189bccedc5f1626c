"""Where runs may publish to. Pure."""

import re
from collections.abc import Iterator, Sequence

from llava_api.addresses import ANYTHING, PORT, matches
from llava_api.spec import Spec
from llava_operator.deciding.policy import Policy
from llava_operator.deciding.violations.violation import Violation, show_value

_PART = "[A-Za-z0-9_][A-Za-z0-9._-]*"
PLACE = f"^[a-z0-9]+://[A-Za-z0-9._-]+{PORT}(/{_PART})+"
"""A destination without a registry's tag or a hub's branch."""
DESTINATION = f"{PLACE}([:@]{_PART})?$"


def judge_destinations(spec: Spec, policy: Policy) -> Iterator[Violation]:
    """Whether a run may publish to what it names.

    A bucket is one of whichever server the Secret beside it names, and a repository of the hub one of the hub of
    ``spec.download``: the rules about those are the other half of this one.
    """
    allowed = policy.publish_destinations
    if ANYTHING in allowed or spec.publish is None:
        return
    told = f"only to {', '.join(allowed)}" if allowed else "nowhere"
    for one in spec.publish.destinations:
        if not is_allowed_destination(one.address, allowed):
            yield Violation(
                field="spec.publish.destinations.address",
                value=show_value(one.address),
                rule=f"publishes {told} (policy.publishDestinations)",
                fix="use an allowed one, or leave spec.publish out",
            )


def is_allowed_destination(address: str, allowed: Sequence[str]) -> bool:
    """Whether an address is one of these places, or lies below one."""
    found = re.match(PLACE, address)
    if found is None or not matches(DESTINATION, address):
        return False
    return any(found[0] == one or found[0].startswith(f"{one}/") for one in allowed)
