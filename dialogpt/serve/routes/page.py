"""The page for people, and what a browser may do with it."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import Response

STATIC = Path(__file__).parents[1] / "static"


def add_routes(app: FastAPI) -> None:
    """Add the page."""
    page, policy = _page()

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def show_page() -> Response:
        """Return the page."""
        return Response(page, media_type="text/html", headers={"Content-Security-Policy": policy})


def _page() -> tuple[bytes, str]:
    """Return the page and its policy: it may run its own script and style, and talk to this server alone."""
    page = (STATIC / "page.html").read_bytes()
    allowed = {}
    for kind, tag in (("script", b"script"), ("style", b"style")):
        content = page.split(b"<" + tag + b">")[1].split(b"</" + tag + b">")[0]
        allowed[kind] = base64.b64encode(hashlib.sha256(content).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{allowed['script']}'; style-src 'sha256-{allowed['style']}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy
