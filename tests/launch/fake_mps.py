"""Tensors that are computed on the CPU but behave as on Apple's mps, as far as the pipeline is concerned.

Inside ``with FakeMps():`` the device ``mps:0`` exists. Like the real one it refuses float64 and operations
between its own and other tensors. A copy to it that does not block is refused, too, because PyTorch may free
its source too early (github.com/pytorch/pytorch/issues/189690), and so is ``channels_last``, which is slow.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

MPS = torch.device("mps", 0)
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class MpsTensor(torch.Tensor):
    """For PyTorch's C++ code a tensor on the CPU, for Python code one on mps."""

    device = property(lambda self: MPS)

    @staticmethod
    def __new__(cls, on_cpu):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, on_cpu.size(), strides=on_cpu.stride(), dtype=on_cpu.dtype, device="cpu"
        )
        tensor.on_cpu = on_cpu
        return tensor

    def cpu(self):
        return torch.ops.aten._to_copy.default(self, device=torch.device("cpu"))

    def to(self, *args, **kwargs):
        device = torch._C._nn._parse_to(*args, **kwargs)[0]
        return self.cpu() if device is not None and device.type == "cpu" else super().to(*args, **kwargs)

    def tolist(self):
        return self.on_cpu.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


class FakeMps(TorchDispatchMode):
    """Computes everything in the block, and creates the tensors whose device is mps."""

    def __enter__(self):
        self.before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # other ways keep the C++ tensor
        return super().__enter__()

    def __exit__(self, *details):
        torch.__future__.set_overwrite_module_params_on_conversion(self.before)
        return super().__exit__(*details)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})


def on_cpu(value):
    return value.on_cpu if isinstance(value, MpsTensor) else value


def compute(function, args, kwargs):
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    is_on_mps = any(isinstance(tensor, MpsTensor) for tensor in tensors)
    others = [tensor for tensor in tensors if not isinstance(tensor, MpsTensor) and tensor.dim()]
    if is_on_mps and others and function not in COPIES:
        raise RuntimeError(f"{function}: tensors on mps:0 and cpu")
    given, device = dict(kwargs), kwargs.get("device")
    if device is not None:
        is_on_mps, given["device"] = device.type == "mps", torch.device("cpu")
        assert not (is_on_mps and others and kwargs.get("non_blocking")), "the source may be freed too early"
    result = function(*tree_map(on_cpu, args), **tree_map(on_cpu, given))
    return (
        return_and_correct_aliasing(function, args, kwargs, tree_map(wrap, result)) if is_on_mps else result
    )


def wrap(value):
    if not isinstance(value, torch.Tensor):
        return value
    if value.dtype == torch.float64:
        raise TypeError(
            "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it"
        )
    if value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last):
        assert value.is_contiguous(), "channels_last is slow on mps"
    return MpsTensor(value)
