"""A small server that speaks the Hugging Face hub's protocol to huggingface_hub's client, and can misbehave.

It answers what downloading needs: a repository's listing, and its files by HEAD and GET, whole or from a byte on.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".bin", ".safetensors", ".pkl", ".h5")  # what the hub keeps as large files, with a sha256


@dataclass
class Hub:
    """What the server has, and how it misbehaves.

    Attributes:
        files: repository -> file -> content.
        revisions: names of the one commit that each repository has.
        gated: repositories whose terms nobody here has accepted.
        lost: files that are listed and not there.
        damaged: files of which one byte arrives changed.
        drops: file -> how many times the connection breaks in its middle; -1 is always.
        claimed: file -> a size to list instead of the real one.
        requests: what was asked for: "GET config.json".
        url: its address.
    """

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: set[str] = field(default_factory=lambda: {"main", "v1.0", COMMIT})
    gated: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    drops: dict[str, int] = field(default_factory=dict)
    claimed: dict[str, int] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def add(self, repository: str, folder: Path) -> None:
        """Publish a folder."""
        self.files[repository] = {path.name: path.read_bytes() for path in folder.iterdir()}


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Run the server in a thread for a while."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self.hub.requests.append(f"LIST {'/'.join(parts[2:4])}")
            self.list_files("/".join(parts[2:4]), "/".join(parts[5:]) or "main", tree=parts[4:5] == ["tree"])
        elif len(parts) > 4 and parts[2] == "resolve":
            self.hub.requests.append(f"{self.command} {parts[-1]}")
            self.send_file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), body=body)
        else:
            self.refuse(404, "RepoNotFound")

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def known(self, repository: str, revision: str) -> bool:
        if repository not in self.hub.files:
            self.refuse(401, "RepoNotFound")
        elif repository in self.hub.gated:
            self.refuse(403, "GatedRepo")
        elif revision not in self.hub.revisions:
            self.refuse(404, "RevisionNotFound")
        else:
            return True
        return False

    def list_files(self, repository: str, revision: str, *, tree: bool) -> None:
        if not self.known(repository, revision):
            return
        siblings, entries = [], []
        for name, content in self.hub.files[repository].items():
            size = self.hub.claimed.get(name, len(content))
            entry: dict[str, Any] = {"rfilename": name, "size": size, "blobId": _git_sha1(content)}
            if name.endswith(LARGE):
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"size": size, "sha256": sha256, "oid": sha256, "pointerSize": 134}
            siblings.append(entry)
            entries.append(entry | {"type": "file", "path": name, "oid": entry["blobId"]})
        whole = {"id": repository, "sha": COMMIT, "siblings": siblings}
        data = json.dumps(entries if tree else whole).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def send_file(self, repository: str, revision: str, name: str, *, body: bool) -> None:
        if not self.known(repository, revision):
            return
        content = self.hub.files[repository].get(name)
        if content is None or name in self.hub.lost:
            self.refuse(404, "EntryNotFound")
            return
        etag = hashlib.sha256(content).hexdigest() if name.endswith(LARGE) else _git_sha1(content)
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        sent = content if name not in self.hub.damaged else content[:-1] + bytes([content[-1] ^ 1])
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(sent) - 1}/{len(sent)}")
        self.send_header("Content-Length", str(len(sent) - start))
        self.end_headers()
        if not body:
            return
        left = self.hub.drops.get(name, 0)
        if left:
            self.hub.drops[name] = left - 1 if left > 0 else left
            self.wfile.write(sent[start : start + (len(sent) - start) // 2] if left > 0 else b"")
            self.close_connection = True
            return
        self.wfile.write(sent[start:])


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
