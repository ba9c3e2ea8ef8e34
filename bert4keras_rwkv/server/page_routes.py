"""The chat page as files for a browser: a fixed table, read once, under a strict Content-Security-Policy."""

import hashlib
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response

FOLDER = Path(__file__).parent / "page"
KINDS = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    "": "text/plain; charset=utf-8",
}
SCRIPTS = (
    "api",
    "app",
    "chats",
    "composer",
    "dialogs",
    "dom",
    "icons",
    "keep",
    "list",
    "markdown",
    "panel",
    "replies",
    "sse",
    "strings",
    "thread",
    "tree",
)
STYLES = ("base", "list", "narrow", "panel", "prose", "thread")
FILES = (
    "index.html",
    "icon.svg",
    *(f"{name}.css" for name in STYLES),
    *(f"{name}.js" for name in SCRIPTS),
    "vendor/marked/marked.esm.js",
    "vendor/marked/LICENSE",
    "vendor/dompurify/purify.min.js",
    "vendor/dompurify/LICENSE",
)
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "dompurify",
}
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def page_routes():
    """A router: the page at `/`, its parts under `/page/`. It asks for no key, and opens no path of a request."""
    router = APIRouter()
    for name in FILES:
        path = "/" if name == "index.html" else f"/page/{name}"
        router.add_api_route(path, _sender(name), methods=["GET", "HEAD"], include_in_schema=False)
    return router


def _sender(name):
    """What answers with a file, or with 304 where the browser has it."""
    content = (FOLDER / name).read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**HEADERS, "Content-Type": KINDS[Path(name).suffix], "ETag": tag}

    async def send(request: Request):
        known = [one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")]
        if tag in known or "*" in known:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers)

    return send
