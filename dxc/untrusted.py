"""What others wrote: identities, YAML and JSON from a store, a package or a cache that is shared.

It is data. An identity has the form of one or is none, a file has a limit of size and depth, and nothing in it is
looked up, resolved or called.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

RUN_ID = re.compile(r"[0-9a-f]{32}")
"""MLflow's id of a run."""
HASH = re.compile(r"[0-9a-f]{12}")
"""dxc.trial and dxc.design (dxc.config.identity.trial_hash), and the id of a search."""

MAX_YAML_BYTES = 200_000  # a configuration has 3,000
MAX_JSON_BYTES = 2_000_000
MAX_DEPTH = 32
SPAN = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', re.DOTALL)  # a text, of JSON, or a bracket
PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")}
FLOAT = re.compile(  # as OmegaConf reads and writes numbers; YAML 1.1 takes 1e-3 for a text
    r"""[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?(?:[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)
    |\.[0-9_]+(?:[eE][-+][0-9]+)?
    |[-+]?\.(?:inf|Inf|INF)
    |\.(?:nan|NaN|NAN)""",
    re.VERBOSE,
)


def is_run_id(text: object) -> bool:
    """Whether a text can be MLflow's id of a run: 32 hexadecimal digits."""
    return isinstance(text, str) and RUN_ID.fullmatch(text) is not None


def is_hash(text: object) -> bool:
    """Whether a text can be a dxc.trial or dxc.design: 12 hexadecimal digits."""
    return isinstance(text, str) and HASH.fullmatch(text) is not None


def below(folder: Path, name: str) -> Path:
    """The folder of a trial or run below another. Raises ValueError where `name` is not its identity: an absolute path
    or '..' would lead elsewhere."""
    if not (is_hash(name) or is_run_id(name)):
        raise ValueError(f"{name!r} is not an id of a trial or run")
    return folder / name


def read_text(path: Path, limit: int) -> str:
    """The text of a file of at most `limit` bytes. Raises OSError, or ValueError for a larger one or no UTF-8."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")  # nor a pipe, which would be waited for
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    return content.decode()


def load_json(source: str | Path, *, limit: int = MAX_JSON_BYTES, depth: int = MAX_DEPTH) -> Any:
    """JSON that others wrote, from a text or a file.

    Raises ValueError where it is none, has more than `limit` bytes or is nested deeper than `depth`; OSError for a file
    that cannot be read.
    """
    text = read_text(source, limit) if isinstance(source, Path) else source
    if len(text) > limit:
        raise ValueError(f"it has more than {limit:,} characters")
    level = 0
    for match in SPAN.finditer(text):
        if match[0] in "[{":
            level += 1
        elif match[0] in "]}":
            level -= 1
        if level > depth:
            raise ValueError(f"it is nested deeper than {depth} levels")
    return json.loads(text)


def load_yaml(path: Path, *, limit: int = MAX_YAML_BYTES, depth: int = MAX_DEPTH) -> Any:
    """YAML that others wrote, as plain dicts, lists, texts and numbers; ${...} stays a text.

    Raises ValueError where it is none, is larger or deeper than allowed, or has anchors, aliases or tags; OSError for a
    file that cannot be read.
    """
    import yaml  # type: ignore[import-untyped]

    text = read_text(path, limit)
    try:
        level = 0
        for event in yaml.parse(text, Loader=_loader()):  # events first: nothing is built of what is refused
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
                raise ValueError(f"line {event.start_mark.line + 1} has an alias or anchor (& or *)")
            if (tag := getattr(event, "tag", None)) is not None and tag not in PLAIN_TAGS:
                raise ValueError(f"line {event.start_mark.line + 1} has the tag {tag}")
            level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if level > depth:
                raise ValueError(f"it is nested deeper than {depth} levels")
        return yaml.load(text, Loader=_loader())  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        said = (
            getattr(error, "problem", None) or (str(error).strip().splitlines() or [type(error).__name__])[0]
        )
        raise ValueError(f"{where}{said}") from error


@functools.cache
def _loader() -> Any:
    """PyYAML's safe loader, in C where it is there, with OmegaConf's numbers, and without dates and merge keys."""
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        pass

    dropped = {f"tag:yaml.org,2002:{kind}" for kind in ("float", "timestamp", "merge", "value")}
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in dropped]
        for first, resolvers in Loader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(f"^(?:{FLOAT.pattern})$", re.VERBOSE), list("-+0123456789.")
    )
    return Loader
