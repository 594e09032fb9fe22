"""Models of torchvision and timm, narrow and on small images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torchvision
from torch import nn

from tests.models.entry import Model, Width, at_scale, images

_WRITTEN = "its widths are written into its definition"


def _torchvision() -> list[Model]:
    models = torchvision.models
    resnet, convnext, segmentation = models.resnet, models.convnext, models.segmentation

    def small_convnext(scale: int) -> nn.Module:
        settings = [convnext.CNBlockConfig(16 * scale, 32 * scale, 1), convnext.CNBlockConfig(32 * scale, None, 1)]
        return models.ConvNeXt(settings, num_classes=1)

    def small_efficientnet(scale: int) -> nn.Module:
        block = partial(models.efficientnet.MBConvConfig, width_mult=scale)
        settings = [block(1, 3, 1, 8, 8, 1), block(4, 3, 2, 8, 16, 1), block(4, 5, 1, 16, 16, 1)]
        return models.EfficientNet(settings, 0.1, num_classes=1)

    def small_regnet(scale: int) -> nn.Module:
        settings = models.regnet.BlockParams([1, 1], [16 * scale, 32 * scale], [8, 8], [1.0, 1.0], [2, 2], 0.25)
        return models.RegNet(settings, num_classes=1, stem_width=16 * scale)

    def small_mobilenet(scale: int) -> nn.Module:
        settings = [[1, 8, 1, 1], [6, 12, 2, 2], [6, 24, 1, 2]]
        return models.MobileNetV2(1, scale, settings, round_nearest=1)

    def small_mobilenet_v3(scale: int) -> nn.Module:
        block = partial(models.mobilenetv3.InvertedResidualConfig, dilation=1, width_mult=scale)
        settings = [block(16, 3, 64, 16, True, "RE", 2), block(16, 5, 64, 24, True, "HS", 1)]
        return models.MobileNetV3(settings, 64 * scale, num_classes=1)

    def vit(scale: int, *, grows: bool) -> nn.Module:
        return models.VisionTransformer(16, 8, 2, 2 if grows else 2 * scale, 32 * scale, 64 * scale, num_classes=1)

    def swin(scale: int, **parts: Any) -> nn.Module:
        heads, size = [2 * scale, 4 * scale], [4, 4]
        return models.SwinTransformer([2, 2], 16 * scale, [2, 2], heads, size, num_classes=1, **parts)

    second = models.swin_transformer
    found = [
        Model("torchvision", name, build, images(size), outputs, scales)
        for name, build, size, outputs, scales in (
            (
                "DenseNet",
                lambda scale: models.DenseNet(8 * scale, (2, 2, 2), 16 * scale, num_classes=1),
                16,
                None,
                (2, 4, 8),
            ),
            ("MobileNetV2", small_mobilenet, 16, None, (2, 4, 8)),
            ("MobileNetV3", small_mobilenet_v3, 16, None, (1, 2, 4)),
            (
                "ShuffleNetV2",
                lambda scale: models.ShuffleNetV2(
                    [2, 1, 1], [scale * width for width in (12, 24, 32, 48, 64)], num_classes=1
                ),
                16,
                None,
                (2, 4, 8),
            ),
            ("EfficientNet", small_efficientnet, 16, None, (2, 4, 8)),
            ("RegNet", small_regnet, 16, None, (1, 2, 4)),
            ("ConvNeXt", small_convnext, 16, None, (1, 2, 4)),
            ("VisionTransformer", partial(vit, grows=False), 16, None, (2, 4, 8)),
            ("VisionTransformer, heads that grow", partial(vit, grows=True), 16, None, (2, 4, 8)),
            ("SwinTransformer", swin, 16, None, (2, 4, 8)),
            (
                "SwinTransformer V2",
                partial(swin, block=second.SwinTransformerBlockV2, downsample_layer=second.PatchMergingV2),
                16,
                None,
                (2, 4, 8),
            ),
            (
                "MaxVit",
                lambda scale: models.MaxVit(
                    (32, 32), 16 * scale, 4, [16 * scale, 16 * scale], [1, 1], 8, 0.1, num_classes=1
                ),
                32,
                None,
                (2, 4, 8),
            ),
            (
                "mobilenet_v2",
                lambda scale: models.mobilenet_v2(num_classes=1, width_mult=0.5 * scale),
                32,
                None,
                (),
            ),
            (
                "mnasnet0_5",
                lambda scale: models.MNASNet(0.5 * scale, num_classes=1),
                32,
                None,
                (),
            ),
        )
    ]
    fixed = {
        **{name: ({}, 32, None) for name in ("resnet18", "squeezenet1_1", "efficientnet_b0", "shufflenet_v2_x0_5")},
        **{name: ({}, 64, None) for name in ("regnet_x_400mf", "regnet_y_400mf")},
        "mobilenet_v3_small": ({"width_mult": 0.5}, 32, None),
        "googlenet": ({"aux_logits": False, "init_weights": False}, 64, None),
    }
    bottlenecks = partial(models.ResNet, resnet.Bottleneck, [1, 1, 1, 1], num_classes=1)
    builds = {
        name: partial(getattr(models, name), num_classes=1, **settings) for name, (settings, _, _) in fixed.items()
    }
    builds |= {"ResNet, bottlenecks": bottlenecks, "ResNeXt": partial(bottlenecks, groups=4, width_per_group=4)}
    for name, build in builds.items():
        _, size, outputs = fixed.get(name, ({}, 32, None))
        found.append(Model("torchvision", name, lambda _, build=build: build(), images(size), outputs, (), _WRITTEN))  # type: ignore[misc]
    lraspp = partial(segmentation.lraspp_mobilenet_v3_large, weights=None, weights_backbone=None, num_classes=1)
    found.append(
        Model(
            "torchvision",
            "lraspp_mobilenet_v3_large",
            lambda _: lraspp(),
            images(32),
            lambda out: out["out"].mean((2, 3)),
            (),
            _WRITTEN,
        )
    )
    return found


def _sizes(*sizes: float) -> tuple[Width, ...]:
    return tuple(map(Width, sizes))


_VIT: dict[str, Any] = {"img_size": 32, "depth": 2, "embed_dim": Width(48), "num_heads": Width(3)}
_SWIN: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 2,
    "window_size": 4,
    "embed_dim": Width(24),
    "depths": (2, 2),
    "num_heads": _sizes(2, 4),
}
_TIMM: dict[str, dict[str, Any]] = {
    "test_vit": {"img_size": 32, "embed_dim": Width(64), "num_heads": Width(2)},
    "test_vit2": {"img_size": 32, "embed_dim": Width(64), "num_heads": Width(2)},
    "test_vit3": {"img_size": 32, "embed_dim": Width(96), "num_heads": Width(3)},
    "test_vit4": {"img_size": 32, "embed_dim": Width(96), "num_heads": Width(3)},
    **{f"test_efficientnet{kind}": {"channel_multiplier": Width(1.0)} for kind in ("", "_gn", "_ln", "_evos")},
    "test_byobnet": {},
    "test_resnet": {"stem_width": Width(16), "channels": _sizes(32, 48, 48, 96)},
    "test_convnext": {"dims": _sizes(24, 32, 48, 64)},
    "test_convnext2": {"dims": _sizes(32, 64, 96, 128)},
    "test_convnext3": {"dims": _sizes(32, 64, 96, 128)},
    "test_mambaout": {"dims": _sizes(16, 32, 48, 64)},
    "test_nfnet": {},
    "vit_tiny_patch16_224": {**_VIT, "patch_size": 8},
    "deit_tiny_distilled_patch16_224": {**_VIT, "patch_size": 8},
    "beit_base_patch16_224": {**_VIT, "patch_size": 8},
    "eva02_tiny_patch14_224": {**_VIT, "patch_size": 8},
    "cait_xxs24_224": {**_VIT, "patch_size": 8},
    "xcit_nano_12_p16_224": _VIT,
    "poolformer_s12": {},
    "pit_ti_224": {"img_size": 64, "base_dims": (16, 16, 16), "depth": (1, 1, 1), "heads": _sizes(2, 4, 8)},
    "coat_lite_tiny": {"img_size": 32, "serial_depths": (1, 1, 1, 1), "embed_dims": _sizes(16, 32, 40, 64)},
    "pvt_v2_b0": {"depths": (1, 1, 1, 1), "embed_dims": _sizes(16, 32, 40, 64), "num_heads": _sizes(2, 4, 5, 8)},
    "twins_svt_small": {
        "img_size": 32,
        "embed_dims": _sizes(16, 32, 48, 64),
        "depths": (2, 2, 2, 2),
        "num_heads": _sizes(2, 4, 3, 4),
    },
    "visformer_tiny": {
        "img_size": 64,
        "embed_dim": Width(48),
        "init_channels": Width(16),
        "num_heads": Width(3),
        "depth": (1, 1, 1),
    },
    "swin_tiny_patch4_window7_224": _SWIN,
    "swinv2_tiny_window8_256": _SWIN,
    "davit_tiny": {"depths": (1, 1), "embed_dims": _sizes(16, 32), "num_heads": _sizes(2, 4)},
    "mobilenetv3_small_050": {},
    "mobilenetv4_conv_small": {},
    "ghostnet_050": {},
    "lcnet_050": {},
    "tinynet_e": {},
    "mobilevit_xxs": {},
    "mobilevitv2_050": {},
    "edgenext_xx_small": {"dims": _sizes(24, 48, 88, 168), "heads": _sizes(4, 4, 4, 4)},
    "convnextv2_atto": {"dims": _sizes(16, 24, 32, 40), "depths": (1, 1, 2, 1)},
    "inception_next_atto": {"dims": _sizes(16, 24, 32, 40), "depths": (1, 1, 2, 1)},
    "efficientvit_b0": {},
    "fastvit_t8": {"layers": (1, 1, 1, 1), "embed_dims": _sizes(48, 96, 192, 384)},
    "repvit_m0_9": {},
    "starnet_s1": {"base_dim": Width(24)},
    "resnet10t": {"channels": _sizes(16, 24, 32, 40), "stem_width": Width(16)},
    "resnest14d": {},
    "skresnet18": {"channels": _sizes(16, 24, 32, 40), "stem_width": Width(16)},
    "ese_vovnet19b_slim": {},
    "hrnet_w18_small": {},
    "dla46_c": {"channels": _sizes(16, 32, 64, 64, 128, 256)},
    "rexnetr_100": {"width_mult": Width(1.0)},
    "selecsls42": {},
    "nf_regnet_b0": {},
}
_CHECKED = frozenset(
    {
        *(
            "test_vit",
            "test_mambaout",
            "vit_tiny_patch16_224",
            "deit_tiny_distilled_patch16_224",
            "beit_base_patch16_224",
        ),
        *("eva02_tiny_patch14_224", "cait_xxs24_224", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"),
        *("davit_tiny", "coat_lite_tiny", "convnextv2_atto", "inception_next_atto", "resnet10t"),
    }
)
"""Those with few enough layers for the coordinate check."""


def _of_timm(name: str, settings: dict[str, Any]) -> Model:
    def build(scale: int) -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=1, **at_scale(settings, scale))

    is_fixed = at_scale(settings, 2) == settings
    scales = () if is_fixed or name not in _CHECKED else (1, 2, 4)
    return Model(
        "timm",
        name,
        build,
        images(settings.get("img_size", 32)),
        scales=scales,
        fixed=_WRITTEN if is_fixed else "",
    )


def _mlp(block: str, ratio: Any = (0.5, 4.0), **parts: str) -> Callable[[int], nn.Module]:
    """A mixer of a kind, by the names of its parts."""

    def build(scale: int) -> nn.Module:
        from timm.models import mlp_mixer

        made = {name: getattr(mlp_mixer, part) for name, part in parts.items()}
        return mlp_mixer.MlpMixer(
            num_classes=1,
            img_size=32,
            patch_size=8,
            num_blocks=2,
            embed_dim=48 * scale,
            mlp_ratio=ratio,
            block_layer=getattr(mlp_mixer, block),
            **made,
        )

    return build


def _convmixer(scale: int) -> nn.Module:
    from timm.models.convmixer import ConvMixer

    return ConvMixer(dim=32 * scale, depth=2, num_classes=1)


_CLASSES = [
    Model("timm", "MlpMixer", _mlp("MixerBlock"), images(32), scales=(1, 2, 4)),
    Model("timm", "MlpMixer, gMLP", _mlp("SpatialGatingBlock", 4, mlp_layer="GatedMlp"), images(32), scales=(1, 2, 4)),
    Model("timm", "MlpMixer, ResMLP", _mlp("ResBlock", 4, norm_layer="Affine"), images(32), scales=(1, 2, 4)),
    Model("timm", "ConvMixer", _convmixer, images(32), scales=(2, 4, 8)),
]
MODELS = [*_torchvision(), *_CLASSES, *(_of_timm(name, settings) for name, settings in _TIMM.items())]
