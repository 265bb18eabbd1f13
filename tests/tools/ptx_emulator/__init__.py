"""The emulator on tiny programs, one group of instructions after the other."""
