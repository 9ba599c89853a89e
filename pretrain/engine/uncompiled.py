"""Training without imports of torch's compiler and of unused packages.

torch and DeepSpeed mark functions that the compiler must not trace, and the first call of each imports `torch._dynamo`
to register it. A compiler that has not been imported traces nothing, so until then a marked function is called
directly, and afterwards through torch's mark. DeepSpeed's own Muon, which Assay never uses, compiles on import; its
autotuner, which Assay never uses either, imports MLflow where it is installed: 1.2 CPU-s with pandas and a web server.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

_COMPILER = "torch._dynamo"
_CACHED = "__dynamo_disable"  # where torch's mark keeps the function that it calls (torch/_compile.py)


def set_deterministic(wanted: bool, *, warn_only: bool = False, compiles: bool) -> None:
    """Do as `torch.use_deterministic_algorithms` does; the compiler's own setting only where something `compiles`."""
    import torch

    if compiles or _COMPILER in sys.modules:
        torch.use_deterministic_algorithms(wanted, warn_only=warn_only)
    else:
        torch._C._set_deterministic_algorithms(wanted, warn_only=warn_only)


def unmark_optimizers() -> None:
    """Allow torch's optimizers to be built and used without importing the compiler."""
    import torch
    from torch._compile import _disable_dynamo

    marked = _disable_dynamo(print).__code__
    for method in vars(torch.optim.Optimizer).values():
        if getattr(method, "__code__", None) is marked:
            _unmark(method)
    _unmark_step(torch.optim.Adam)  # AdamW's, too


def _unmark_step(optimizer: Any) -> None:
    """Replace torch's step by one without the compiler's import."""
    import torch

    whole = optimizer.step
    if not hasattr(whole, "__wrapped__") or hasattr(whole, "unmarked"):
        return
    function = whole.__wrapped__

    def step(self: Any, closure: Any = None) -> Any:
        if _COMPILER in sys.modules:
            return whole(self, closure)
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return function(self, closure)

    vars(step)["unmarked"] = True
    optimizer.step = functools.update_wrapper(step, function)


@contextlib.contextmanager
def unmarked_imports() -> Iterator[None]:
    """Import modules in this context without importing the compiler by their marks."""
    import torch
    from torch._compile import _disable_dynamo as mark

    def unmarked(function: Any = None, recursive: bool = True, **_: Any) -> Any:
        if function is None or not hasattr(function, "__dict__"):
            return mark(function, recursive)
        return _unmark(mark(function, recursive))

    with _replaced(torch, "_disable_dynamo", unmarked), _replaced(torch.compiler, "disable", unmarked):
        yield


@contextlib.contextmanager
def without_compilation() -> Iterator[None]:
    """Make `torch.compile` return functions unchanged within this context."""
    import torch

    with _replaced(torch, "compile", lambda function=None, **_: function or (lambda given: given)):
        yield


@contextlib.contextmanager
def without_mlflow() -> Iterator[None]:
    """Hide mlflow within this context, unless it is already imported."""
    absent = "mlflow" not in sys.modules
    if absent:
        sys.modules["mlflow"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if absent:
            sys.modules.pop("mlflow", None)


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _unmark(marked: Any) -> Callable[..., Any]:
    """Replace torch's mark by one without the compiler's import."""
    function = marked.__wrapped__

    def call(*given: Any, **named: Any) -> Any:
        if _COMPILER not in sys.modules:
            return function(*given, **named)
        vars(function).pop(_CACHED, None)  # another thread may have done so
        return marked(*given, **named)

    setattr(function, _CACHED, call)
    return marked  # type: ignore[no-any-return]
