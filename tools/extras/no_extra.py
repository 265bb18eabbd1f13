"""The losses with torch alone."""

import torch

import wavalign_fast as wf
import wavalign_fast._C
import wavalign_fast._host

hidden = torch.randn(4, 32, requires_grad=True)
out = wf.linear_logprob(hidden, torch.randn(64, 32), torch.arange(4))
out.logp.sum().backward()
assert hidden.grad is not None and bool(hidden.grad.isfinite().all())
