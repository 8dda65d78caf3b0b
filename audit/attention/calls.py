"""Watch every call of an object from outside, and change its arguments and its output, whether compiled or not.

The object's class is replaced by a subclass with another `__call__`, as `torch.nn.utils.parametrize` does. Module
hooks would not work: a graph that `torch.compile` has already made does not run hooks that are added later.
"""

from __future__ import annotations

import functools
from typing import Any, Protocol

import torch

_ATTRIBUTE = "_audit_watchers"
_BASE = "_audit_base"


class CallWatcher(Protocol):
    """What to do before and after each call of an object."""

    def before(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Return the arguments to call the object with.

        Args:
            target: The object that is called.
            args: Its positional arguments.
            kwargs: Its keyword arguments.

        Returns:
            The positional and keyword arguments to call the object with.
        """

    def result(self, target: Any, output: Any) -> Any:
        """Return the output to hand on.

        Args:
            target: The object that was called.
            output: What the call returned.
        """

    def after(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], failed: bool) -> None:
        """Run after the call, however it ended, unless `before` raised.

        Args:
            target: The object that was called.
            args: The positional arguments that it was called with.
            kwargs: The keyword arguments that it was called with.
            failed: Whether the call raised an exception.
        """


def watch_calls(target: Any, watcher: CallWatcher) -> None:
    """Notify `watcher` of every call of `target`, until `unwatch_calls`."""
    if _ATTRIBUTE not in vars(target):
        if not hasattr(type(target), _BASE):  # an object made by `type(other)(...)` may already have a watched class
            _set_class(target, _watched(type(target)))  # type: ignore[arg-type]
        vars(target)[_ATTRIBUTE] = ()
    vars(target)[_ATTRIBUTE] += (watcher,)


def unwatch_calls(target: Any, watcher: CallWatcher) -> None:
    """Undo `watch_calls`."""
    vars(target)[_ATTRIBUTE] = tuple(other for other in watchers_of(target) if other is not watcher)
    if not vars(target)[_ATTRIBUTE]:
        del vars(target)[_ATTRIBUTE]
        _set_class(target, getattr(type(target), _BASE))


def _set_class(target: Any, new: type) -> None:
    object.__setattr__(target, "__class__", new)  # plain assignment on a compiled module would affect the wrapped one


def watchers_of(target: Any) -> tuple[CallWatcher, ...]:
    """Return the watchers of `target`."""
    found: tuple[CallWatcher, ...] = vars(target).get(_ATTRIBUTE, ())
    return found


@functools.cache
def _watched(base: type) -> type:
    # Inside torch.compile, dynamo skips this function and compiles what the `__call__` of the base class runs.
    @torch.compiler.disable(recursive=False)
    @functools.wraps(base.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        watchers = watchers_of(self)
        begun, failed = [], True
        try:
            for watcher in watchers:
                args, kwargs = _before(watcher, self, args, kwargs)
                begun.append(watcher)
            output = base.__call__(self, *args, **kwargs)
            for watcher in reversed(begun):
                output = _result(watcher, self, output)
            failed = False
        finally:
            for watcher in reversed(begun):
                _after(watcher, self, args, kwargs, failed)
        return output

    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return type(base.__name__, (base,), names | {"__call__": call, _BASE: base})


@torch.compiler.disable
def _before(watcher: CallWatcher, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    return watcher.before(target, args, kwargs)


@torch.compiler.disable
def _result(watcher: CallWatcher, target: Any, output: Any) -> Any:
    return watcher.result(target, output)


@torch.compiler.disable
def _after(watcher: CallWatcher, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], failed: bool) -> None:
    watcher.after(target, args, kwargs, failed)
