"""There is no center head here; the names only have to be there."""

from torch import nn


class SeparateHead(nn.Module):
    pass


class CenterHead(nn.Module):
    pass
