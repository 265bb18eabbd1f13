"""What a model does to the product with its head before the softmax: scale, soft cap, bias."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch

from wavalign_fast.ops.inputs import SMALLEST_TEMPERATURE, check_type, finite_number

BiasAdded = Literal["after_temperature", "before_temperature"]


@dataclass(frozen=True, kw_only=True)
class LogitTransform:
    """The logits of a head: where its bias is added, a scale, and a soft cap.

    With ``cap(x) = softcap · tanh(x / softcap)``, or ``cap(x) = x`` without one::

        z = cap(scale · (hidden W^T + bias)) / temperature    bias_added="before_temperature"
        z = cap(scale · hidden W^T) / temperature + bias      bias_added="after_temperature"

    Before the temperature the bias is the model's, as in every trainer. After it, a bias is one of
    the caller's, outside the cap: ``-inf`` bans an id there, which no bias before a cap does.

    Args:
        scale: above 0, as Cohere's ``logit_scale`` or one over Granite's ``logits_scaling``.
        softcap: above 0, as Gemma's ``final_logit_softcapping``; ``None`` does not cap.
        bias_added: "after_temperature" or "before_temperature".

    Raises:
        ValueError: a value outside its range; the message has the value and the range.
    """

    scale: float = 1.0
    softcap: float | None = None
    bias_added: BiasAdded = "after_temperature"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", finite_number("scale", self.scale, above=0))
        if self.softcap is not None:
            object.__setattr__(self, "softcap", finite_number("softcap", self.softcap, above=0))
        if self.bias_added not in get_args(BiasAdded):
            first, second = get_args(BiasAdded)
            raise ValueError(f"bias_added: got {self.bias_added!r}, want {first!r} or {second!r}")


UNCHANGED = LogitTransform()


class LogitForm(NamedTuple):
    """``LogitTransform`` and a temperature, and the numbers in which the kernels take them.

    With ``cap`` and ``temperature`` both divided by the scale, a kernel needs no scale:
    ``softcap tanh(scale x / softcap) / temperature = c tanh(x / c) / t``.
    """

    temperature: float = 1.0
    transform: LogitTransform = UNCHANGED

    @classmethod
    def of(cls, temperature: float, transform: LogitTransform | None) -> "LogitForm":
        """Checks both.

        Raises:
            ValueError: the message has the value seen and the value wanted.
        """
        temperature = finite_number("temperature", temperature, above=0)
        if temperature < SMALLEST_TEMPERATURE:
            raise ValueError(f"temperature: got {temperature}, want >= {SMALLEST_TEMPERATURE:.1e}")
        if transform is None:
            # By its name: torch 2.10 traces no default of a tuple that is such an object.
            return cls(temperature, UNCHANGED)
        check_type("transform", transform, LogitTransform)
        form = cls(temperature, transform)
        if not SMALLEST_TEMPERATURE <= form.kernel_temperature <= 1.0 / SMALLEST_TEMPERATURE:
            raise ValueError(
                f"temperature / scale: got {temperature} / {transform.scale}, want it between "
                f"{SMALLEST_TEMPERATURE:.1e} and {1.0 / SMALLEST_TEMPERATURE:.1e}"
            )
        return form

    def logits(self, product: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """z of ``LogitTransform``, from ``hidden W^T`` [..., V]."""
        scale, softcap = self.transform.scale, self.transform.softcap
        before = self.transform.bias_added == "before_temperature"
        z = product + bias if bias is not None and before else product
        z = z if scale == 1.0 else scale * z
        z = z if softcap is None else softcap * torch.tanh(z / softcap)
        z = z / self.temperature
        return z if bias is None or before else z + bias

    @property
    def kernel_temperature(self) -> float:
        """t"""
        return self.temperature / self.transform.scale

    @property
    def kernel_softcap(self) -> float | None:
        """c"""
        cap = self.transform.softcap
        return None if cap is None else cap / self.transform.scale

    @property
    def bias_inside(self) -> bool:
        """Whether the kernel adds the bias before the cap."""
        return self.transform.bias_added == "before_temperature" and self.kernel_softcap is not None

    def kernel_bias(self, bias: torch.Tensor | None) -> torch.Tensor | None:
        """The bias as the kernel adds it, with its gradient.

        Without a cap, a bias before the temperature is one after it, divided by t.
        """
        before = self.transform.bias_added == "before_temperature"
        if bias is None or not before or self.bias_inside or self.kernel_temperature == 1.0:
            return bias
        return bias.to(torch.promote_types(bias.dtype, torch.float32)) / self.kernel_temperature
