"""Finished runs of studies as one table: from MLflow once, then from a local cache.

A finished run does not change, so it is read once. cache_dir/runs/KEY/runs.parquet holds one experiment of one store:
a row for every run that is over, with metrics, tags and params of the finished ones, and the ids of deleted runs. New
runs are found by their end time. What is changed by hand after a run has finished (a tag), and runs that vanish
without having been seen as deleted (mlflow gc), are seen by reading all again: refresh.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dxc.bars import EVERY_S
from dxc.files import write_atomically
from dxc.masking import masked
from dxc.metrics import is_fold_accuracy, is_of_one_fold
from dxc.search.states import INFEASIBLE
from dxc.text import for_terminal
from dxc.tracking.client import PAGE
from dxc.tracking.patience import StoredRun
from dxc.tracking.reader import MAX_LISTED, Reader, Study
from dxc.untrusted import is_run_id, load_json

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

log = logging.getLogger(__name__)

FORMAT = 3  # increase it when the content of a cache changes its meaning
MAX_ABOUT_BYTES = 100_000_000  # of a cache: ids of deleted runs
MARGIN_MS = 24 * 3600 * 1000
"""A new run may have ended so long before the newest known one: clocks of hosts differ, and writes arrive late."""
KINDS: Mapping[str, Callable[[StoredRun], Mapping[str, Any]]] = {
    # of learning curves only the accuracies that the folds ended with
    "metric": lambda run: {
        name: value
        for name, value in run.metrics.items()
        if not is_of_one_fold(name) or is_fold_accuracy(name)
    },
    "tag": lambda run: {name: value for name, value in run.tags.items() if not name.startswith("mlflow.")},
    "param": lambda run: run.params,
}
"""The named values of a finished run, by kind. Where names collide, the first kind wins."""
FIXED = ("run_id", "name", "study", "experiment_id", "start_time", "end_time", "artifact_uri")


@dataclass(frozen=True)
class Runs:
    """The result of read_runs.

    frame: one row a finished run, oldest first, RangeIndex. Columns: run_id, name, artifact_uri (str), study,
    experiment_id (category of str), start_time, end_time (UTC); every metric under its name (float64; of learning
    curves only val_accuracy.foldN), every tag but MLflow's own and every param under its key (category of str). Missing
    is NaN. Where names collide, these seven win over metrics, metrics over tags, tags over params.
    others: runs that are not in it, by dxc.state, or by MLflow's status in lower case where there is none.
    fetched: rows that were read from the store now; the rest came from the cache.
    """

    frame: pd.DataFrame
    others: Mapping[str, int]
    fetched: int


class _Known(NamedTuple):
    """A cache's content. table: see _table; deleted: ids of runs deleted in MLflow; read_ms: when it was read."""

    table: pa.Table
    deleted: frozenset[str]
    read_ms: int


def read_runs(uri: str, studies: Sequence[str], *, cache_dir: Path, refresh: bool = False) -> Runs:
    """The finished runs of these studies in the MLflow store at `uri`. refresh: read all of them again.

    Raises TrackingError where the store or a study is not there or cannot be used. A cache that cannot be read or
    written is not an error.
    """
    reader = Reader(uri)
    parts: list[tuple[Study, pa.Table]] = []
    others: Counter[str] = Counter()
    fetched = 0
    for study in [reader.study(name) for name in dict.fromkeys(studies)]:
        path = Path(cache_dir) / "runs" / _key(uri, study) / "runs.parquet"
        known = _nothing() if refresh else _load(path)
        going_on = {run.run_id: _state(run) for run in reader.unfinished(study) if run.is_trial}
        now, read = _read(reader, study, known, going_on)
        if now is not known:
            _save(path, now)
        parts.append((study, now.table))
        fetched += read["other"].null_count
        ended = set(read["run_id"].to_pylist())  # some of them since the others were asked for
        others.update(state for run_id, state in going_on.items() if run_id not in ended)
        others.update(state for state in now.table["other"].to_pylist() if state is not None)
    return Runs(_frame(parts), dict(sorted(others.items())), fetched)


