"""Success by rule: an expression about an episode, such as `state[6] > 0.1 and all_last(proprio[6] < 0.5, 3)`.

Not Python: `simpleeval` walks the expression, which has no attributes, no slices, and no calls but the ones below. A name is a vector
of the store (`state`, `proprio`, `action`), and `state[6]` its number at the final observation; helpers look further back.
"""

from __future__ import annotations

import ast
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import simpleeval

from data.errors import InputError
from data.store.store import LABELS, Store

HELPERS = {
    "all_last": "all_last(condition, k): it holds at each of the last k observations",
    "any_last": "any_last(condition, k): it holds at one of the last k observations",
    "ever": "ever(condition): it holds at some observation",
    "min": "min(number): its least value over the episode",
    "max": "max(number): its greatest value over the episode",
    "mean": "mean(number): its mean over the episode",
    "first": "first(number): its value at the first observation",
}
_PLAIN: dict[str, Callable[..., Any]] = {"abs": abs, "sqrt": math.sqrt, "hypot": math.hypot}
_OVER_TIME: dict[str, Callable[..., Any]] = {"min": min, "max": max, "mean": np.mean}
_NODES = (ast.Name, ast.Constant, ast.Subscript, ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Call)
_MAX_POWER = 100


@dataclass(frozen=True)
class EpisodeView:
    """What a rule may look at. vectors: key -> float32 [T+1, size]; length: T; where: for messages."""

    vectors: Mapping[str, np.ndarray]
    instruction: str
    length: int
    where: str


