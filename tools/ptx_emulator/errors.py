"""Errors that end an emulation."""


class EmulatorError(Exception):
    """A launch gave no result."""


class KernelFault(EmulatorError):
    """The kernel did something that no kernel may do: it used an address outside every buffer, a
    barrier that not all threads reach, or a value that was never written."""


class Unsupported(EmulatorError):
    """The program asks for something that the emulator does not know. It never guesses."""
