# SPDX-License-Identifier: Apache-2.0
"""What the image for Wan 2.1 must be."""

from checks import check

check(
    imports=[
        "accelerate",
        "av",
        "boto3",
        "diffusers",
        "kinema_stage",
        "kinema_trainer",
        "matplotlib",
        "peft",
        "tensorboard",
        "torch",
        "transformers",
        "webdataset",
    ],
    absent=["kinema-operator", "kubernetes", "torch-npu"],
    commands=["kinema-stage", "torchrun"],
    attributes=[
        "diffusers:AutoencoderKLWan",
        "diffusers:WanPipeline",
        "diffusers:WanTransformer3DModel",
        "transformers:UMT5EncoderModel",
    ],
)
