"""Entry point of ``llava-notifier``."""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from llava_api.constants import (
    DOWNLOAD_CA_PATH,
    ENV_DELIVERY,
    NOTIFICATION_SECRET_PATH,
    SECRETS_PATH,
    TERMINATION_LOG_PATH,
    TERMINATION_MESSAGE_MAX_BYTES,
    SecretRole,
)
from llava_api.delivery import EXIT_REFUSED, EXIT_UNREACHED, Delivery
from llava_api.text import cut, escape
from llava_notifier.request import Files, SetupError, build_request
from llava_notifier.sending import Outcome, deliver

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Deliver what the environment says, and exit with what has become of it."""
    parser = argparse.ArgumentParser(description="Sends one notification, as LLAVA_DELIVERY says.")
    parser.add_argument("--secret", type=Path, default=Path(NOTIFICATION_SECRET_PATH))
    parser.add_argument("--proxies", type=Path, default=Path(SECRETS_PATH) / SecretRole.DOWNLOAD)
    parser.add_argument("--authorities", type=Path, default=Path(DOWNLOAD_CA_PATH))
    parser.add_argument("--termination-log", type=Path, default=Path(TERMINATION_LOG_PATH))
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    files = Files(secret=given.secret, proxies=given.proxies, authorities=given.authorities)
    outcome = asyncio.run(_run(os.environ.get(ENV_DELIVERY, ""), files))
    message = escape(outcome.message)
    logger.log(logging.ERROR if outcome.exit_code else logging.INFO, "%s", message)
    with contextlib.suppress(OSError):
        given.termination_log.write_text(cut(message, max_bytes=TERMINATION_MESSAGE_MAX_BYTES))
    sys.exit(outcome.exit_code)


async def _run(text: str, files: Files) -> Outcome:
    try:
        delivery = Delivery.model_validate_json(text)
        request = build_request(delivery, files)
    except ValidationError:
        return Outcome(exit_code=EXIT_REFUSED, message=f"{ENV_DELIVERY} holds nothing that can be sent")
    except SetupError as error:
        return Outcome(exit_code=EXIT_REFUSED, message=str(error))
    sending = asyncio.create_task(deliver(request, delivery.patience))
    # Process 1 of a container is not ended by a signal that it does not handle.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, sending.cancel)
    try:
        return await sending
    except asyncio.CancelledError:
        return Outcome(exit_code=EXIT_UNREACHED, message="asked to stop before it was delivered")


if __name__ == "__main__":
    main()
