"""Which keys a query may see."""

import torch
from torch import Tensor


def visible(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """The causal mask of one document, bool ``[queries, keys]``: the last query sees the last ``window`` keys."""
    age = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    return age >= 0 if window is None else (age >= 0) & (age < window)
