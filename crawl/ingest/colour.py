"""Bring decoded pixels to sRGB on a white ground."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

WHITE = (255, 255, 255)
_CACHED_PROFILES = 16  # a collection has a handful; the largest take 3 MB
_SAME_COLOUR = 2  # grey levels; profiles that call themselves sRGB differ by one or two
_LATTICE = np.linspace(0, 255, 9).round().astype(np.uint8)


def to_srgb(image: Image.Image, icc: bytes = b"", gamma: float = 0.0) -> Image.Image:
    """Convert to RGB in sRGB and lay it over white.

    A profile that is broken or made for other channels is ignored, as if the pixels were sRGB; browsers do so too.

    Args:
        image: mode L, LA, RGB, RGBA, CMYK (255 = full ink) or LAB.
        icc: colour profile, empty for none.
        gamma: encoding exponent of the samples, 0.0 for sRGB.
    """
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    colour = _managed(_without_alpha(image), icc)
    if gamma:
        colour = colour.point(_gamma_table(gamma) * 3)
    if alpha is None:
        return colour
    ground = Image.new("RGB", colour.size, WHITE)
    ground.paste(colour, mask=alpha)
    return ground


def is_srgb(icc: bytes) -> bool:
    """Tell whether a profile leaves RGB as it is, judged by what it does to a lattice of colours.

    A broken profile is ignored and so leaves RGB as it is.
    """
    return not icc or _leaves_rgb_alone(icc)


def _without_alpha(image: Image.Image) -> Image.Image:
    return image.convert({"LA": "L", "RGBA": "RGB"}[image.mode]) if image.mode in ("LA", "RGBA") else image


def _managed(image: Image.Image, icc: bytes) -> Image.Image:
    if image.mode == "LAB":
        return _applied(image, _lab_transform())
    candidates = (image, image.convert("RGB")) if image.mode == "L" else (image,)
    for candidate in candidates:  # grey pixels often carry an RGB profile
        transform = _transform(icc, candidate.mode) if icc else None
        if transform is not None:
            return _applied(candidate, transform)
    return image.convert("RGB")


def _applied(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # None is the answer to inPlace=True only
    return converted


@lru_cache(maxsize=_CACHED_PROFILES)
def _transform(icc: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        return _to_srgb_from(profile, mode)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _to_srgb_from(profile: ImageCms.ImageCmsProfile, mode: str) -> ImageCms.ImageCmsTransform:
    perceptual = ImageCms.Intent.PERCEPTUAL  # what browsers take; matrix profiles have no other
    return ImageCms.buildTransform(profile, _srgb(), mode, "RGB", renderingIntent=perceptual)


@lru_cache(maxsize=1)
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@lru_cache(maxsize=1)
def _lab_transform() -> ImageCms.ImageCmsTransform:
    return _to_srgb_from(ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")), "LAB")


@lru_cache(maxsize=_CACHED_PROFILES)
def _leaves_rgb_alone(icc: bytes) -> bool:
    transform = _transform(icc, "RGB")
    if transform is None:
        return True
    colours = np.stack(np.meshgrid(_LATTICE, _LATTICE, _LATTICE), axis=-1).reshape(1, -1, 3)
    seen = np.asarray(_applied(Image.fromarray(colours), transform))
    return int(np.abs(seen.astype(int) - colours).max()) <= _SAME_COLOUR


def _gamma_table(gamma: float) -> list[int]:
    """Map samples that encode light as light**gamma to sRGB's own curve (IEC 61966-2-1)."""
    light = (np.arange(256) / 255) ** (1 / gamma)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    levels: list[int] = np.rint(255 * encoded).astype(int).tolist()
    return levels
