"""What an emulation can end with instead of a result."""


class EmulatorError(Exception):
    """A launch came to no result."""


class KernelFault(EmulatorError):
    """The kernel did what no kernel may do: an address outside every buffer, a barrier that not all
    threads reach, a value nobody wrote."""


class Unsupported(EmulatorError):
    """The program asks for something that the emulator does not know. It never guesses."""
