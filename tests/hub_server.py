"""The Hugging Face hub's HTTP interface for data sets and models, on this machine.

`HubServer(repositories)` is a context manager; `url` is for HF_ENDPOINT. A repository is
`HubRepository(commit, branches, files)`; `failures` are statuses to answer with, one a request, before it works.
"""

import contextlib
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from tests.serving import serving


@dataclass
class HubRepository:
    """A data set or model: its files at one commit, and the names of that commit."""

    files: dict[str, bytes]
    commit: str = "c" * 40
    branches: tuple[str, ...] = ("main",)
    token: str = ""
    """A token that a request must carry; "": none."""
    gated: bool = False


@dataclass
class HubServer:
    """A local server of repositories; counts requests."""

    repositories: dict[str, HubRepository]
    failures: list[int] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    """Files of which half is sent, once each."""
    requests: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_HEAD(self):
                hub.answer(self, body=False)

            def do_GET(self):
                hub.answer(self, body=True)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(serving(self._server))
        return self

    def __exit__(self, *_):
        self._stack.close()

    def answer(self, request, body):
        self.requests.append(f"{request.command} {request.path}")
        if self.failures:
            return self._send(request, self.failures.pop(0), b"", {})
        listed = re.match(r"/api/(?:datasets|models)/([^/]+/[^/?]+)(?:/revision/([^/?]+))?(\?|$)", request.path)
        tree = re.match(r"/api/(?:datasets|models)/([^/]+/[^/]+)/tree/([^/?]+)/?([^?]*)", request.path)
        fetched = re.match(r"(?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)", request.path)
        match = listed or tree or fetched
        name, revision = match.group(1, 2) if match else ("", "")
        revision = unquote(revision or "main")
        repository = self.repositories.get(name)
        if repository is None:
            return self._send(request, 404, b"", {"X-Error-Code": "RepoNotFound"})
        if repository.gated:
            return self._send(request, 403, b"", {"X-Error-Code": "GatedRepo"})
        if repository.token and request.headers.get("Authorization") != f"Bearer {repository.token}":
            return self._send(request, 401, b"", {"X-Error-Code": "RepoNotFound"})
        if revision not in (repository.commit, *repository.branches):
            return self._send(request, 404, b"", {"X-Error-Code": "RevisionNotFound"})
        if listed:
            files = [
                {"rfilename": file, "size": len(data), "blobId": hashlib.sha1(data).hexdigest(),
                 "lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 1}}
                for file, data in repository.files.items()
            ]  # fmt: skip
            about = {"id": name, "sha": repository.commit, "siblings": files}
            return self._send(request, 200, json.dumps(about).encode(), {"Content-Type": "application/json"})
        if tree:
            return self._send(request, 200, json.dumps(self._tree(repository, unquote(tree[3]))).encode(), {})
        data = repository.files.get(unquote(fetched[3]))
        if data is None:
            return self._send(request, 404, b"", {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": repository.commit}
        if body and fetched[3] in self.torn:
            self.torn.remove(fetched[3])
            return self._send(request, 200, data, headers, sent=len(data) // 2)
        ranged = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        if ranged and body:
            return self._send(request, 206, data[int(ranged[1]) : int(ranged[2]) + 1], headers)
        return self._send(request, 200, data, headers, sent=None if body else 0)

    @staticmethod
    def _tree(repository, folder):
        """The files and folders directly below a folder, as the hub lists them."""
        entries = {}
        for file, data in repository.files.items():
            if folder and not file.startswith(folder + "/"):
                continue
            part, _, rest = file.removeprefix(folder + "/" if folder else "").partition("/")
            path = f"{folder}/{part}".lstrip("/")
            oid = hashlib.sha1(data).hexdigest()
            entries[path] = {"type": "directory" if rest else "file", "path": path, "oid": oid,
                             "size": 0 if rest else len(data)}  # fmt: skip
        return list(entries.values())

    def _send(self, request, status, data, headers, sent=None):
        request.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(data[:sent])
        request.close_connection = True