def forget(uri: str, study: str, *, cache_dir: Path) -> None:
    """Remove what is cached of a study, because finished runs of it have changed. All of it is read again next time."""
    key = _key(uri, Reader(uri).study(study))
    (Path(cache_dir) / "runs" / key / "runs.parquet").unlink(missing_ok=True)


def _read(reader: Reader, study: Study, known: _Known, going_on: Collection[str]) -> tuple[_Known, pa.Table]:
    """(what is known now, the rows of it that were read). `known` itself comes back where nothing has changed.

    going_on: ids of runs that are planned or running; a row of one is from before it was taken up again.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    read_ms = int(time.time() * 1000)
    deleted = known.deleted.union(reader.deleted(study, without=sorted(known.deleted)[:MAX_LISTED]))
    pages = (
        _table([run for run in page if run.is_trial])
        for page in _counted(_new_pages(reader, study, known), study.name)
    )
    read = pa.concat_tables([_table([]), *pages], promote_options="default")
    rows = {run_id: row for row, run_id in enumerate(read["run_id"].to_pylist())}
    if len(rows) < len(read):  # of one that was found twice, what was read last
        read = read.take(pa.array(rows.values(), pa.int64()))
    new = rows.keys()
    gone = pa.array([*deleted, *going_on, *new], pa.string())
    kept = known.table.filter(pc.invert(pc.is_in(known.table["run_id"], value_set=gone)))
    now = _Known(pa.concat_tables([kept, read], promote_options="default"), deleted - new, read_ms)
    same = len(read) == 0 and len(kept) == len(known.table) and now.deleted == known.deleted
    return known if same else now, read


def _new_pages(reader: Reader, study: Study, known: _Known) -> Iterator[list[StoredRun]]:
    """Runs that are over and not known, or may have changed; and those that are deleted no more."""
    before = sorted(known.deleted)
    for first in range(0, len(before), MAX_LISTED):
        if restored := reader.among(study, before[first : first + MAX_LISTED]):
            yield restored
    for since_ms, before_ms, without in _windows(known):
        yield from reader.ended(study, since_ms=since_ms, before_ms=before_ms, without=without)


def _windows(known: _Known) -> Iterator[tuple[int, int | None, list[str]]]:
    """Stretches of end time (ms, from the first on and before the second) in which runs may be that are not known,
    each with the ids that need not be read again: a run that failed or stopped may have gone on, others not."""
    import pyarrow as pa

    table = known.table
    ends = table["end_time"].cast(pa.int64()).to_pylist()
    # an end that was in the future when it was read says nothing about what had ended
    since_ms = max(0, min(max(ends, default=0), known.read_ms) - MARGIN_MS)
    rows = zip(ends, table["run_id"].to_pylist(), table["other"].to_pylist(), strict=True)
    lasting = sorted(
        (end, run_id) for end, run_id, other in rows if end >= since_ms and other in (None, INFEASIBLE)
    )
    starts = list(dict.fromkeys([since_ms, *(end for end, _ in lasting[MAX_LISTED::MAX_LISTED])]))
    for start, stop in zip(starts, [*starts[1:], None], strict=True):
        inside = [run_id for end, run_id in lasting if start <= end and (stop is None or end < stop)]
        yield start, stop, inside[:MAX_LISTED]


def _counted(pages: Iterable[list[StoredRun]], study: str) -> Iterator[list[StoredRun]]:
    """The pages. Where there are more than one, their runs are counted on stderr."""
    from tqdm import tqdm

    count, bar, said = 0, None, time.monotonic()
    try:
        for page in pages:
            count += len(page)
            if bar is None and count > PAGE:
                bar = tqdm(
                    desc=f"reading {for_terminal(study)}", unit="run", initial=count - len(page), disable=None
                )
            if bar is not None:
                bar.update(len(page))
                if bar.disable and time.monotonic() - said > EVERY_S:  # a pipe gets a line now and then
                    said = time.monotonic()
                    print(for_terminal(f"reading {study}: {count:,} runs"), file=sys.stderr, flush=True)
            yield page
    finally:
        if bar is not None:
            bar.close()


def _state(run: StoredRun) -> str:
    return run.tags.get("dxc.state", run.status.lower())


def _table(runs: Sequence[StoredRun]) -> pa.Table:
    """A row a run: run_id, name, artifact_uri, start_time, end_time, other, and 'metric:NAME', 'tag:NAME' and
    'param:NAME' of finished runs.

    other: None for a finished run, else its state; such a row is there to be counted. Texts are encoded as
    dictionaries: most of them repeat.
    """
    import pyarrow as pa

    texts = pa.dictionary(pa.int32(), pa.string())
    times = pa.timestamp("ms", "UTC")
    finished = [run.is_finished for run in runs]
    columns = {
        "run_id": pa.array([run.run_id for run in runs], pa.string()),
        "name": pa.array([run.tags.get("mlflow.runName", "") for run in runs], pa.string()),
        "artifact_uri": pa.array([masked(run.artifact_uri) for run in runs], pa.string()),
        "start_time": pa.array([run.start_ms for run in runs], times),
        "end_time": pa.array([run.end_ms for run in runs], times),
        "other": pa.array(
            [None if done else _state(run) for run, done in zip(runs, finished, strict=True)], texts
        ),
    }
    for kind, of in KINDS.items():
        values = [of(run) if done else {} for run, done in zip(runs, finished, strict=True)]
        for name in {name: None for each in values for name in each}:
            type_ = pa.float64() if kind == "metric" else texts
            columns[f"{kind}:{name}"] = pa.array([each.get(name) for each in values], type_)
    return pa.table(columns)


def _frame(parts: Sequence[tuple[Study, pa.Table]]) -> pd.DataFrame:
    """Tables of studies -> Runs.frame."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    empty = Study("", "", None), _table([])
    table = pa.concat_tables([_named(*part) for part in (empty, *parts)], promote_options="default")
    order = pc.sort_indices(table, sort_keys=[("start_time", "ascending"), ("run_id", "ascending")])

    def series(column: str) -> pd.Series:
        values = table[column]
        if encoded := pa.types.is_dictionary(values.type):
            values = values.cast(pa.string())  # encoded anew below: one dictionary, of what is in use
        values = values.take(order).combine_chunks()
        return (values.dictionary_encode() if encoded else values).to_pandas()

    columns = {name: series(name) for name in FIXED}
    for kind in KINDS:
        for column in sorted(name for name in table.column_names if name.startswith(f"{kind}:")):
            name = column.removeprefix(f"{kind}:")
            if name not in columns and table[column].null_count < len(table):
                columns[name] = series(column)
    return pd.DataFrame(columns)


