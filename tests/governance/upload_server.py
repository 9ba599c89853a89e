"""Uploads of a local fake of the hub: repositories, large files by Git LFS, commits; a bearer token."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.serving import serving

TOKEN = "hf_" + "a" * 34
LARGE = (".safetensors", ".parquet")


class Hub(ThreadingHTTPServer):
    """The state of the hub."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, Any]] = {}
        self.objects: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.fail: dict[str, int] = {}
        """Part of a path -> status with which the next request for it is answered."""
        self.silent = self.page = ""
        """Part of a path whose requests get no answer, or a page of HTML."""
        self.over = threading.Event()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refused(self) -> bool:
        if self.server.silent and self.server.silent in self.path:
            self.server.over.wait(300)
            return True
        if self.server.page and self.server.page in self.path:
            self.send_response(200)
            self.send_header("Content-Length", "6")
            self.end_headers()
            self.wfile.write(b"<html>")
            return True
        part = next((part for part in self.server.fail if part in self.path), None)
        if part is not None:
            self._answer({"error": "planted"}, self.server.fail[part])
        elif not self.path.startswith("/objects/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer({"error": "Invalid username or password."}, 401)
        else:
            return False
        return True

    def do_GET(self) -> None:
        if self._refused():
            return
        path = self.path.partition("?")[0]
        name = "/".join(path.split("/")[3:5])
        if path.startswith(("/api/models/", "/api/datasets/")) and name in self.server.repositories:
            files = [{"type": "file", "path": file, "oid": "0" * 40, "size": len(data), "rfilename": file}
                     for file, data in sorted(self.server.files.items())]  # fmt: skip
            made = self.server.repositories[name]
            private = made.get("private", made.get("visibility") == "private")
            self._answer(files if "/tree/" in path else {"id": name, "private": private, "siblings": files})
        else:
            self._answer({"error": f"no {self.path}"}, 404)

    def do_PUT(self) -> None:
        body = self._body()
        if not self._refused():
            self.server.objects[self.path.rpartition("/")[2]] = body
            self._answer({})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_POST(self) -> None:
        body = self._body()
        if self._refused():
            return
        hub, path = self.server, self.path.partition("?")[0]
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            status = 409 if name in hub.repositories else 200
            hub.repositories.setdefault(name, asked)
            self._answer({"url": f"{hub.endpoint}/{name}", "name": name}, status)
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular",
                      "shouldIgnore": False, "oid": None} for f in files]  # fmt: skip
            self._answer({"files": modes})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            answer = [
                {**one, "actions": {"upload": {"href": f"{hub.endpoint}/objects/{one['oid']}", "header": {}}}}
                for one in objects
            ]
            self._answer({"transfer": "basic", "objects": answer})
        elif "/commit/" in path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    hub.files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    hub.files[value["path"]] = hub.objects[value["oid"]]
                elif entry["key"] == "deletedFile":
                    del hub.files[value["path"]]
            name = path.split("/", 3)[3].partition("/commit/")[0]
            url = f"{hub.endpoint}/{name}/commit/{'c' * 40}"
            self._answer({"success": True, "commitOid": "c" * 40, "commitUrl": url})
        else:
            self._answer({"error": f"no {path}"}, 404)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that ends with the context."""
    with serving(Hub()) as hub:
        try:
            yield hub
        finally:
            hub.over.set()
