"""As much of wandb's server as a run needs: one run, its rows in the order of their offsets."""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer(ThreadingHTTPServer):
    """Listens on a port of its own.

    Attributes:
        runs: what was said of each run, by its id.
        rows: of the history, as JSON.
        artifacts: names of those that were committed.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.runs: dict[str, dict[str, Any]] = {}
        self.rows: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: Any) -> None:
        """A client that goes away in the middle is none of ours."""


@contextmanager
def serving() -> Iterator[WandbServer]:
    with WandbServer() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def log_message(self, *_: Any) -> None:
        pass

    def _read(self) -> bytes:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(content) if self.headers.get("Content-Encoding") else content

    def _answer(self, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self._answer({})

    def do_PUT(self) -> None:
        self._read()
        self._answer({})

    def do_POST(self) -> None:
        asked = json.loads(self._read() or b"{}")
        if self.path.endswith("/file_stream"):
            self._take(asked.get("files", {}))
            self._answer({})
            return
        query, given = asked["query"], asked.get("variables") or {}
        name = asked.get("operationName") or re.findall(r"(?:query|mutation)\s+(\w+)", query)[0]
        self._answer({"data": getattr(self, f"_{name}", lambda _: {})(given)})

    def _take(self, files: dict[str, Any]) -> None:
        history = files.get("wandb-history.jsonl")
        if history:
            del self.server.rows[history["offset"] :]
            self.server.rows += [json.loads(line) for line in history["content"]]
        for line in files.get("wandb-summary.json", {}).get("content", ()):
            self.server.summary = json.loads(line)

    def _UpsertBucket(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        is_new = given["name"] not in self.server.runs
        run = self.server.runs.setdefault(given["name"], {})
        run.update({name: value for name, value in given.items() if value is not None})
        return {"upsertBucket": {"bucket": self._bucket(given["name"]), "inserted": is_new}}

    def _RunResumeStatus(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        is_known = given["name"] in self.server.runs
        bucket = self._bucket(given["name"]) if is_known else None
        return {"model": {**_PROJECT, "bucket": bucket}}

    def _CreateRunFiles(self, given: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        files = [
            {"name": name, "uploadUrl": f"{self.server.url}/{name}"} for name in given["files"]
        ]
        return {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": files}}

    def _Viewer(self, _: Any) -> dict[str, Any]:  # noqa: N802
        return {"viewer": {"id": "me", "entity": "e", "username": "me", "flags": "{}"}}

    def _bucket(self, name: str) -> dict[str, Any]:
        server = self.server
        return {
            "id": "run",
            "name": name,
            "displayName": name,
            "project": _PROJECT,
            "config": server.runs[name].get("config", "{}"),
            "wandbConfig": '{"t": 1}',  # the run was begun
            "summaryMetrics": json.dumps(server.summary),
            "historyTail": json.dumps([json.dumps(row) for row in server.rows[-1:]]),
            "eventsTail": "[]",
            "historyLineCount": len(server.rows),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "tags": [],
        }


_PROJECT = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
