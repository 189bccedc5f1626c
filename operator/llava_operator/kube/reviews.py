"""Asks the API server who somebody is, and what they may do: so many questions at a time."""

import asyncio
from collections.abc import Sequence

from llava_operator.kube.client import Kube
from llava_operator.kube.kinds import SUBJECT_ACCESS_REVIEWS, TOKEN_REVIEWS
from llava_operator.kube.objects import Object

MAX_REVIEWS = 8
"""Reviews under way at the same time; more than that and the API server is the bottleneck."""
MAX_WAIT_S = 5.0
"""Longest wait for one of them to end."""


class BusyError(Exception):
    """Nobody is asked now."""


class Reviews:
    """TokenReviews and SubjectAccessReviews."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._slots = asyncio.Semaphore(MAX_REVIEWS)

    async def review_token(self, token: str, audiences: Sequence[str] = ()) -> Object:
        """What the API server says of a token: the status of a TokenReview.

        Args:
            token: as it came.
            audiences: one of which it must be for; none means the API server's own.

        Raises:
            BusyError: too many others are being reviewed.
            KubeError: the API server could not be asked.
        """
        spec = {"token": token, **({"audiences": list(audiences)} if audiences else {})}
        return await self._ask("TokenReview", spec)

    async def may_get(self, user: Object, path: str) -> bool:
        """Whether a user, as a TokenReview has it, may get a path that is no resource's.

        Raises:
            BusyError: too many others are being reviewed.
            KubeError: the API server could not be asked.
        """
        who = {"user": user.get("username"), "uid": user.get("uid"), "groups": user.get("groups"),
               "extra": user.get("extra")}  # fmt: skip
        spec = {key: value for key, value in who.items() if value}
        status = await self._ask(
            "SubjectAccessReview", {**spec, "nonResourceAttributes": {"path": path, "verb": "get"}}
        )
        return status.get("allowed") is True and status.get("denied") is not True

    async def _ask(self, what: str, spec: Object) -> Object:
        kind = {"TokenReview": TOKEN_REVIEWS, "SubjectAccessReview": SUBJECT_ACCESS_REVIEWS}[what]
        body = {"apiVersion": kind.api.removeprefix("apis/"), "kind": what, "spec": spec}
        try:
            async with asyncio.timeout(MAX_WAIT_S):
                await self._slots.acquire()
        except TimeoutError:
            raise BusyError from None
        try:
            answer = await self._kube.create(kind, None, body)
        finally:
            self._slots.release()
        status = answer.get("status")
        return status if isinstance(status, dict) else {}
