"""What of a run goes beyond what the installation lets runs ask for (``policy``). Pure.

The chart's ValidatingAdmissionPolicy says the same in CEL, word for word; one table of cases (``tests/policies.py``)
drives both. What is read is read with patterns that CEL takes, too (``image_references``, ``llava_api.addresses``).
"""

from llava_operator.deciding.violations.finding import find_violations, judge_sending
from llava_operator.deciding.violations.violation import Violation, describe_violations

__all__ = ["Violation", "describe_violations", "find_violations", "judge_sending"]
