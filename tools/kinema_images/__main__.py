# SPDX-License-Identifier: Apache-2.0
"""The command line: `tools/images build`, `tools/images list`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from kinema_cluster import packages
from kinema_cluster.errors import ClusterError
from kinema_images import build, paths
from kinema_images.errors import ImageError

NEEDED = {"buildah": "buildah", "mmdebstrap": "mmdebstrap", "skopeo": "skopeo"}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="tools/images", description="Kinema's images, built without a container engine.")
    commands = top.add_subparsers(dest="command", required=True)
    making = commands.add_parser("build", help="build what changed, and hand it over")
    making.add_argument("names", nargs="*", metavar="IMAGE", help="folders of images/; all that can be built here")
    making.add_argument("--push", metavar="REGISTRY", help="push to REGISTRY/IMAGE:VERSION as well")
    making.add_argument("--insecure", action="store_true", help="the registry speaks plain HTTP")
    making.add_argument("--base-image", metavar="REF", help="build on this image instead of each Dockerfile's own base")
    making.add_argument("--fresh", action="store_true", help="build everything anew, the base included")
    commands.add_parser("list", help="what was built last, as JSON")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    if given.command == "list":
        print(json.dumps({name: image.reference for name, image in build.recorded().items()}, indent=2))
        return 0
    order = build.Order(
        names=tuple(given.names),
        push=given.push,
        insecure=given.insecure,
        base_image=given.base_image,
        fresh=given.fresh,
    )
    try:
        packages.ensure(NEEDED)
        build.build(order)
    except (ClusterError, ImageError) as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    print(f"references in {paths.record()}, layers in {paths.layout()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
