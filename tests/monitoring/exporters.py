"""What a Prometheus is given besides the operator: kube-state-metrics for real, DCGM as a text written by hand."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.localcluster import processes
from tests.localcluster.instance import Instance
from tests.localcluster.tools import KUBE_STATE_METRICS, ensure_tools

DCGM_FILE = Path(__file__).with_name("dcgm.txt")
_STATE_METRICS = "kube-state-metrics"
_PORT, _OWN_PORT = 9091, 9092
# What the dashboards name of it, and no more to scrape than that.
_USED = ("kube_pod_status_phase", "kube_pod_container_resource_limits", "kube_pod_container_resource_requests")


def ensure_kube_state_metrics(instance: Instance) -> str:
    """Start kube-state-metrics beside a cluster unless it runs; returns its address."""
    address = f"{instance.loopback}:{_PORT}"
    if not any(one.name == _STATE_METRICS and one.is_alive() for one in processes.recorded(instance.state_dir)):
        processes.start(
            _STATE_METRICS,
            [
                ensure_tools((KUBE_STATE_METRICS,)).path(_STATE_METRICS),
                f"--kubeconfig={instance.kubeconfig}",
                f"--host={instance.loopback}",
                f"--port={_PORT}",
                f"--telemetry-host={instance.loopback}",
                f"--telemetry-port={_OWN_PORT}",
                "--resources=pods",
                f"--metric-allowlist={','.join(_USED)}",
            ],
            state_dir=instance.state_dir,
        )
    return address


@contextmanager
def serve_recorded(text: str) -> Iterator[str]:
    """Serve an exposition as an exporter would; yields the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = text.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(ConnectionError):  # a scrape that took too long is broken off
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
