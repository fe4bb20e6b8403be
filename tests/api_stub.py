"""An OpenAI-compatible endpoint on this machine that answers, fails, stalls and talks nonsense as it is told."""

import hashlib
import json
import socket
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

STALL_S = 5.0  # longer than any test's timeout; a stub that closes ends it


def number(text: str) -> int:
    """The same for the same text on any machine."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


def candidates(prompt: str) -> list[str]:
    """The titles of template 0's second list."""
    lines = prompt.split("\n")
    return lines[[line.endswith("is one of these:") for line in lines].index(True) + 1 : -2]


def some_candidate(prompt: str) -> str:
    """An answer that depends on the question alone."""
    return candidates(prompt)[number(prompt) % len(candidates(prompt))]


class Stub:
    """``answer(prompt)`` is the text, ``fault(prompt, attempt)`` names what goes wrong instead (attempts from 0)."""

    KEY = "sk-stub-0123456789"

    def __init__(self) -> None:
        self.answer: Callable[[str], str | None] = some_candidate
        self.fault: Callable[[str, int], str | None] = lambda prompt, attempt: None
        self.prompts: list[str] = []  # of all requests
        self.bodies: list[dict[str, Any]] = []
        self.authorised = True  # every request had the key
        self._attempts: Counter[str] = Counter()
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> "Stub":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *details: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = body["messages"][-1]["content"]
                with stub._lock:
                    stub.prompts.append(prompt)
                    stub.bodies.append(body)
                    stub.authorised &= self.headers["Authorization"] == f"Bearer {stub.KEY}"
                    attempt = stub._attempts[prompt]
                    stub._attempts[prompt] += 1
                with suppress(ConnectionError):  # the client gave up first
                    stub._reply(self, prompt, stub.fault(prompt, attempt))

            def log_message(self, *arguments: object) -> None:
                pass

        return Handler

    def _reply(self, handler: BaseHTTPRequestHandler, prompt: str, fault: str | None) -> None:
        if fault == "drop":
            handler.connection.shutdown(socket.SHUT_RDWR)
        elif fault == "stall":
            self._closing.wait(STALL_S)
        elif fault == "half":
            send(handler, 200, b'{"choices": [', claimed=1000)
        elif fault == "nonsense":
            send(handler, 200, b"<html>Welcome to the hotel</html>")
        elif fault == "empty":
            send(handler, 200, b"{}")
        elif fault is not None:
            code, _, rest = fault.partition(" ")
            kind, _, value = rest.partition(" ")
            headers = {kind: value} if kind in ("Retry-After", "Location") else {}
            error = {"message": f"{fault} for {self.KEY}", "code": kind or None}
            send(handler, int(code), json.dumps({"error": error}).encode(), headers)
        else:
            send(handler, 200, json.dumps(self.completion(prompt)).encode())

    def completion(self, prompt: str) -> dict[str, Any]:
        """A whole answer; tokens are words."""
        text = self.answer(prompt)
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": len((text or "").split())}
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return {"model": "stub-1-2026", "choices": [choice], "usage": usage}


def send(
    handler: BaseHTTPRequestHandler,
    code: int,
    content: bytes,
    headers: dict[str, str] | None = None,
    claimed: int | None = None,
) -> None:
    """One HTTP answer; ``claimed`` is a length that it has not."""
    handler.send_response(code)
    handler.send_header("Content-Length", str(claimed or len(content)))
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content)
