# SPDX-License-Identifier: Apache-2.0
"""From recipes to images that a cluster can load: build what changed, hand it over, forget what it replaces."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kinema_images import base, layout, paths, recipe
from kinema_images.buildah import Buildah, skopeo
from kinema_images.errors import ImageError
from kinema_images.recipe import Recipe

PREFIX = "localhost/kinema"


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for."""

    names: tuple[str, ...] = ()
    push: str | None = None
    insecure: bool = False
    base_image: str | None = None
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Built:
    """One image as it lies here."""

    name: str
    reference: str
    digest: str


def selected(recipes: Mapping[str, Recipe], order: Order) -> list[Recipe]:
    """The recipes to build: those named, or all whose base is at hand."""
    unknown = sorted(set(order.names) - recipes.keys())
    if unknown:
        raise ImageError(f"no images/{unknown[0]}/Dockerfile; there are: {', '.join(recipes)}")
    if order.names:
        chosen = [recipes[name] for name in dict.fromkeys(order.names)]
        for item in chosen:
            if item.base not in base.STAND_INS and not order.base_image:
                raise ImageError(
                    f"{item.name} builds on {item.base}, which cannot be made here; give --base-image, "
                    f"or build it where that image can be pulled: docker build -f images/{item.name}/Dockerfile ."
                )
        return chosen
    return [item for item in recipes.values() if item.base in base.STAND_INS]


def left_out(recipes: Mapping[str, Recipe], order: Order) -> list[Recipe]:
    """What is not built, though everything was asked for: its base is not at hand."""
    return [] if order.names else [item for item in recipes.values() if item.base not in base.STAND_INS]


def build(order: Order, *, say: Callable[[str], None] = print) -> dict[str, Built]:
    """Build, hand over and record; returns what there is now."""
    paths.cache().mkdir(parents=True, exist_ok=True)
    with _alone(paths.cache() / "images.lock"):
        buildah = Buildah(root=paths.cache() / "buildah", say=say)
        buildah.share_cache(Path(os.environ.get("UV_CACHE_DIR") or paths.cache() / "uv-cache"))
        recipes = recipe.read_all(paths.REPOSITORY)
        chosen = selected(recipes, order)
        for item in left_out(recipes, order):
            say(f"{item.name} is left out: it builds on {item.base}, which cannot be made here; --base-image names one")
        everything = recorded()
        if order.fresh and not order.base_image:
            for image in sorted({item.base for item in chosen}):
                base.ensure(image, buildah, fresh=True)
        for item in chosen:
            everything[item.name] = _one(item, order, buildah, say)
            # At once: what a later failure leaves is not built again, and not forgotten below.
            _record(everything)
        _forget(buildah, everything.values(), say)
        if order.push:
            for item in chosen:
                push(everything[item.name], order, say=say)
        return everything


def recorded() -> dict[str, Built]:
    """What was built last."""
    path = paths.record()
    if not path.exists():
        return {}
    return {name: Built(name=name, **entry) for name, entry in json.loads(path.read_text()).items()}


def version(repository: Path) -> str:
    """The version that pushed images carry."""
    with (repository / "crds" / "pyproject.toml").open("rb") as file:
        found: str = tomllib.load(file)["project"]["version"]
    return found


def _one(item: Recipe, order: Order, buildah: Buildah, say: Callable[[str], None]) -> Built:
    with tempfile.TemporaryDirectory(dir=paths.cache(), prefix="context-") as folder:
        context = Path(folder)
        frozen = recipe.snapshot(item, repository=paths.REPOSITORY, target=context)
        base_image = order.base_image or base.reference(item.base)
        key = recipe.key(frozen, repository=context, base=base_image)
        reference = f"{PREFIX}/{item.name}:{key}"
        digest = layout.digests(paths.layout()).get(reference)
        if digest and not order.fresh:
            say(f"{reference} is up to date")
            return Built(name=item.name, reference=reference, digest=digest)
        return _build(frozen, reference, order, buildah, say, context=context)


def _build(
    item: Recipe, reference: str, order: Order, buildah: Buildah, say: Callable[[str], None], *, context: Path
) -> Built:
    began = time.monotonic()
    say(f"{reference}: building")
    base_image = order.base_image or base.ensure(item.base, buildah)
    log = paths.cache() / "log" / f"image-{item.name}.log"
    arguments = {"BASE_IMAGE": base_image}
    buildah.build(item.dockerfile, context=context, tag=reference, log=log, arguments=arguments, fresh=order.fresh)
    say(f"  {time.monotonic() - began:5.0f} s  handing it over")
    buildah.export(reference, paths.layout())
    say(f"  {time.monotonic() - began:5.0f} s  done")
    return Built(name=item.name, reference=reference, digest=layout.digests(paths.layout())[reference])


def _record(images: Mapping[str, Built]) -> None:
    content = {name: {"reference": image.reference, "digest": image.digest} for name, image in sorted(images.items())}
    scratch = paths.record().with_suffix(".new")
    scratch.write_text(json.dumps(content, indent=2) + "\n")
    scratch.replace(paths.record())


def _forget(buildah: Buildah, images: Iterable[Built], say: Callable[[str], None]) -> None:
    """Drop what the images of today have replaced."""
    names = {image.reference for image in images}
    freed = layout.keep(paths.layout(), names)
    current = {*names, *(base.reference(image) for image in base.STAND_INS)}
    old = [name for name in buildah.references() if name.startswith(PREFIX) and name not in current]
    buildah.drop(*old)
    buildah.prune()
    if freed:
        say(f"{freed / 1e6:.0f} MB of replaced layers removed")


def push(image: Built, order: Order, *, say: Callable[[str], None]) -> None:
    """Copy one image to the registry of the order, under the version and under the key of its content."""
    key = image.reference.rpartition(":")[2]
    options = ["--dest-tls-verify=false"] if order.insecure else []
    for tag in (version(paths.REPOSITORY), key):
        target = f"{order.push}/{image.name}:{tag}"
        say(f"pushing {target}")
        skopeo(*options, f"oci:{paths.layout()}:{image.reference}", f"docker://{target}")


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One build at a time on a machine; a second waits."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
