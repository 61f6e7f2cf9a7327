"""The page for people: its files, compressed, and what a browser may do with them.

The style travels inside the page, so that a browser paints after one exchange with the server instead of two: on a
phone's network each takes half a second.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI
from fastapi import Request as HTTPRequest
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from dialogpt.inspect import page_sources, policy_source

STATIC = Path(__file__).parents[1] / "static"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
STYLE = (STATIC / "style.css").read_text(encoding="utf-8")
STYLE_LINK = '<link rel="stylesheet" href="static/style.css">'
# The page runs its own scripts and styles, and talks to this server alone. What `/inspect` draws is opened from it as a
# document of its own, which inherits this policy.
INSIDE_SCRIPT, INSIDE_STYLE = page_sources()
POLICY = (
    f"default-src 'none'; script-src 'self' {INSIDE_SCRIPT}; style-src {policy_source(STYLE)} {INSIDE_STYLE}; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class StaticFile:
    """A file of the page, as it is and compressed."""

    content: bytes
    compressed: bytes
    media_type: str
    tag: str

    @classmethod
    def read(cls, path: Path) -> StaticFile:
        """Read a file once, when the application is created; a page gets its style."""
        content = path.read_bytes().replace(STYLE_LINK.encode(), f"<style>{STYLE}</style>".encode())
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        return cls(content, gzip.compress(content, mtime=0), MEDIA_TYPES[path.suffix], tag)

    def response(self, request: HTTPRequest) -> Response:
        """Return the file, compressed where the browser takes it, or 304 where the browser has it already."""
        headers = {"ETag": self.tag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        headers["Content-Security-Policy"] = POLICY
        if request.headers.get("if-none-match") == self.tag:
            return Response(status_code=304, headers=headers)
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(self.content, media_type=self.media_type, headers=headers)
        return Response(self.compressed, media_type=self.media_type, headers={**headers, "Content-Encoding": "gzip"})


def add_routes(app: FastAPI) -> None:
    """Add the page, its files and the icon that browsers ask for."""
    files = {path.name: StaticFile.read(path) for path in STATIC.iterdir() if path.suffix in MEDIA_TYPES}

    @app.get("/", include_in_schema=False)
    async def show_page(request: HTTPRequest) -> Response:
        """Return the page."""
        return files["index.html"].response(request)

    @app.get("/favicon.ico", include_in_schema=False)
    async def favicon(request: HTTPRequest) -> Response:
        """Return the icon."""
        return files["favicon.svg"].response(request)

    @app.get("/static/{name}", include_in_schema=False)
    async def static_file(name: str, request: HTTPRequest) -> Response:
        """Return a file of the page."""
        if name not in files:
            raise HTTPException(404)
        return files[name].response(request)
