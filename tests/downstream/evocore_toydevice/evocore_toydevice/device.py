"""The device as evocore drives it: what the defaults of Backend, which ask torch.toydevice, do not know."""

import torch

from evocore.backend import Backend, installed_versions


class ToyDevice(Backend):
    name = device_type = "toydevice"
    priority = -200  # an accelerator has 0 or more; below the processor, this one is only taken when it is named
    process_group_backend = "toylink"
    variables = ("TOYDEVICE_", "TOYLINK_")

    def why_unavailable(self):
        try:
            import torch_toydevice  # noqa: F401 - registers the device
        except (ImportError, OSError, RuntimeError) as error:
            return f"torch_toydevice does not import ({error}): pip install torch-toydevice"
        return super().why_unavailable()

    def versions(self):
        return installed_versions("torch-toydevice")

    def device(self, local_rank=0):
        return torch.device("toydevice", 0)  # there is one, which all ranks share

    def dtypes(self):
        return frozenset({torch.float32})

    def preferred_dtype(self):
        return torch.float32

    def pins_host_memory(self):
        return False

    def collectives(self):
        from evocore_toydevice.collectives import ToyCollectives

        return ToyCollectives()
