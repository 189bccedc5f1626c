"""moto's S3 server over TLS."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from moto.server import DomainDispatcherApplication, create_backend_app
from obstore.store import S3Store
from werkzeug.serving import make_server

from tests.trainer.servers.authority import Authority

KEYS = {"access_key_id": "key-id", "secret_access_key": "secret-key"}


@contextmanager
def run_s3(authority: Authority, address: str = "127.0.0.1") -> Iterator[str]:
    """The endpoint of a server that holds nothing yet."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = DomainDispatcherApplication(create_backend_app)
    server = make_server(address, 0, app, threaded=True, ssl_context=authority.server_context)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"https://{address}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def open_bucket(endpoint: str, authority: Authority, bucket: str) -> S3Store:
    """A store to put objects with."""
    return S3Store(
        bucket, endpoint=endpoint, region="us-east-1", client_options={"root_certificate": authority.pem}, **KEYS
    )  # fmt: skip
