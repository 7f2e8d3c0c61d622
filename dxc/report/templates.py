"""HTML pages from the templates in this folder. Nothing in a value is read as HTML."""

from __future__ import annotations

import base64
import functools
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from dxc.text import visible

FOLDER = Path(__file__).parent


@functools.cache
def template(name: str) -> Template:
    """A template. It escapes every value that is not Markup, and makes invisible characters visible."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else visible(value),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name)


@functools.cache
def style() -> Markup:
    """The style sheet of all pages."""
    return Markup((FOLDER / "page.css").read_text())


def picture(png: bytes, alternative: str) -> Markup:
    """An element of a page that holds a picture.

    Args:
        png: content of the file.
        alternative: what it shows, for those who do not see it.
    """
    element = Markup('<img alt="{}" src="data:image/png;base64,{}">')
    return element.format(visible(alternative), base64.b64encode(png).decode())
