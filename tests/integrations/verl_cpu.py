"""A platform of verl for CPUs, which verl 0.9.1 has none of. Imported before verl's engines."""

import torch
from verl.plugin.platform.platform_cuda import PlatformCUDA
from verl.plugin.platform.platform_manager import set_platform


class CPU(PlatformCUDA):
    device_name, device_module = "cpu", torch.cpu

    def is_available(self):
        return True

    def current_device(self):
        return "cpu"

    def empty_cache(self):
        return None


set_platform(CPU())
