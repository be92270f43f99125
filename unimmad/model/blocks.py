"""Small pieces that the compression module and C-MoE are built of. Maps are [B, C, H, W]."""

from __future__ import annotations

from torch import Tensor, nn

BOTTLENECK_EXPANSION = 4
WIDTH_FACTOR = 2


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with the largest of 32, 16, 8, 4, 2, 1 groups that divides the channels."""
    groups = next(groups for groups in (32, 16, 8, 4, 2, 1) if channels % groups == 0)
    return nn.GroupNorm(groups, channels)


def pointwise(in_channels: int, out_channels: int) -> nn.Sequential:
    """1x1 convolution without bias, GroupNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, bias=False), group_norm(out_channels), nn.ReLU(inplace=True)
    )


class BasicBlock(nn.Module):
    """ResNet's two-convolution block whose skip is a bare 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.skip: nn.Module = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = self.norm1(self.conv1(x_BCHW)).relu()
        return (self.norm2(self.conv2(y_BCHW)) + self.skip(x_BCHW)).relu()


class UpBasicBlock(BasicBlock):
    """The same, doubling height and width: the first convolution and the skip are transposed."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, stride=1)
        self.conv1 = nn.ConvTranspose2d(in_channels, out_channels, 2, 2, bias=False)  # type: ignore[assignment]
        self.skip = nn.ConvTranspose2d(in_channels, out_channels, 4, 2, padding=1)


class DecoderBottleneck(nn.Module):
    """Wide ResNet's bottleneck; ``upsample`` makes its middle convolution and its skip 2x2 transposed, stride 2.

    Without it the skip is a 1x1 convolution where channels change, and nothing where they don't.
    """

    def __init__(self, in_channels: int, planes: int, upsample: bool) -> None:
        super().__init__()
        width, out_channels = planes * WIDTH_FACTOR, planes * BOTTLENECK_EXPANSION
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2: nn.Module = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out_channels)
        self.skip: nn.Module = nn.Identity()
        if upsample:
            self.conv2 = nn.ConvTranspose2d(width, width, 2, 2, bias=False)
            self.skip = nn.Sequential(
                nn.ConvTranspose2d(in_channels, out_channels, 2, 2, bias=False), nn.BatchNorm2d(out_channels)
            )
        elif in_channels != out_channels:
            self.skip = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = self.norm1(self.conv1(x_BCHW)).relu()
        y_BCHW = self.norm2(self.conv2(y_BCHW)).relu()
        return (self.norm3(self.conv3(y_BCHW)) + self.skip(x_BCHW)).relu()


class DepthwiseSeparable(nn.Module):
    """Depthwise k x k and pointwise convolution without bias, GroupNorm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            in_channels, in_channels, kernel_size, padding=kernel_size // 2, groups=in_channels, bias=False
        )
        self.pointwise = pointwise(in_channels, out_channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x_BCHW))