class Rule:
    """One expression. Calling it with an EpisodeView gives True or False, or InputError naming the rule, the place and the remedy."""

    def __init__(self, expression: str) -> None:
        self.expression = expression
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd literals: what is wrong is said below
                self._tree = ast.parse(expression.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            reason = error.msg if isinstance(error, SyntaxError) else type(error).__name__
            raise InputError(
                f"rule {expression!r}: {reason}; write one such as 'state[6] > 0.1 and proprio[6] < 0.5'"
            ) from None

    def __call__(self, episode: EpisodeView) -> bool:
        try:
            result = _Evaluation(episode).at(self._tree, -1)
        except InputError as error:
            raise InputError(f"rule {self.expression!r}: {error}") from None
        except simpleeval.InvalidExpression as error:
            raise InputError(f"rule {self.expression!r}: {error}") from None
        except (TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise InputError(f"rule {self.expression!r} at {episode.where}: {error}") from None
        if not isinstance(result, bool):
            raise InputError(f"rule {self.expression!r}: gives {_short(result)}, not true or false; compare it with something")
        return result


class _Vector:
    """A vector at one observation: `state[6]`, and nothing else."""

    def __init__(self, name: str, values: np.ndarray) -> None:
        self._name, self._values = name, values

    def __getitem__(self, index: Any) -> float:
        size = len(self._values)
        if not isinstance(index, int) or not -size <= index < size:
            raise InputError(f"{self._name}[{_short(index)}] does not exist; {self._name} has {size} numbers, 0 to {size - 1}")
        return float(self._values[index])

    def __repr__(self) -> str:
        return f"all of {self._name}"


class _Evaluation(simpleeval.SimpleEval):
    """A walk over an expression for one episode. The helpers walk their first argument at other observations."""

    def __init__(self, episode: EpisodeView) -> None:
        operators = {**simpleeval.DEFAULT_OPERATORS, ast.Pow: _power}
        super().__init__(operators=operators, functions=dict(_PLAIN), names={})
        self._episode = episode
        handlers: dict[Any, Any] = vars(self)["nodes"]
        self.nodes: dict[Any, Any] = {kind: handlers[kind] for kind in _NODES}
        self.nodes |= {ast.Call: self._call, ast.Name: self._name}
        self._row = -1

    def at(self, tree: ast.AST, row: int) -> Any:
        before, self._row = self._row, row
        try:
            return self.eval("", tree)
        finally:
            self._row = before

    def _name(self, node: ast.Name) -> Any:
        episode = self._episode
        if node.id in episode.vectors:
            return _Vector(node.id, episode.vectors[node.id][self._row])
        if node.id in ("instruction", "length"):
            return getattr(episode, node.id)
        sizes = ", ".join(f"{key}[0..{value.shape[1] - 1}]" for key, value in episode.vectors.items())
        raise InputError(f"no {node.id!r}; there are {sizes}, length and instruction")

    def _call(self, node: ast.Call) -> Any:
        name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
        if node.keywords or not (name in HELPERS or name in _PLAIN):
            known = ", ".join((*HELPERS, *_PLAIN))
            raise InputError(f"no call of {_short(name)}; there are {known}, with plain arguments")
        if name in _PLAIN:
            return _PLAIN[name](*(self._eval(argument) for argument in node.args))
        last = name in ("all_last", "any_last")
        if len(node.args) != 1 + last:
            raise InputError(f"{HELPERS[name]}; it was given {len(node.args)} arguments")
        if name == "first":
            return self.at(node.args[0], 0)
        count = self._eval(node.args[1]) if last else self._episode.length + 1
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise InputError(f"{HELPERS[name]}; its k is {_short(count)}, it must be a whole number from 1 on")
        count = min(count, self._episode.length + 1)
        values = [self.at(node.args[0], row) for row in range(-count, 0)]
        if name in _OVER_TIME:
            if not all(isinstance(value, (int, float)) for value in values):
                raise InputError(f"{HELPERS[name]}; it was given {_short(values[-1])}")
            return float(_OVER_TIME[name](values))
        if not all(isinstance(value, bool) for value in values):
            raise InputError(f"{HELPERS[name]}; it was given {_short(values[-1])}, not true or false")
        return all(values) if name == "all_last" else any(values)


class Rules:
    """Rules by instruction, the first pattern that fits; patterns as in file names (`*bowl*`), of any case."""

    def __init__(self, rules: Mapping[str, str]) -> None:
        self._rules = [(pattern.lower(), Rule(expression)) for pattern, expression in rules.items()]

    @classmethod
    def load(cls, path: str | Path) -> Rules:
        """From a JSON file {"pattern": "rule"}."""
        return cls(read_rules(path))

    def judge(self, episode: EpisodeView) -> bool | None:
        """Whether the episode succeeded; None when no pattern fits its instruction."""
        for pattern, rule in self._rules:
            if fnmatchcase(episode.instruction.lower(), pattern):
                return rule(episode)
        return None

    def label(self, store: Store) -> np.ndarray:
        """success int8 [E]: 1, 0, or -1 where no pattern fits."""
        verdicts = [self.judge(view) for view in episode_views(store)]
        return np.array([-1 if verdict is None else int(verdict) for verdict in verdicts], np.int8)


def read_rules(path: str | Path) -> dict[str, str]:
    """A JSON file of texts by texts. InputError when it is something else."""
    try:
        rules = json.loads(Path(path).read_text())
    except OSError as error:
        raise InputError(f'{path}: {error.strerror}; give a JSON file such as {{"*bowl*": "state[6] > 0.1"}}') from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(rules, dict) or not rules or not all(isinstance(rule, str) for rule in rules.values()):
        raise InputError(f'{path}: must be rules by instruction, such as {{"*bowl*": "state[6] > 0.1"}}')
    return rules


def episode_views(store: Store) -> Iterator[EpisodeView]:
    """The episodes of a store, one at a time, without their frames."""
    keys = [key for key in ("action", *store.observation_keys) if not key.startswith("image_") and key not in LABELS[1:]]
    keys = [key for key in keys if len(store.shape(key)) == 1]
    first = 0
    for index, last in enumerate(store.episode_ends):
        rows = np.arange(first, last)
        yield EpisodeView(
            {key: store.gather(key, rows) for key in keys},
            store.instructions[int(store.gather("instruction_index", rows[:1])[0])],
            len(rows) - 1,
            f"{store.path} episode {index}",
        )
        first = int(last)


def _power(base: float, exponent: float) -> float:
    if abs(exponent) > _MAX_POWER:
        raise InputError(f"the power {_short(exponent)} is too large")
    return float(base) ** exponent


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 40 else f"{text[:37]}..."
