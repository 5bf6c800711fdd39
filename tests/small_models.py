"""Models small enough for every test, and models that misbehave on purpose."""

from __future__ import annotations

import torch
from torch import Tensor, nn

IMAGE_SIZE = 32


def tiny_vit() -> nn.Module:
    """A real timm ViT: 2 blocks, 24 wide, 3 heads, 10 classes, random weights."""
    import timm  # here: processes that only want another model start without it

    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=IMAGE_SIZE,
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=3,
        num_classes=10,
    ).eval()


def tiny_resnet() -> nn.Module:
    """A real timm ResNet with in-place activations and shortcuts, 10 classes, random weights."""
    from timm.models.resnet import BasicBlock, ResNet

    torch.manual_seed(0)
    model = ResNet(
        BasicBlock,
        layers=(1, 1, 1, 1),
        channels=(8, 16, 16, 16),
        num_classes=10,
        zero_init_last=False,  # a fresh residual branch would otherwise change nothing
    )
    return model.eval()


class GlyphNet(nn.Module):
    """Eight modules with shortcuts, for the generated characters; random weights."""

    input_size = (3, IMAGE_SIZE, IMAGE_SIZE)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 8, 1))
            for _ in range(3)
        )
        self.head = nn.Linear(8, 36)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        for branch in self.branches:
            features = features + branch(features)
        return self.head(features.mean((2, 3)))


def glyph_net() -> nn.Module:
    """A `GlyphNet` with the same weights every time."""
    torch.manual_seed(0)
    return GlyphNet().eval()


def tiny_swin() -> nn.Module:
    """A real timm Swin with shifted windows and patch merging, 10 classes, random weights."""
    from timm.models.swin_transformer import SwinTransformer

    torch.manual_seed(0)
    return SwinTransformer(
        img_size=IMAGE_SIZE,
        patch_size=4,
        window_size=4,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(2, 4),
        num_classes=10,
    ).eval()


class RaisesOnCall(nn.Module):
    """Raises in the middle of its n-th forward."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Linear(4, 10)
        self.calls = 0
        self.raising = call

    def forward(self, images: Tensor) -> Tensor:
        features = self.first(images).mean((2, 3))
        self.calls += 1
        if self.calls == self.raising:
            raise RuntimeError("planted")
        return self.second(features)


class WithFrozenNorm(nn.Module):
    """A dropout in training mode beside a norm that is individually in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 10)
        self.train()
        self.norm.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(self.conv(images)).mean((2, 3))))


def images(n: int = 4, size: int = IMAGE_SIZE) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


BUILDERS = {"vit": tiny_vit, "swin": tiny_swin, "resnet": tiny_resnet}
