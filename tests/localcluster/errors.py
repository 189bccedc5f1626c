"""The one exception that callers of the embedded cluster have to know."""


class ClusterError(Exception):
    """The cluster, one of its tools or one of its images is not as asked; the message says what to do."""
