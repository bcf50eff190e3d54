"""The paper's mini-ViT: timm's VisionTransformer, small (supplementary, Table 3)."""

from __future__ import annotations

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from oialr_training.sections import MiniViTModel


def build(config: MiniViTModel, *, num_classes: int) -> nn.Module:
    """(batch, in_channels, image_size, image_size) → (batch, num_classes) logits."""
    return VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        in_chans=config.in_channels,
        num_classes=num_classes,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        qkv_bias=config.qkv_bias,
        drop_path_rate=config.drop_path_rate,
    )
