"""What is fused in a traced graph, and when it may be."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from cpunorm.torch.modules import ByChannel, ByRow

_LAYERS = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.SiLU: "silu", nn.Hardswish: "hardswish"}
_FUNCTIONS = {
    torch.relu: "relu",
    torch.relu_: "relu",
    nn.functional.relu: "relu",
    nn.functional.relu6: "relu6",
    nn.functional.silu: "silu",
    nn.functional.hardswish: "hardswish",
}
_METHODS = {"relu": "relu", "relu_": "relu"}
_SUMS = (operator.add, torch.add, "add")
_SUMS_IN_PLACE = (operator.iadd, "add_")
_IN_PLACE = {getattr(operator, name) for name in operator.__all__ if name.startswith("i") and hasattr(operator, "__" + name + "__")}
_IN_PLACE |= {operator.setitem, operator.delitem}


def fused(graph: fx.Graph, root: nn.Module) -> int:
    """Let the norms of `graph` take over what they can; how many did."""
    count = 0
    for node in list(graph.nodes):
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
            continue
        layer = root.get_submodule(str(node.target))
        if hooked(layer):
            continue
        if isinstance(layer, ByChannel):
            count += _by_channel(graph, root, node)
        elif isinstance(layer, ByRow):
            count += _by_row(graph, root, node)
    return count


def _by_channel(graph: fx.Graph, root: nn.Module, norm: fx.Node) -> bool:
    """norm, + residual, activation: what is there of these, each the only user of the one before."""
    last, options = norm, {}
    added = _only_user(norm)
    if added is not None and (found := _summands(added)) is not None and norm in found and found[0] is not found[1]:
        in_place = added.target in _SUMS_IN_PLACE
        if not in_place or found[0] is norm:
            options["residual"] = found[1] if found[0] is norm else found[0]
            if in_place:
                options["in_place"] = True
            last = added
    last, options = _with_activation(root, last, options)
    if not options or not _apart(root, norm, last, {norm.args[0]}):
        return False
    with graph.inserting_before(last):
        made = graph.call_module(norm.target, norm.args, options)
    _replace(graph, last, made, norm)
    return True


def _by_row(graph: fx.Graph, root: nn.Module, norm: fx.Node) -> bool:
    """a sum, norm, activation. Other users of the sum, after the norm, get it from there."""
    total, options = norm.args[0], {}
    summands = _summands(total)
    if summands is not None and total.target not in _SUMS_IN_PLACE and _apart(root, total, norm, {total, *summands}):
        options["residual"] = summands[1]
    else:
        summands, total = None, None
    last, options = _with_activation(root, norm, options)
    if not options or (last is not norm and not _apart(root, norm, last, {norm.args[0]})):
        return False
    shared = total is not None and len(total.users) > 1
    if shared and last is not norm:
        return False  # the sum's other users may come before the activation
    with graph.inserting_before(last):
        made = graph.call_module(norm.target, (summands[0],) if summands else norm.args, options | ({"return_sum": True} if shared else {}))
        if shared:
            y, h = (graph.call_function(operator.getitem, (made, i)) for i in (0, 1))
    _replace(graph, last, y if shared else made, norm)
    if total is not None:
        if shared:
            total.replace_all_uses_with(h)
        graph.erase_node(total)
    return True


def _with_activation(root: nn.Module, last: fx.Node, options: dict[str, Any]) -> tuple[fx.Node, dict[str, Any]]:
    user = _only_user(last)
    name = None if user is None else _activation(root, user)
    return (last, options) if name is None else (user, options | {"activation": name})


def _only_user(node: fx.Node) -> fx.Node | None:
    """The node that alone takes this one, as its first or second argument, once."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    return user if list(user.all_input_nodes).count(node) == 1 else None


def _summands(node: Any) -> tuple[fx.Node, fx.Node] | None:
    """Of a sum of two traced values."""
    if not isinstance(node, fx.Node) or node.op not in ("call_function", "call_method") or node.kwargs or len(node.args) != 2:
        return None
    if node.target not in _SUMS + _SUMS_IN_PLACE or not all(isinstance(value, fx.Node) for value in node.args):
        return None
    return node.args[0], node.args[1]


def _activation(root: nn.Module, node: fx.Node) -> str | None:
    """The name of the activation that this node is, if it is one that kernels know."""
    if len(node.args) != 1 or set(node.kwargs) - {"inplace"}:
        return None
    if node.op == "call_module":
        layer = root.get_submodule(str(node.target))
        return None if hooked(layer) or "forward" in layer.__dict__ else _LAYERS.get(type(layer))
    return (_FUNCTIONS if node.op == "call_function" else _METHODS if node.op == "call_method" else {}).get(node.target)  # type: ignore[attr-defined]


def _apart(root: nn.Module, first: fx.Node, last: fx.Node, values: set[Any]) -> bool:
    """Whether nothing between two nodes can change `values`, which are read later (or earlier) than they were: nothing in place, and no
    module that is given one of them.
    """
    node = first.next
    while node is not last:
        if node.op == "root":
            return False
        if _changes(root, node) or (node.op == "call_module" and values & set(node.all_input_nodes)):
            return False
        node = node.next
    return True


def _changes(root: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return any(getattr(part, "inplace", False) for part in root.get_submodule(str(node.target)).modules())
    if node.op == "call_method":
        return str(node.target).endswith("_")
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "")
    return (
        node.target in _IN_PLACE
        or (name.endswith("_") and not name.endswith("__"))
        or bool(node.kwargs.get("inplace"))
        or "out" in node.kwargs
    )


def _replace(graph: fx.Graph, last: fx.Node, made: fx.Node, norm: fx.Node) -> None:
    """`made` for `last`, and away with all from the norm to it."""
    last.replace_all_uses_with(made)
    chain = [norm]
    while chain[-1] is not last:
        (user,) = chain[-1].users
        chain.append(user)
    for node in reversed(chain):
        graph.erase_node(node)


def hooked(module: nn.Module) -> bool:
    """Whether somebody watches its calls."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)
