"""Where do values leave the operators that are watched? For NumPy, for kernels that work on bare memory, for Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from cakdp_ext.pruning.layers import is_convolution, is_norm, is_tensor_like, values_of

_DOORS = frozenset({"numpy", "tolist", "data_ptr", "__array__", "__dlpack__", "__cuda_array_interface__"})


class Escapes(TorchFunctionMode):
    """Notices when the memory of a tensor is given to code whose work no operator shows.

    Args:
        tell: called with the name of the method, and what it was called with.
    """

    def __init__(self, tell: Callable[[str, Any], None]) -> None:
        super().__init__()
        self._tell = tell

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run a function of PyTorch, and tell of it if it is a way out."""
        name = getattr(func, "__name__", "")
        if name in _DOORS:
            self._tell(f"Tensor.{name}", args)
        return func(*args, **(kwargs or {}))


def has_own_kernels(module: nn.Module) -> bool:
    """Tell whether a module may compute with something else than PyTorch's operators, and hides no layer inside."""
    is_torchs = type(module).__module__.partition(".")[0] == "torch"
    return not is_torchs and not any(is_convolution(each) or is_norm(each) for each in module.modules())


def tensors_in(values: Any) -> list[Tensor]:
    """Give the tensors inside nested values; of sparse tensors the features."""
    return [values_of(leaf) for leaf in tree_leaves(values) if is_tensor_like(leaf)]
