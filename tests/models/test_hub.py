"""A server that does not answer is waited for once, for seconds, and not at all in the hub's offline mode."""

import io
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from models import hub


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No server is known to be unreachable, and none is asked through a proxy."""
    monkeypatch.setattr(hub, "_unreachable", {})
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def silent_server():
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_silent_server_is_asked_once_for_a_bounded_time(silent_server, monkeypatch):
    monkeypatch.setattr(hub, "REQUEST_SECONDS", 0.3)
    start = time.monotonic()
    with pytest.raises(OSError, match=r"did not answer within 0.3 s|timed out"):
        hub.check_server(f"http://{silent_server}/weights")
    assert 0.2 < time.monotonic() - start < 3
    monkeypatch.setattr(hub.urllib.request, "urlopen", lambda *_, **__: pytest.fail("asked again"))
    with pytest.raises(OSError, match=r"did not answer|timed out"):
        hub.check_server(f"http://{silent_server}/other weights")


def test_a_name_that_cannot_be_resolved_in_time_is_no_longer_waited_for(monkeypatch):
    released = threading.Event()

    def respond_late(*_, **__):
        released.wait(20)
        return io.BytesIO()

    monkeypatch.setattr(hub, "REQUEST_SECONDS", 0.2)
    monkeypatch.setattr(hub.urllib.request, "urlopen", respond_late)
    with pytest.raises(OSError, match=r"hub\.invalid did not answer"):
        hub.check_server("https://hub.invalid/weights")
    released.set()


def test_an_http_error_is_an_answer():
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(404)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub.check_server(f"http://127.0.0.1:{server.server_port}/weights")
        server.shutdown()
    assert not hub._unreachable


def test_the_hub_is_not_asked_in_its_offline_mode(monkeypatch):
    monkeypatch.setattr(hub.huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.urllib.request, "urlopen", lambda *_, **__: pytest.fail("used the network"))
    with pytest.raises(OSError, match="HF_HUB_OFFLINE is set"):
        hub.check_reachable("owner/name", "weights")
