"""Models of torchvision and timm, narrow and on small images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from tests.models.entry import Model, images
from tests.vision import torchvision


def _torchvision() -> list[Model]:
    models = torchvision.models
    resnet, convnext, segmentation = models.resnet, models.convnext, models.segmentation

    def small_convnext() -> nn.Module:
        return models.ConvNeXt([convnext.CNBlockConfig(16, 32, 1), convnext.CNBlockConfig(32, None, 1)], num_classes=1)

    swin: dict[str, Any] = {
        "patch_size": [2, 2],
        "embed_dim": 16,
        "depths": [2, 2],
        "num_heads": [2, 2],
        "window_size": [4, 4],
        "num_classes": 1,
    }
    return [
        Model("torchvision", name, build, images(size), outputs)
        for name, build, size, outputs in (
            ("resnet18", partial(models.resnet18, num_classes=1), 32, None),
            ("ResNet, bottlenecks", lambda: models.ResNet(resnet.Bottleneck, [1, 1, 1, 1], num_classes=1), 32, None),
            (
                "ResNeXt",
                lambda: models.ResNet(resnet.Bottleneck, [1, 1, 1, 1], num_classes=1, groups=4, width_per_group=4),
                32,
                None,
            ),
            ("DenseNet", lambda: models.DenseNet(8, (2, 2, 2), 16, num_classes=1), 32, None),
            ("squeezenet1_1", partial(models.squeezenet1_1, num_classes=1), 32, None),
            ("mobilenet_v2", partial(models.mobilenet_v2, num_classes=1, width_mult=0.25), 32, None),
            ("mobilenet_v3_small", partial(models.mobilenet_v3_small, num_classes=1, width_mult=0.5), 32, None),
            ("shufflenet_v2_x0_5", partial(models.shufflenet_v2_x0_5, num_classes=1), 32, None),
            ("mnasnet0_5", partial(models.mnasnet0_5, num_classes=1), 32, None),
            ("efficientnet_b0", partial(models.efficientnet_b0, num_classes=1), 32, None),
            ("regnet_x_400mf", partial(models.regnet_x_400mf, num_classes=1), 64, None),
            ("regnet_y_400mf", partial(models.regnet_y_400mf, num_classes=1), 64, None),
            ("googlenet", partial(models.googlenet, num_classes=1, aux_logits=False, init_weights=False), 64, None),
            ("ConvNeXt", small_convnext, 32, None),
            (
                "VisionTransformer",
                lambda: models.VisionTransformer(16, 8, 2, 2, 32, 64, num_classes=1),
                16,
                None,
            ),
            ("SwinTransformer", lambda: models.SwinTransformer(**swin), 16, None),
            (
                "SwinTransformer V2",
                lambda: models.SwinTransformer(
                    **swin,
                    block=models.swin_transformer.SwinTransformerBlockV2,
                    downsample_layer=models.swin_transformer.PatchMergingV2,
                ),
                16,
                None,
            ),
            (
                "MaxVit",
                lambda: models.MaxVit((32, 32), 16, 4, [16, 16], [1, 1], 8, 0.1, num_classes=1),
                32,
                None,
            ),
            (
                "lraspp_mobilenet_v3_large",
                partial(segmentation.lraspp_mobilenet_v3_large, weights=None, weights_backbone=None, num_classes=1),
                32,
                lambda out: out["out"].mean((2, 3)),
            ),
        )
    ]


_VIT: dict[str, Any] = {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 3}
_TIMM: dict[str, dict[str, Any]] = {
    **{
        f"test_{name}": {"img_size": 32} if "vit" in name else {}
        for name in (
            *("vit", "vit2", "vit3", "vit4", "efficientnet", "efficientnet_gn", "efficientnet_ln", "efficientnet_evos"),
            *("byobnet", "resnet", "convnext", "convnext2", "convnext3", "mambaout", "nfnet"),
        )
    },
    "vit_tiny_patch16_224": {**_VIT, "patch_size": 8},
    "deit_tiny_distilled_patch16_224": {**_VIT, "patch_size": 8},
    "beit_base_patch16_224": {**_VIT, "patch_size": 8},
    "eva02_tiny_patch14_224": {**_VIT, "patch_size": 8},
    "cait_xxs24_224": {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 3, "patch_size": 8},
    "xcit_nano_12_p16_224": {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 3},
    "poolformer_s12": {},
    "pit_ti_224": {"img_size": 64},
    "coat_lite_tiny": {"img_size": 32, "serial_depths": (1, 1, 1, 1)},
    "pvt_v2_b0": {"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 40, 64)},
    "twins_svt_small": {"img_size": 32, "embed_dims": (16, 32, 48, 64), "depths": (2, 2, 2, 2)},
    "visformer_tiny": {"img_size": 64, "embed_dim": 48, "depth": (1, 1, 1)},
    "swin_tiny_patch4_window7_224": {
        "img_size": 32,
        "patch_size": 2,
        "window_size": 4,
        "embed_dim": 24,
        "depths": (2, 2),
        "num_heads": (2, 2),
    },
    "swinv2_tiny_window8_256": {
        "img_size": 32,
        "patch_size": 2,
        "window_size": 4,
        "embed_dim": 24,
        "depths": (2, 2),
        "num_heads": (2, 2),
    },
    "davit_tiny": {"depths": (1, 1), "embed_dims": (16, 32), "num_heads": (2, 2)},
    "mobilenetv3_small_050": {},
    "mobilenetv4_conv_small": {},
    "ghostnet_050": {},
    "lcnet_050": {},
    "tinynet_e": {},
    "mobilevit_xxs": {},
    "mobilevitv2_050": {},
    "edgenext_xx_small": {},
    "convnextv2_atto": {},
    "inception_next_atto": {},
    "efficientvit_b0": {},
    "fastvit_t8": {},
    "repvit_m0_9": {},
    "starnet_s1": {},
    "resnet10t": {},
    "resnest14d": {},
    "skresnet18": {},
    "ese_vovnet19b_slim": {},
    "hrnet_w18_small": {},
    "dla46_c": {},
    "rexnetr_100": {},
    "selecsls42": {},
    "nf_regnet_b0": {},
}


def _of_timm(name: str, settings: dict[str, Any]) -> Model:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=1, **settings)

    return Model("timm", name, build, images(settings.get("img_size", 64)))


def _mlp(block: str, ratio: Any = (0.5, 4.0), **parts: str) -> Callable[[], nn.Module]:
    """A mixer of a kind, by the names of its parts."""

    def build() -> nn.Module:
        from timm.models import mlp_mixer

        made = {name: getattr(mlp_mixer, part) for name, part in parts.items()}
        return mlp_mixer.MlpMixer(
            num_classes=1,
            img_size=32,
            patch_size=8,
            num_blocks=2,
            embed_dim=48,
            mlp_ratio=ratio,
            block_layer=getattr(mlp_mixer, block),
            **made,
        )

    return build


def _convmixer() -> nn.Module:
    from timm.models.convmixer import ConvMixer

    return ConvMixer(dim=32, depth=2, num_classes=1)


_CLASSES = [
    Model("timm", "MlpMixer", _mlp("MixerBlock"), images(32)),
    Model("timm", "MlpMixer, gMLP", _mlp("SpatialGatingBlock", 4, mlp_layer="GatedMlp"), images(32)),
    Model("timm", "MlpMixer, ResMLP", _mlp("ResBlock", 4, norm_layer="Affine"), images(32)),
    Model("timm", "ConvMixer", _convmixer, images(32)),
]
MODELS = [*_torchvision(), *_CLASSES, *(_of_timm(name, settings) for name, settings in _TIMM.items())]
