"""A small server that speaks the Hugging Face hub's protocol to huggingface_hub's client, and can misbehave.

It answers what downloading needs: a repository's listing, and its files by HEAD and GET, whole or from a byte on; and
what uploading needs: making a repository, large files by git's protocol for them, and a commit.
"""

from __future__ import annotations

import base64
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

from huggingface_hub import close_session

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
        tokens: who may write: token -> owner.
        uploaded: large files that came, by their sha256, before a commit gives them a name.
        commits: the messages of commits, by repository.
        private: repositories that were made so.
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
    tokens: dict[str, str] = field(default_factory=dict)
    uploaded: dict[str, bytes] = field(default_factory=dict)
    commits: dict[str, list[str]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
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
        close_session()  # the client keeps its connections, which Python would warn of in some later test
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

    def do_PUT(self) -> None:
        """Take a large file."""
        content = self.body()
        name = self.path.rpartition("/")[2]
        if hashlib.sha256(content).hexdigest() == name:
            self.hub.uploaded[name] = content
            self.send_json({})
        else:
            self.refuse(400, "BadRequest")

    def do_POST(self) -> None:
        """Take what an upload is made of, from those who may."""
        content = self.body()
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        self.hub.requests.append(f"POST {parts[-1] if parts[0] != 'api' else '/'.join(parts[1:2] + parts[4:])}")
        if parts == ["api", "validate-yaml"]:
            self.send_json({"errors": [], "warnings": []})
            return
        owner = self.hub.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
        if owner is None:
            self.refuse(401, "InvalidToken")
        elif parts == ["api", "repos", "create"]:
            self.create(owner, json.loads(content))
        elif parts[:3] == ["api", "models", owner] and parts[4] == "preupload":
            files = json.loads(content)["files"]
            modes = {file["path"]: "lfs" if file["path"].endswith(LARGE) else "regular" for file in files}
            described = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
            self.send_json({"files": described})
        elif parts[1:] and parts[-3:] == ["lfs", "objects", "batch"] and parts[0] == owner:
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.hub.url}/upload/{each['oid']}"}}}
                for each in json.loads(content)["objects"]
            ]
            self.send_json({"transfer": "basic", "objects": objects})
        elif parts[:3] == ["api", "models", owner] and parts[4] == "commit":
            self.commit("/".join(parts[2:4]), [json.loads(line) for line in content.splitlines()])
        else:
            self.refuse(403, "Forbidden")

    def create(self, owner: str, wanted: dict[str, Any]) -> None:
        repository = f"{wanted.get('organization') or owner}/{wanted['name']}"
        if repository.partition("/")[0] != owner:
            self.refuse(403, "Forbidden")
        elif repository in self.hub.files:
            self.send_json({"url": f"{self.hub.url}/{repository}"}, 409)
        else:
            self.hub.files[repository] = {}
            self.hub.private |= (
                {repository} if wanted.get("private") or wanted.get("visibility") == "private" else set()
            )
            self.send_json({"url": f"{self.hub.url}/{repository}"})

    def commit(self, repository: str, lines: list[dict[str, Any]]) -> None:
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploaded[value["oid"]]
            else:
                self.hub.commits.setdefault(repository, []).append(value["summary"])
        self.hub.files[repository].update(files)
        self.send_json({"commitUrl": f"{self.hub.url}/{repository}/commit/{COMMIT}", "commitOid": COMMIT})

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def send_json(self, content: Any, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

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
        self.send_json(entries if tree else whole)

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
