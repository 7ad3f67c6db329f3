"""Fusing by `torch.fx`: a module whose code calls norms runs a traced copy of that code, in which they take over what follows them.

Each module is traced by itself, with all modules that it calls as they are (a plain `Sequential` is followed into). What the code looked at
in tracing is the key of a traced copy: the module's own plain attributes (``training`` and other flags), whether gradients are wanted,
and every argument that is no tensor. Another key is traced anew; where something cannot be kept in a key, the module's own code runs.
"""

from __future__ import annotations

import inspect
import random
import sys
import threading
from collections.abc import Callable
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from cpunorm.torch.patterns import fused, hooked

_VALUES = (type(None), bool, int, float, str, torch.dtype, torch.device)  # arguments and attributes that a key may hold
_MOST = 16  # keys a module; one that changes at every call (a counter, a time step) is not traced for ever
_tracing = threading.Lock()


def fuse(model: nn.Module) -> None:
    """Let the modules of `model` run traced copies of their code, where these have something to fuse."""
    for module in model.modules():
        if getattr(module.__dict__.get("forward"), "__func__", None) is type(module).forward:
            del module.forward  # what is left of ours in a model that was pickled
        if "forward" in module.__dict__:
            continue
        made = Fused(module)
        if made.pays():
            module._cpunorm_fused = made
            module.forward = MethodType(forward, module)


def unfuse(model: nn.Module) -> None:
    """Let them run their own code again."""
    for module in model.modules():
        if is_fused(module):
            del module.forward, module._cpunorm_fused


def is_fused(module: nn.Module) -> bool:
    """Whether it runs a traced copy."""
    return getattr(module.__dict__.get("forward"), "__func__", None) is forward


def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """A module's ``forward``: `torch.compile` and `torch.export` record its own code, all others run a traced copy."""
    if torch.compiler.is_compiling():
        return type(self).forward(self, *args, **kwargs)
    return self._cpunorm_fused(*args, **kwargs)


class Fused:
    """Called instead of a module's ``forward``: the copy traced for arguments and attributes like these, or the module's own code."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._copies: dict[Any, Callable[..., Any] | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self.module, "_copies": {}}  # traced again where it is needed

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module's ``forward`` gives."""
        module, copies = self.module, self._copies
        key = _key(module, args, kwargs)
        if key is None:
            return type(module).forward(module, *args, **kwargs)
        if key not in copies:
            self._trace(key, args, kwargs)
        copy = copies.get(key)
        if copy is None:
            return type(module).forward(module, *args, **kwargs)
        return copy(module, *[value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)])

    def pays(self) -> bool:
        """Whether there is something to fuse when the module is called with tensors for all arguments that it needs, in any mode."""
        module, mode = self.module, self.module.training
        names = [name for name, _ in module.named_modules()]
        if len(names) < 2 or type(module).forward is nn.Module.forward:
            return False
        needed = _needed(module)
        try:
            for module.training in (True, False):
                args = (_STAND_IN,) * needed
                key = _key(module, args, {})
                if key is not None:
                    self._trace(key, args, {})
        finally:
            module.training = mode
        return any(self._copies.values())

    def _trace(self, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with _tracing:
            if len(self._copies) < _MOST:
                self._copies[key] = _traced(self.module, args, kwargs)


_STAND_IN = torch.empty(0)  # for a tensor that is not there yet


def _needed(module: nn.Module) -> int:
    """Positional arguments without a default."""
    try:
        parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    except (TypeError, ValueError):
        return 0
    return sum(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def _key(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a traced copy depends on; None for arguments that no copy takes."""
    kinds: list[Any] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            kinds.append(Tensor)
        elif type(value) in _VALUES:
            kinds.append((type(value), value))
        else:
            return None
    flags = tuple([value for value in module.__dict__.values() if type(value) in _VALUES])
    return flags, torch.is_grad_enabled(), len(args), tuple(kinds), tuple(kwargs)


# ---------------------------------------------------------------- tracing


class _Proxy(fx.Proxy):  # type: ignore[misc]
    """One that cannot be taken for what is no tensor: isinstance() in a module's code would say so, and another branch be taken."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        if not str(sys._getframe(1).f_globals.get("__name__")).startswith("torch."):
            raise fx.proxy.TraceError("isinstance() of a traced value")
        return _Proxy


class _Tracer(fx.Tracer):  # type: ignore[misc]
    """Modules are leaves, but for a plain Sequential; arguments that are no tensors are what they are."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self._given = args, kwargs

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) is not nn.Sequential or hooked(m) or ("forward" in m.__dict__ and not is_fused(m))

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if type(m) is nn.Sequential and "forward" in m.__dict__:
            return super().call_module(m, lambda *a, **k: nn.Sequential.forward(m, *a, **k), args, kwargs)
        return super().call_module(m, forward, args, kwargs)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        args, kwargs = self._given
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        proxies = [self.create_proxy("placeholder", f"input_{i}", (), {}) for i in range(len(tensors))]

        def run(*given: Any) -> Any:
            turn = iter(given)
            filled = [next(turn) if isinstance(value, Tensor) else value for value in args]
            return root_fn(self.root, *filled, **{k: next(turn) if isinstance(v, Tensor) else v for k, v in kwargs.items()})

        return run, proxies


def _traced(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any] | None:
    """The module's code with its norms fused, as a function of the module and its tensors; None where nothing is, or may be."""
    before, state = _attributes(module), _random_state()
    try:
        graph = _Tracer(args, kwargs).trace(module)
    except Exception:  # whatever a module's code does when it is given no tensors
        return None
    finally:
        constants = [name for name in module.__dict__ if name.startswith("_tensor_constant")]
        for name in constants:
            del module.__dict__[name]
        changed = _attributes(module) != before
        drawn = _random_state(state)
    if constants or changed or drawn or not fused(graph, module):
        return None
    graph.lint()
    code = graph.python_code("self")
    scope = dict(code.globals)
    exec(compile(code.src, f"<{type(module).__name__} fused by cpunorm>", "exec"), scope)
    return scope["forward"]  # type: ignore[no-any-return]


def _attributes(module: nn.Module) -> dict[Any, Any]:
    """What a module's code may have changed in it: attributes, members of its containers."""
    found: dict[Any, Any] = {}
    for name, value in module.__dict__.items():
        found[name] = (id(value), value if type(value) in _VALUES else None)
        if isinstance(value, (dict, list, set)):
            found[name] = (id(value), [id(member) for member in (value.values() if isinstance(value, dict) else value)])
    return found


def _random_state(before: Any = None) -> Any:
    """The states of the generators of random numbers; or whether they have changed since `before`, which they are put back to."""
    now = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    if before is None:
        return now
    same = now[0] == before[0] and torch.equal(now[2], before[2])
    same = same and all(np.array_equal(a, b) for a, b in zip(now[1], before[1], strict=True))
    if not same:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])
    return not same
