"""Where the SuperLink fetches the signed bundle: Flower's hub, in the one call that a SuperLink makes, on loopback.

Flower hands on a bundle's signatures only when it got the bundle from a hub. This one knows the coordinator's own
bundle and no other, so nobody can make the SuperLink fetch code from elsewhere either. Undocumented in flwr 1.41
(superlink/servicer/control/control_handlers.py, `_get_remote_fab`).

    POST /v1/hub/fetch-fab     {"app_id", "app_version"}   ->   {"fab_url", "verifications"}
    GET  /bundle               the bundle
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from server.bundle import app_spec
from server.coordinator import Coordinator
from server.review import BUNDLE, read_signatures

MOST = 10_000
"""Bytes of a question; Flower's has about 100."""


def asks_for_ours(question: bytes) -> bool:
    """Whether the one app that there is is asked for, in the version that is installed here."""
    try:
        asked = json.loads(question)
    except ValueError:
        return False
    return isinstance(asked, dict) and f"{asked.get('app_id')}=={asked.get('app_version')}" == app_spec()


class Hub(BaseHTTPRequestHandler):
    def __init__(self, bundle: Path, *arguments: Any) -> None:
        self.bundle = bundle
        super().__init__(*arguments)

    def do_POST(self) -> None:
        size = self.headers.get("Content-Length", "")
        asked = self.rfile.read(int(size)) if size.isdigit() and int(size) <= MOST else b""
        if self.path != "/v1/hub/fetch-fab" or not asks_for_ours(asked) or not self.bundle.exists():
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        port = self.connection.getsockname()[1]
        told = [one.model_dump() for one in read_signatures(self.bundle)]
        answer = {"fab_url": f"http://127.0.0.1:{port}/bundle", "verifications": told}
        self.answer(json.dumps(answer).encode(), "application/json")

    def do_GET(self) -> None:
        if self.path != "/bundle" or not self.bundle.exists():
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self.answer(self.bundle.read_bytes(), "application/octet-stream")

    def answer(self, content: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Said nowhere: a run is in the SuperLink's log."""


@contextmanager
def running_hub(coordinator: Coordinator) -> Iterator[str]:
    """A hub on a free port; gives its address, as the SuperLink's environment wants it."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, coordinator.bundle / BUNDLE)) as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{hub.server_address[1]}/v1"
        finally:
            hub.shutdown()
            thread.join()
