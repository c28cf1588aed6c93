"""A page that needs nothing but itself: its style, its script, its policy."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from peregrine.report.html.markup import Markup, Node, el


def document(title: str, body: Node) -> str:
    """A whole page around a body. Its content security policy lets it load nothing, run nothing
    but its own script, and send nothing anywhere."""
    style, script = _asset("page.css"), _asset("page.js")
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        el("style", Markup(style)),
    )
    whole = el("html", head, el("body", body, el("script", Markup(script))), lang="en")
    return f"<!doctype html>\n{whole}\n"


def _asset(name: str) -> str:
    return files("peregrine.report.html").joinpath(name).read_text("utf-8")


def _digest(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
