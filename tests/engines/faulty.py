"""A server that speaks OpenAI's chat completions and fails as it is told, on a real socket."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = Callable[["Handler", dict[str, Any]], bool]  # True: the request is answered with that, and is done
Script = Callable[[dict[str, Any], int], Fault | None]  # (request, how often this prompt was asked before) -> fault


def status(code: int, message: str = "no", **headers: str) -> Fault:
    """An HTTP error; header names with _ for -."""

    def act(handler: Handler, body: dict[str, Any]) -> bool:
        handler.send(code, {"error": {"message": message}}, {k.replace("_", "-"): v for k, v in headers.items()})
        return True

    return act


def cut(handler: Handler, body: dict[str, Any]) -> bool:
    """The connection breaks in the middle of the answer."""
    payload = json.dumps(reply(body)).encode()
    handler.begin(200, len(payload), {})
    handler.wfile.write(payload[: len(payload) // 2])
    handler.close_connection = True
    return True


def slow(seconds: float) -> Fault:
    """The answer comes late."""

    def act(handler: Handler, body: dict[str, Any]) -> bool:
        time.sleep(seconds)
        return False

    return act


def trickle(handler: Handler, body: dict[str, Any]) -> bool:
    """The answer comes byte by byte, each in time, never whole."""
    handler.begin(200, 10_000, {})
    for _ in range(100):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)
    return True


def raw(text: str, kind: str = "application/json") -> Fault:
    """A body that is not what it should be."""

    def act(handler: Handler, body: dict[str, Any]) -> bool:
        payload = text.encode()
        handler.begin(200, len(payload), {"content-type": kind})
        handler.wfile.write(payload)
        return True

    return act


def changed(change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> Fault:
    """Other choices than those asked for."""

    def act(handler: Handler, body: dict[str, Any]) -> bool:
        whole = reply(body)
        handler.send(200, {**whole, "choices": change(whole["choices"])})
        return True

    return act


backwards = changed(lambda choices: choices[::-1])
one = changed(lambda choices: choices[:1])
few = changed(lambda choices: choices[: max(len(choices) - 1, 1)])


def refuses(field: str, message: str = "") -> Script:
    """A server that answers 400 to a field."""
    text = message or f"Unsupported parameter: '{field}'"
    return lambda body, before: status(400, text) if field in body else None


def prompt_of(body: dict[str, Any]) -> str:
    """What was asked."""
    return str(body["messages"][-1]["content"])


def reply(body: dict[str, Any]) -> dict[str, Any]:
    """The right answer: its text depends on the prompt, the seed and the choice's number."""
    choices = []
    for i in range(body.get("n", 1)):
        mark = hashlib.sha256(f"{prompt_of(body)}/{body.get('seed')}/{i}".encode()).hexdigest()[:12]
        choice: dict[str, Any] = {"index": i, "message": {"role": "assistant", "content": f"{mark} {prompt_of(body)}"}}
        choice["finish_reason"] = "length" if mark[0] == "0" else "stop"
        if body.get("logprobs"):
            choice["logprobs"] = {"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -0.25}]}
        choices.append(choice)
    used = {"prompt_tokens": 10, "completion_tokens": 3 * len(choices), "total_tokens": 10 + 3 * len(choices)}
    return {"id": "x", "object": "chat.completion", "choices": choices, "usage": used}


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Faulty

    def log_message(self, *args: object) -> None:
        """Silence."""

    def begin(self, code: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {"content-type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(length))
        self.end_headers()

    def send(self, code: int, payload: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        text = json.dumps(payload).encode()
        self.begin(code, len(text), headers or {})
        self.wfile.write(text)

    def do_GET(self) -> None:
        self.send(200, {"object": "list", "data": [{"id": name} for name in self.server.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        fault = self.server.arrived(body, self.headers.get("authorization", ""))
        try:
            if self.path != "/v1/chat/completions":
                self.send(404, {"detail": "Not Found"})
            elif fault is None or not fault(self, body):
                self.send(200, reply(body))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            self.server.left()


class Faulty(ThreadingHTTPServer):
    """The server; a context manager. ``requests`` holds what was asked, ``peak`` how much of it at once."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, script: Script = lambda body, before: None, models: tuple[str, ...] = ("m",)) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.models = script, models
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.times: list[float] = []
        self.running = self.peak = 0
        self._before: Counter[str] = Counter()
        self._lock = threading.Lock()

    def arrived(self, body: dict[str, Any], key: str) -> Fault | None:
        with self._lock:
            self.requests.append(body)
            self.times.append(time.monotonic())
            self.keys.add(key)
            self.running += 1
            self.peak = max(self.peak, self.running)
            before = self._before[prompt_of(body)]
            self._before[prompt_of(body)] += 1
            return self.script(body, before)

    def left(self) -> None:
        with self._lock:
            self.running -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self) -> Faulty:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
