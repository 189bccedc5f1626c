"""moto's S3 server over TLS."""

import io
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from tests.trainer.servers.authority import Authority

KEYS = {"access_key_id": "key-id", "secret_access_key": "secret-key"}


@contextmanager
def run_s3(
    authority: Authority, address: str = "127.0.0.1", guard: Callable[[Any], Any] = lambda app: app
) -> Iterator[str]:
    """The endpoint of a server that holds nothing yet; ``guard`` stands before its WSGI application."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = guard(DomainDispatcherApplication(create_backend_app))
    server = make_server(address, 0, app, threaded=True, ssl_context=authority.server_context)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"https://{address}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def open_bucket(endpoint: str, authority: Authority) -> Any:
    """A client to put objects with."""
    return boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", verify=str(authority.ca_file), config=Config(
            signature_version="s3v4", s3={"addressing_style": "path"}
        ), aws_access_key_id=KEYS["access_key_id"], aws_secret_access_key=KEYS["secret_access_key"],
    )  # fmt: skip


def upload_in_parts(client: Any, key: str, content: bytes) -> None:
    client.upload_fileobj(
        io.BytesIO(content), "bucket", key, Config=TransferConfig(5 << 20, multipart_chunksize=5 << 20)
    )
