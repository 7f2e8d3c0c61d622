"""Addresses without their secrets.

A store's address may carry a password or a token. masked() is applied wherever such an address leaves the process: what
is printed, logged, raised, written to a file or sent to MLflow.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

MARK = "***"
# Up to the last @: a password may hold / : ? or #, although they should be percent-encoded. What has no host has no
# user either: sqlite:////a@b is a path.
LOGIN = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*://)(?P<user>[^/@:\s]*)(?P<password>:\S*)?@")
SPACED = re.compile(r"\A(?P<scheme>[A-Za-z][\w+.-]*://)(?P<user>[^/@:\s]*)(?P<password>:.*)@(?=\S*\Z)")
QUERY = re.compile(
    r"(?P<key>[?&;#][\w.\[\]-]*"
    r"(?:pass|pwd|token|secret|sig|credential|auth|odbc_connect|api_?key|access_?key|account_?key|private_?key)"
    r"[\w.\[\]-]*=)(?P<value>[^\s&;'\"<>#]+)",
    re.IGNORECASE,
)
WORD = re.compile(  # a driver's own spelling: host=... password=...
    r"(?P<key>\b(?:[a-z]*password|passwd|pwd|token|api_?key|secret)\s*=\s*)(?P<value>[^\s&;,'\"<>]+)",
    re.IGNORECASE,
)
SHORTEST = 4  # characters of a secret that is looked for by itself; shorter ones would hit ordinary words


class Login(NamedTuple):
    """Of an address: user and password, decoded, and the address without them."""

    user: str
    password: str
    address: str


def masked(text: str, address: str = "") -> str:
    """The text without the secrets of the addresses in it: 'postgresql://somebody:***@host/runs'.

    Args:
        text: an address, or a text that may repeat some.
        address: one whose secrets may stand in the text by themselves, as in the message of a driver.
    """
    if address and address != text:
        text = text.replace(address, masked(address))
        for secret in _secrets(address):
            text = text.replace(secret, MARK)
    for pattern in (SPACED, LOGIN):
        text = pattern.sub(_without_password, text)
    for pattern in (QUERY, WORD):
        text = pattern.sub(lambda match: f"{match['key']}{MARK}", text)
    return text


def masked_tree(node: Any) -> Any:
    """Nested dicts and lists with every text in them masked."""
    if isinstance(node, dict):
        return {key: masked_tree(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [masked_tree(value) for value in node]
    return masked(node) if isinstance(node, str) else node


def login_of(address: str) -> Login | None:
    """The user and password in an address; None where it has none of both."""
    match = SPACED.match(address) or LOGIN.match(address)
    if match is None or _is_in_path(address):
        return None
    user, password = unquote(match["user"]), unquote((match["password"] or "").removeprefix(":"))
    return Login(user, password, f"{match['scheme']}{address[match.end() :]}")


def _is_in_path(address: str) -> bool:
    """Whether an @ belongs to the path of a sound address: http://host:5000/a@b."""
    try:
        parts = urlsplit(address)
        return "@" not in parts.netloc and (parts.port is None or parts.port > 0)
    except ValueError:  # http://user:p/w@host: no port
        return False


def for_link(address: str) -> str:
    """An address that may be shown as a link: without user, password and query."""
    login = login_of(address)
    return (login.address if login else address).partition("?")[0].rstrip("/")


def _without_password(match: re.Match[str]) -> str:
    # a name alone is a token: https://TOKEN@host
    return f"{match['scheme']}{match['user']}:{MARK}@" if match["password"] else f"{match['scheme']}{MARK}@"


def _secrets(address: str) -> list[str]:
    """The secrets of an address as they stand in it and as they are meant, longest first."""
    found = {match["value"] for match in QUERY.finditer(address)}
    if match := SPACED.match(address) or LOGIN.match(address):
        found.add((match["password"] or "").removeprefix(":") or match["user"])
    found |= {unquote(each) for each in found}
    return sorted((each for each in found if len(each) >= SHORTEST), key=len, reverse=True)
