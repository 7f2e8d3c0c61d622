"""`where=`: a condition over metrics, params and tags. It reads like Python and is never executed as such."""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dxc.errors import AnalysisError

if TYPE_CHECKING:
    import pandas as pd

COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
LISTED = 12  # names in a message
SHOWN = 80  # characters of a condition that is too long
DEFAULTS = {"compress.fraction": 0, "compress.quantise": "none"}
"""Params that a run lacks where they have their default, because it then has no such stage."""


@dataclass(frozen=True)
class Condition:
    """A parsed condition, such as `accuracy > 0.9 and data == '7ch' and model.kernel in [3, 5]`.

    It may use comparisons (also chained), in, and, or, not, + - * /, numbers and quoted text. A name is a column, or
    the end of one column only (kernel for model.kernel). A missing value is neither equal nor unequal to anything;
    `x == None` finds it.

    """

    text: str
    tree: ast.expr

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Parse a condition. Raises AnalysisError that points at the wrong part."""
        try:
            tree = ast.parse(text, mode="eval").body
        except (RecursionError, MemoryError):
            raise _too_long(text) from None
        except SyntaxError as error:
            place = len(text) if not error.offset else error.offset - 1  # 0: it ends too early
            raise _at(text, place, "this does not read as a condition") from None
        condition = cls(text, tree)
        try:
            condition._require_logic(tree)
        except RecursionError:
            raise _too_long(text) from None
        return condition

    def mask(self, frame: pd.DataFrame) -> pd.Series:
        """Which rows meet the condition, as bool. Raises AnalysisError for a name that is no column."""
        try:
            return _Reader(self.text, frame).logic(self.tree).fillna(False).astype(bool)
        except RecursionError:
            raise _too_long(self.text) from None

    def columns(self, available: Iterable[str]) -> list[str]:
        """The columns that the condition uses. Raises AnalysisError for a name that is not in `available`."""
        names = list(available)
        found: dict[str, None] = {}

        def visit(node: ast.AST) -> None:
            if isinstance(node, ast.expr) and (name := _column(node, names)) is not None:
                found.setdefault(resolve(name, names, self.text, node))
                return
            for child in ast.iter_child_nodes(node):
                visit(child)

        try:
            visit(self.tree)
        except RecursionError:
            raise _too_long(self.text) from None
        return list(found)

    def _require_logic(self, node: ast.expr) -> None:
        if isinstance(node, ast.BoolOp):
            for value in node.values:
                self._require_logic(value)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            self._require_logic(node.operand)
        elif not isinstance(node, ast.Compare):
            raise _at(self.text, node, "a comparison is expected here, such as accuracy > 0.9")


def meets(runs: pd.DataFrame, where: str) -> pd.Series:
    """Which runs or designs meet a condition. One that was not compressed has the fraction 0 and quantise none.

    Args:
        runs: one row a run or design; columns are metrics, params and tags.
        where: the condition.

    Raises:
        AnalysisError: it does not read as a condition, or names no column.

    """
    condition = Condition.parse(where)
    filled = {
        name: runs[name].astype("object").where(runs[name].notna(), value) if name in runs else value
        for name, value in DEFAULTS.items()
    }
    return condition.mask(runs.assign(**filled))


class _Reader:
    """Evaluates one condition on one frame, with pandas' three-valued logic (true, false, missing)."""

    def __init__(self, text: str, frame: pd.DataFrame) -> None:
        self._text = text
        self._frame = frame

    def logic(self, node: ast.expr) -> pd.Series:
        if isinstance(node, ast.BoolOp):
            combine = operator.and_ if isinstance(node.op, ast.And) else operator.or_
            found = self.logic(node.values[0])
            for value in node.values[1:]:
                found = combine(found, self.logic(value))
            return found
        if isinstance(node, ast.UnaryOp):
            return ~self.logic(node.operand)
        assert isinstance(node, ast.Compare)  # Condition.parse lets nothing else through
        left, found = node.left, None
        for op, right in zip(node.ops, node.comparators, strict=True):
            each = self._compare(left, op, right)
            found = each if found is None else found & each
            left = right
        assert found is not None
        return found

    def _compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> pd.Series:
        if isinstance(op, ast.In | ast.NotIn):
            return self._member(left, right, inside=isinstance(op, ast.In))
        if type(op) not in COMPARE:
            raise _at(self._text, right, "write == or != for this")
        for one, other in ((left, right), (right, left)):
            if isinstance(other, ast.Constant) and other.value is None:
                if not isinstance(op, ast.Eq | ast.NotEq):
                    raise _at(self._text, other, "None can only be compared with == and !=")
                missing = self._series(one, numeric=False).isna()
                return (missing if isinstance(op, ast.Eq) else ~missing).astype("boolean")
        numeric = self._numeric(left, right, ordered=not isinstance(op, ast.Eq | ast.NotEq))
        found = COMPARE[type(op)](self._value(left, numeric), self._value(right, numeric))
        if isinstance(found, bool):
            raise _at(self._text, left, "this compares two constants")
        return found.astype("boolean")

    def _member(self, left: ast.expr, right: ast.expr, *, inside: bool) -> pd.Series:
        if not isinstance(right, ast.List | ast.Tuple | ast.Set):
            raise _at(self._text, right, "a list is expected here, such as [3, 5]")
        import pandas as pd

        found = pd.Series(False, self._frame.index, dtype="boolean")
        for each in right.elts:
            found = found | self._compare(left, ast.Eq(), each)
        return found if inside else ~found

    def _numeric(self, left: ast.expr, right: ast.expr, *, ordered: bool) -> bool:
        """Whether two sides are compared as numbers. They are compared as text where one is quoted or not a number.

        With < and > a quoted number is a number too: as text '10' would be less than '9', which nobody means.
        """
        for side in (left, right):
            if isinstance(side, ast.Constant) and isinstance(side.value, str | bool):
                if ordered and _as_number(side.value) is not None:
                    continue
                return False
        return all(self._is_number(side) for side in (left, right))

    def _is_number(self, node: ast.expr) -> bool:
        name = _column(node, self._frame.columns)
        if name is None:
            return True
        column = self._frame[resolve(name, self._frame.columns, self._text, node)]
        return bool((_numbers(column).notna() | column.isna()).all())

    def _value(self, node: ast.expr, numeric: bool) -> Any:
        if isinstance(node, ast.Constant):
            if not numeric:
                return str(node.value)
            return _as_number(node.value) if isinstance(node.value, str) else node.value
        if (
            isinstance(node, ast.UnaryOp)
            and isinstance(node.op, ast.USub)
            and isinstance(node.operand, ast.Constant)
        ):
            return -self._value(node.operand, True)
        return self._series(node, numeric)

    def _series(self, node: ast.expr, numeric: bool) -> pd.Series:
        name = _column(node, self._frame.columns)
        if name is not None:
            column = self._frame[resolve(name, self._frame.columns, self._text, node)]
            return _numbers(column) if numeric else _texts(column)
        if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
            return ARITHMETIC[type(node.op)](self._value(node.left, True), self._value(node.right, True))
        raise _at(self._text, node, "a name, a number or quoted text is expected here")


