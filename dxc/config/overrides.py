"""Values as Hydra's command line reads them."""

from __future__ import annotations

import re
from typing import Any

from dxc.config.compose import PROJECT_ROOT
from dxc.masking import masked

DEFAULT_STORE = f"sqlite:///{PROJECT_ROOT}/mlflow.db"
"""tracking.uri where a command names no other."""
INTERPOLATION = re.compile(r"(\\*)\$\{")


def quoted_value(value: Any) -> str:
    """A value in Hydra's override grammar; ${...} in a text stays a text."""
    from hydra.core.override_parser.types import Quote, QuotedString

    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(quoted_value, value))}]"
    text = str(value)
    plain = text.replace("_", "").replace("-", "").replace(".", "").replace("/", "")
    if plain.isascii() and plain.isalnum() and not _reads_as_another(text):
        return text
    text = INTERPOLATION.sub(
        lambda match: match[1] * 2 + r"\${", text
    )  # OmegaConf's way to say that it is none
    return QuotedString(text, Quote.single).with_quotes()  # only backslashes before a quote are doubled


def _reads_as_another(text: str) -> bool:
    """Whether Hydra would read a text as a number, a truth value or nothing."""
    if text.lower() in ("null", "true", "false", "nan", "inf"):
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True


def store_override(uri: str) -> list[str]:
    """['tracking.uri=...'] of a command that uses a store.

    [] for the default store, and for an address with a login, because the command would show it.
    """
    if uri == DEFAULT_STORE or masked(uri) != uri:
        return []
    return [f"tracking.uri={quoted_value(uri)}"]
