"""A stand-in for W&B's server on this machine: it keeps wandb's uploads, and fails on request.

It supports the requests of wandb 0.31's own process when it follows or syncs a run: some of GraphQL (runs, artifacts,
their manifests and uses, files), the file stream, and uploads. Rows of a history are kept under their line number, as
on the real one: a stream that begins again at line 0 overwrites them.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.serving import serving

WELL, SILENT, BROKEN, AWAY = "well", "silent", "broken", "away"


class StandIn(ThreadingHTTPServer):
    """The server's content: runs by id, artifacts by collection, and their users."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        self.health = WELL
        self.asked = 0
        """Requests that reached it, whatever came of them."""
        self.runs: dict[str, dict[str, Any]] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.manifests: dict[str, Any] = {}
        self.used: list[tuple[str, str]] = []
        """(run, artifact's id)"""
        self.files: dict[str, bytes] = {}
        self.sweep = ""
        """A sweep's file, and its trials as the server's agent commands."""
        self.trials: list[dict[str, Any]] = []
        self.lock, self.over = threading.Lock(), threading.Event()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is not reported."""

    def run(self, name: str) -> dict[str, Any]:
        empty: dict[str, Any] = {"history": {}, "summary": {}, "config": {}, "exit": None, "upserts": 0}
        return self.runs.setdefault(name, empty)

    def history(self, name: str) -> list[dict[str, Any]]:
        rows = self.run(name)["history"]
        return [rows[line] for line in sorted(rows)]


@contextlib.contextmanager
def stand_in() -> Iterator[StandIn]:
    with serving(StandIn()) as server:
        try:
            yield server
        finally:
            server.over.set()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandIn

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing is logged: the server's messages are not part of a test's output."""

    def _body(self) -> bytes:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def _answer(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _ill(self) -> bool:
        """Behave as the server's health requires; True where there is nothing else to do."""
        self.server.asked += 1
        if self.server.health == WELL:
            return False
        if self.server.health == SILENT:
            self.server.over.wait(300)
        if self.server.health == BROKEN:
            self._answer({"errors": [{"message": "out of order"}]}, 500)
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        return True

    def do_GET(self) -> None:
        if not self._ill():
            self._answer({})

    def do_PUT(self) -> None:
        data = self._body()
        if self._ill():
            return
        self.server.files[self.path.lstrip("/")] = data
        if self.path.startswith("/manifest/"):
            self.server.manifests[self.path.split("/")[2]] = json.loads(data)
        self._answer({})

    def do_POST(self) -> None:
        asked = json.loads(self._body() or b"{}")
        if self._ill():
            return
        with self.server.lock:
            if self.path.endswith("/graphql"):
                self._answer({"data": self._graphql(asked["query"], asked.get("variables") or {})})
            else:
                self._stream(self.path.split("/")[-2], asked)
                self._answer({})

    def _stream(self, name: str, asked: dict[str, Any]) -> None:
        run = self.server.run(name)
        for file, chunk in asked.get("files", {}).items():
            if file == "wandb-history.jsonl":
                for index, line in enumerate(chunk["content"]):
                    run["history"][chunk["offset"] + index] = json.loads(line)
            elif file == "wandb-summary.json":
                run["summary"] = json.loads(chunk["content"][-1])
        if asked.get("complete"):
            run["exit"] = asked.get("exitcode")

    def _graphql(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        called = query.split("(", maxsplit=1)[0].split("{", maxsplit=1)[0].rsplit(maxsplit=1)[-1]
        answer = getattr(self, "_answer" + re.sub("(?=[A-Z])", "_", called).lower(), None)
        return answer(given) if answer else {}

    def _answer_viewer(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "1", "entity": "team", "username": "team", "teams": {"edges": []}, "flags": "{}"}}

    def _answer_server_features_query(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _answer_sweep_with_runs(self, given: dict[str, Any]) -> dict[str, Any]:
        sweep = {"id": "1", "name": given["sweep"], "config": self.server.sweep, "runs": {"edges": []}}
        return {"project": {"sweep": sweep}}

    def _answer_create_agent(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"createAgent": {"agent": {"id": "agent"}}}

    def _answer_heartbeat(self, given: dict[str, Any]) -> dict[str, Any]:
        if json.loads(given["runState"] or "{}"):
            commands = []  # a trial is under way
        else:
            commands = [self.server.trials.pop(0)] if self.server.trials else [{"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": given["id"]}, "commands": json.dumps(commands)}}

    def _answer_run_resume_status(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given["name"]
        if name not in self.server.runs:
            return {
                "model": {"id": "1", "name": given["project"], "entity": {"id": "1", "name": "team"}, "bucket": None}
            }
        run, rows = self.server.run(name), self.server.history(name)
        bucket = {
            "id": name, "name": name, "displayName": name, "summaryMetrics": json.dumps(run["summary"]),
            "historyLineCount": len(rows), "eventsLineCount": 0, "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]), "eventsTail": "[]",
            "config": json.dumps(run["config"]), "tags": [], "wandbConfig": json.dumps({"t": 1}),
        }  # fmt: skip
        entity = {"id": "1", "name": "team"}
        return {"model": {"id": "1", "name": given["project"], "entity": entity, "bucket": bucket}}

    def _answer_upsert_bucket(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given["name"] or given["id"]
        inserted = name not in self.server.runs
        run = self.server.run(name)
        run["upserts"] += 1
        if given.get("config"):
            run["config"] = json.loads(given["config"])
        entity = {"id": "1", "name": "team"}
        project = {"id": "1", "name": given.get("project") or "assay", "entity": entity}
        bucket = {
            "id": name, "name": name, "displayName": given.get("displayName") or name, "description": None,
            "config": json.dumps(run["config"]), "sweepName": None, "project": project,
            "historyLineCount": len(run["history"]),
        }  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _answer_create_artifact(self, given: dict[str, Any]) -> dict[str, Any]:
        asked = given["input"]
        place = len(self.server.artifacts)
        made = {
            "id": f"artifact{place}", "run": asked["runName"], "collection": asked["artifactCollectionName"],
            "type": asked["artifactTypeName"], "digest": asked["digest"], "committed": False,
            "aliases": {alias["alias"] for alias in asked["aliases"] or []},
            "metadata": json.loads(asked["metadata"] or "{}"),
        }  # fmt: skip
        same = [
            held
            for held in self.server.artifacts
            if (held["collection"], held["digest"]) == (made["collection"], made["digest"])
        ]
        for held in self.server.artifacts:  # an alias of a collection is at one version
            if held["collection"] == made["collection"]:
                held["aliases"] -= made["aliases"]
        if same:
            same[0]["aliases"] |= made["aliases"]
            made = same[0]
        else:
            self.server.artifacts.append(made)
        state = "COMMITTED" if made["committed"] else "PENDING"
        latest = {"latestArtifact": None}
        return {"createArtifact": {"artifact": {"id": made["id"], "state": state, "artifactSequence": latest}}}

    def _answer_create_artifact_manifest(self, given: dict[str, Any]) -> dict[str, Any]:
        place = f"{given['artifactID']}"
        file = {
            "id": f"file-{place}", "name": given["name"], "displayName": given["name"], "uploadHeaders": [],
            "uploadUrl": f"{self.server.url}/manifest/{place}",
        }  # fmt: skip
        return {"createArtifactManifest": {"artifactManifest": {"id": f"manifest-{place}", "file": file}}}

    def _answer_create_artifact_files(self, given: dict[str, Any]) -> dict[str, Any]:
        edges = []
        for spec in given["input"]["artifactFiles"]:
            place = f"artifact-files/{spec['artifactID']}/{spec['name']}"
            node = {
                "id": place, "name": spec["name"], "displayName": spec["name"], "storagePath": place,
                "uploadUrl": f"{self.server.url}/{place}", "uploadHeaders": [],
                "artifact": {"id": spec["artifactID"]}, "uploadMultipartUrls": None,
            }  # fmt: skip
            edges.append({"node": node})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _answer_commit_artifact(self, given: dict[str, Any]) -> dict[str, Any]:
        [made] = [held for held in self.server.artifacts if held["id"] == given["artifactID"]]
        made["committed"] = True
        return {"commitArtifact": {"artifact": {"id": made["id"], "digest": made["digest"]}}}

    def _answer_use_artifact(self, given: dict[str, Any]) -> dict[str, Any]:
        asked = given["input"]
        self.server.used.append((asked["runName"], asked["artifactID"]))
        return {"useArtifact": {"artifact": {"id": asked["artifactID"]}}}

    def _answer_create_run_files(self, given: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.server.url}/run-files/{name}"} for name in given["files"]]
        return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
