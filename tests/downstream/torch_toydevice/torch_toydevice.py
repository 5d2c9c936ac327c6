"""Stands for a vendor's PyTorch extension: importing it adds the device "toydevice" and its module torch.toydevice.

Its memory is the host's under another tag, and every operator runs on host views of the same bytes; what is queued is
done at once. PyTorch lets Python do this since 2.11, by doors that it calls experimental; a real extension is written
in C++.
"""

import ctypes
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME, TAG, HOST = "toydevice", 12, torch.device("cpu")  # the tag is DLPack's for devices of extensions
POINTER = ctypes.pythonapi.PyCapsule_GetPointer
POINTER.restype, POINTER.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
VIEWS = {"as_strided", "view", "_reshape_alias", "unfold", "set_"}
TAKES_HOST_TENSORS = {"index", "index_put_", "_index_put_impl_"}


def to_device(x):
    """The bytes of a host tensor as a tensor on the device, which keeps them alive."""
    capsule = torch._C._to_dlpack(x.detach())
    ctypes.c_int32.from_address(POINTER(capsule, b"dltensor") + 8).value = TAG
    return torch._C._from_dlpack(capsule)


def to_host(x):
    """A view of a device tensor's bytes on the host, which keeps that tensor alive; other things as they are."""
    if not isinstance(x, torch.Tensor) or x.device.type != NAME:
        return x
    start, size = x.untyped_storage().data_ptr(), x.untyped_storage().nbytes()
    view = torch.empty(0, dtype=x.dtype)
    if size:
        storage = torch._C._construct_storage_from_data_pointer(start, HOST, size)
        view.set_(storage, x.storage_offset(), x.shape, x.stride())
    else:
        view = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)
    view.owner = x
    return view


def each(function, x):
    """What ``tree_map`` does, for the lists that operators take and return, several times faster."""
    if isinstance(x, tuple | list):
        return type(x)(each(function, y) for y in x)
    return function(x)


def run(op, *args, **options):
    """Any operator: on host views of its tensors, with the results back on the device."""
    name = op._overloadpacket.__name__
    if name in VIEWS:
        return op.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args, **options)
    views = []

    def enter(x):
        if isinstance(x, torch.device):
            return HOST
        if isinstance(x, torch.Tensor):
            if x.device.type != NAME and x.dim() and name not in TAKES_HOST_TENSORS:
                raise RuntimeError(f"{name}: expected all tensors on {NAME}, found one on {x.device}")
            views.append(to_host(x))
            return views[-1]
        return x

    def leave(x):
        if not isinstance(x, torch.Tensor):
            return x
        for view in (view for view in views if hasattr(view, "owner")):
            if x is view:  # written to; "out" tensors may start empty and grow
                return view.owner if x.shape == view.owner.shape else view.owner.set_(to_device(x))
            if x.numel() and x.untyped_storage().data_ptr() == view.untyped_storage().data_ptr():
                return view.owner.as_strided(x.shape, x.stride(), x.storage_offset())
        return to_device(x)

    with torch._C._AutoDispatchBelowAutograd():
        return each(leave, op(*each(enter, args), **{key: enter(x) for key, x in options.items()}))


def copy_(self, source, non_blocking=False):
    with torch._C._AutoDispatchBelowAutograd():
        to_host(self).copy_(to_host(source))
    return self


def toylink(store, rank, size, timeout):
    """The process groups of the device's communication library."""
    return dist.ProcessGroupGloo(store, rank, size, timeout)


class Event:
    """Comes to pass as soon as it is recorded."""

    def record(self, stream=None):
        return None

    wait = synchronize = record

    def query(self):
        return True


class Stream:
    """A queue that is always empty."""

    def __init__(self, device=None):
        return None

    def synchronize(self):
        return None

    def wait_event(self, event):
        return None

    wait_stream = wait_event


class DeviceModule:
    """``torch.toydevice``: one device, which all processes share."""

    Event, Stream = Event, Stream

    def __init__(self):
        self.queues = [Stream()]

    def is_initialized(self):
        return True

    is_available = is_initialized

    def _is_in_bad_fork(self):
        return False

    def device_count(self):
        return 1

    def current_device(self):
        return 0

    def set_device(self, device):
        return None

    synchronize = manual_seed_all = set_device  # operators draw from the host's generator

    def current_stream(self, device=None):
        return self.queues[-1]

    @contextmanager
    def stream(self, stream):
        self.queues.append(stream)
        try:
            yield
        finally:
            self.queues.pop()


_setup_privateuseone_for_python_backend(NAME, DeviceModule())
LIBRARIES = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
LIBRARIES[0].fallback(run, "PrivateUse1")
LIBRARIES[1].impl("copy_", copy_, "PrivateUse1")
dist.Backend.register_backend("toylink", toylink, devices=["cpu"])