def _named(study: Study, table: pa.Table) -> pa.Table:
    """The finished runs of a study's table, with the columns study and experiment_id."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = table.filter(pc.is_null(table["other"]))
    for name, value in (("study", study.name), ("experiment_id", study.experiment_id)):
        table = table.append_column(name, pa.array([value] * len(table), pa.string()).dictionary_encode())
    return table


# --- the cache -------------------------------------------------------------------------------------------------------


def _key(uri: str, study: Study) -> str:
    """A folder's name. A database may be replaced by another, with other studies of the same ids."""
    identity = json.dumps([FORMAT, masked(uri), study.experiment_id, study.created_ms])
    return hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()


def _nothing() -> _Known:
    return _Known(_table([]), frozenset(), 0)


def _load(path: Path) -> _Known:
    """What a cache file holds; nothing where there is none or it is damaged."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
        about = load_json(table.schema.metadata[b"dxc"].decode(), limit=MAX_ABOUT_BYTES)
        if not all(map(is_run_id, [*table["run_id"].to_pylist(), *about["deleted"]])):
            raise ValueError("it has run ids that are none")
        return _Known(table.replace_schema_metadata(), frozenset(about["deleted"]), about["read_ms"])
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
        log.warning("%s is damaged, and all runs are read again: %s", path, error)
    return _nothing()


def _save(path: Path, known: _Known) -> None:
    """Replace a cache file. Processes that do so at once leave one of their files; each is whole."""
    from pyarrow import parquet

    table = known.table.unify_dictionaries()
    about = {"deleted": sorted(known.deleted), "read_ms": known.read_ms}
    table = table.replace_schema_metadata({"dxc": json.dumps(about)})
    content = io.BytesIO()
    parquet.write_table(table, content, compression="zstd", write_page_checksum=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.getvalue())
    except OSError as error:
        log.warning("cache_dir: runs cannot be kept and will be read again: %s", error)
