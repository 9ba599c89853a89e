"""An OpenAI-style endpoint on this machine: its answers depend on the request alone, and it fails as planned."""

import contextlib
import json
import threading
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.serving import serving

KEY = "sk-planted-4242"


class Teacher(ThreadingHTTPServer):
    """The server. `plan(number, body)` returns None, or (status, headers, body) in place of the answer."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, plan=None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.plan, self.bodies, self.headers, self.guard = plan, [], [], threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


def answer(body, **changes):
    """The answer to a request: texts and counts made from it."""
    prompt = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
    mark = sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:12]
    texts = [f"Tale {mark}-{number} of: {prompt}" for number in range(body["n"])]
    choices = [
        {"index": number, "finish_reason": "stop"}
        | ({"text": text} if "prompt" in body else {"message": {"role": "assistant", "content": text}})
        for number, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": sum(len(text.split()) for text in texts)}
    return {"id": mark, "model": f"{body['model']}-2026", "choices": choices, "usage": usage} | changes


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.guard:
            number = len(server.bodies)
            server.bodies.append(body)
            server.headers.append(dict(self.headers) | {"path": self.path})
        planned = server.plan(number, body) if server.plan else None
        status, headers, data = planned or (200, {}, answer(body))
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, *words):
        pass


def teacher(plan=None):
    return serving(Teacher(plan))