def _column(node: ast.expr, columns: Iterable[str]) -> str | None:
    """The column name that a node spells (x, model.kernel, or latency_ms/predictor if it is a column), else None."""
    if isinstance(node, ast.BinOp):
        text = ast.unparse(node).replace(" / ", "/")
        return text if isinstance(node.op, ast.Div) and text in set(columns) else None
    if isinstance(node, ast.Attribute):
        front = _column(node.value, columns)
        return None if front is None else f"{front}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else None


def resolve(name: str, columns: Iterable[str], text: str = "", place: int | ast.expr = 0) -> str:
    """The column of a name: the one of that name, or the only one that ends in a dot and the name. Raises
    AnalysisError."""
    names = [str(column) for column in columns]
    if name in names:
        return name
    ends = [column for column in names if column.endswith(f".{name}")]
    if len(ends) == 1:
        return ends[0]
    if ends:
        what = f"{name} could be {' or '.join(sorted(ends))}"
    else:
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        close += [column for column in names if difflib.get_close_matches(name, [column.split(".")[-1]])]
        some = list(dict.fromkeys(close)) or sorted(names)[:LISTED]
        what = f"no run has {name}; there is {', '.join(some)}" + ("" if close else ", ...")
    raise _at(text or name, place, what)


def _as_number(value: object) -> float | None:
    """The number in a quoted text; None where it is not a number."""
    try:
        return float(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _too_long(text: str) -> AnalysisError:
    return _at(f"{text[:SHOWN]} ...", 0, "this condition is nested too deeply: write it shorter")


def _numbers(column: pd.Series) -> pd.Series:
    import pandas as pd

    if not pd.api.types.is_numeric_dtype(column.dtype):
        column = column.astype("object")
    return pd.to_numeric(column, errors="coerce").astype("Float64")


def _texts(column: pd.Series) -> pd.Series:
    return column.astype("object").astype("string")


def _at(text: str, place: int | ast.expr, what: str) -> AnalysisError:
    """An error that shows the condition with a mark under a position, or under the beginning of a node."""
    if isinstance(place, ast.expr):  # it counts bytes
        place = len(text.encode()[: place.col_offset].decode(errors="ignore"))
    return AnalysisError(f"{what}\n  {text}\n  {' ' * place}^")
