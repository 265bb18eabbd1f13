"""Branches, the end of a thread, and instructions without effect here (PTX ISA 9.7.12, 9.7.13)."""

from .handlers import instruction
from .program import Symbol
from .step import Step


@instruction("bra", modifiers="uni")
def branch(step: Step) -> bool:
    (label,) = step.instruction.operands
    assert isinstance(label, Symbol)
    step.proceed()
    step.machine.pc[step.mask] = step.machine.kernel.labels[label.name]
    return True


@instruction("ret", "exit", modifiers="uni")
def leave(step: Step) -> bool:
    step.proceed()
    step.machine.alive[step.mask] = False
    step.machine.scheduler.note_progress()
    return True


@instruction("trap")
def trap(step: Step) -> None:
    raise step.fault("trap reached", int(step.active[0]))


@instruction(
    "membar",
    "fence",
    "prefetch",
    "discard",
    "nanosleep",
    "setmaxnreg",
    "griddepcontrol",
    "applypriority",
    "createpolicy",
    "prefetchu",
    modifiers=None,
)
def without_effect(step: Step) -> None:
    """Memory here is in order, and caches, priorities and registers' number do not show."""
