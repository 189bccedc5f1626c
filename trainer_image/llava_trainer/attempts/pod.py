"""Which pod this is, as Kubernetes tells by the environment."""

import os

from llava_api.constants import ENV_COMPLETION_INDEX, ENV_INDEX_FAILURES, ENV_POD_NAME


def pod_name() -> str:
    """This pod's name; empty outside of a pod."""
    return os.environ.get(ENV_POD_NAME, "")


def pod_index() -> int:
    """Its completion index: the node rank in training, the shard in evaluation."""
    return int(os.environ.get(ENV_COMPLETION_INDEX, "0"))


def pod_try() -> int:
    """How many pods of its index have failed before it in this attempt, as the Job controller counts; 0 if unknown."""
    said = (os.environ.get(name, "") for name in ENV_INDEX_FAILURES)
    return sum(int(text) for text in said if text.isascii() and text.isdecimal() and len(text) <= 9)
