"""Rendered photographs of bean leaves.

A leaf is painted flat, by numpy, in its own coordinates (x across the blade, y from base to tip), then posed,
lit and photographed by pillow. All randomness comes from one generator per image, so that an image does not depend
on the images rendered before it. exp and the like are computed in double precision, since their last bit in single
precision depends on the processor: an image is the same on every machine.
"""

import colorsys
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

CLASSES = ("angular_leaf_spot", "bean_rust", "healthy")
BACKGROUNDS = {  # red, green, blue, grit, other leaves
    "soil": (0.57, 0.41, 0.33, 0.1, 5),
    "straw": (0.55, 0.44, 0.3, 0.1, 5),
    "foliage": (0.2, 0.27, 0.12, 0.12, 18),
    "stone": (0.55, 0.55, 0.53, 0.06, 0),
    "paper": (0.8, 0.79, 0.76, 0.008, 0),
    "sky": (0.62, 0.72, 0.84, 0.012, 4),
}
SPAN = 1.3  # side of the flat painting, in leaf lengths


@dataclass(frozen=True)
class Traits:
    """What an image shows; the details are left to chance."""

    label: str
    severity: float  # 0 none .. 1 strong; 0 when healthy
    angle: float  # degrees the tip is turned from upright
    scale: float  # leaf length over frame side
    tilt: float  # foreshortening: 1 seen from above .. 0.6 strongly tilted
    hue: float  # 0.2 yellow-green .. 0.35 blue-green
    saturation: float
    lightness: float  # HSV value of the blade: 0.35 dark .. 0.8 pale
    background: str
    light: float  # degrees, the direction it falls in: 0 to the right, 90 down
    contrast: float  # 0 overcast .. 1 full sun
    blur: float  # pixels at 256: how much the leaf is out of focus


def sample_traits(label: str, rng: np.random.Generator) -> Traits:
    """Sample what an image is to show; only the severity depends on the label."""
    severity, hue = rng.uniform(0.3, 1), rng.uniform(0.2, 0.35)
    return Traits(
        label=label,
        severity=0.0 if label == "healthy" else severity,
        angle=rng.normal(0, 50),
        scale=rng.uniform(0.75, 1.3),
        tilt=rng.uniform(0.6, 1),
        hue=hue,
        saturation=rng.uniform(0.35, 1.25 - 1.6 * hue),  # vivid blue-greens look like plastic
        lightness=rng.uniform(0.35, 0.8),
        background=str(rng.choice(list(BACKGROUNDS), p=(0.3, 0.17, 0.3, 0.09, 0.07, 0.07))),
        light=rng.uniform(0, 360),
        contrast=rng.uniform(0, 1),
        blur=rng.gamma(1, 0.5),
    )


def _noise(rng, n, cells, octaves=1, fade=0.6):
    """Smooth noise (n, n) of about unit variance, its coarsest octave with `cells` bumps per side."""
    total = np.zeros((n, n), np.float32)
    for k in range(octaves):
        grid = Image.fromarray(rng.standard_normal((cells << k,) * 2, dtype=np.float32))
        total += np.asarray(grid.resize((n, n), Image.BICUBIC)) * fade**k
    return total


def _image(values):
    """A pillow image from values in [0, 1]: RGB from (n, n, 3), a mask from (n, n)."""
    return Image.fromarray(np.uint8(np.clip(values, 0, 1) * 255))


def _colour(rgb):
    """Three values in [0, 1] as pillow wants them."""
    return tuple(int(255 * min(c, 1)) for c in rgb)


def _stain(photo, colour, mask, strength, radius=0.0):
    """Paint a colour onto an image through a mask, softened by a radius in pixels."""
    mask = mask.filter(ImageFilter.GaussianBlur(radius)) if radius else mask
    photo.paste(_colour(colour), mask=mask.point(lambda v: min(v * strength, 255)))


def _slope(height, degrees):
    """The slope of a height (n, n) along the light, per side of the image: how squarely it is lit."""
    down, right = np.gradient(height, 1 / len(height))
    return math.cos(math.radians(degrees)) * right + math.sin(math.radians(degrees)) * down


def _blade(rng, n):
    """Shape (n, n) of a flat leaf: x and y in leaf lengths, half-width at y, opacity."""
    y = np.linspace(1.06, 1.06 - SPAN, n, dtype=np.float32)[:, None] + 0.012 * _noise(rng, n, 5)
    x = np.linspace(-SPAN / 2, SPAN / 2, n, dtype=np.float32) + 0.012 * _noise(rng, n, 5)
    x += rng.normal(0, 0.2) * y * (1 - y)
    y += rng.uniform(0.1, 0.55) * np.abs(x) * (1 - y)  # two lobes reach below the base
    low, high = rng.uniform(0.4, 0.75), rng.uniform(0.75, 1.2)
    inside = np.clip(y, 0, 1)
    half = np.power(inside, low, dtype=float) * np.power(1 - inside, high, dtype=float)
    half *= rng.uniform(0.3, 0.45) / half.max() * (1 + rng.normal(0, 0.08) * np.sign(x))
    gap = half - np.abs(x) + 0.004 * _noise(rng, n, 24) - np.abs(y - inside)
    return x, y, half, gap / (np.hypot(*np.gradient(gap)) + 1e-4) + 0.5


def _cells(u, v, rng):
    """Voronoi cells of a jittered lattice: distance to the nearest border, one number in [0, 1) per cell."""
    jitter, value = rng.uniform(0.15, 0.85, (2, 64, 64)).astype(np.float32), rng.random((64, 64), np.float32)
    left, low = np.floor(u - 0.5), np.floor(v - 0.5)
    corner, u, v = left.astype(np.int32) * 64 + low.astype(np.int32), u - left, v - low
    first, second, index = np.float32(9), np.float32(9), corner
    for i, j in np.ndindex(2, 2):  # the nearest four are near enough
        at = (corner + (64 * i + j)) & 4095
        far = (u - i - jitter[0].take(at)) ** 2 + (v - j - jitter[1].take(at)) ** 2
        index = np.where(far < first, at, index)
        second = np.minimum(second, np.maximum(first, far))
        first = np.minimum(first, far)
    return np.sqrt(second) - np.sqrt(first), value.take(index)


def _veins(x, y, half, rng):
    """Veins (n, n) in [0, 1], height of the quilted blade, one number per cell between veins."""
    out, count, grain = np.abs(x), rng.uniform(5.5, 8), rng.uniform(2, 3.2)
    phase = y - rng.uniform(0.5, 0.9) * out - rng.uniform(0.2, 0.8) * out**2 + 0.012 * _noise(rng, len(x), 4)
    phase = count * phase + 0.25 * np.sign(x)
    off, taper = np.abs(phase - np.round(phase)) / count, np.clip(1 - out / (half + 0.02), 0, 1)
    midrib = np.exp(-((out / (0.014 - 0.01 * np.clip(y, 0, 1))) ** 2), dtype=float)
    sides = np.exp(-((off / (0.004 + 0.005 * taper)) ** 2), dtype=float) * (phase > -0.4) * (0.4 + 0.6 * taper)
    wobble = 0.08 * _noise(rng, len(x), 45)
    border, cells = _cells(phase * grain + wobble, out * count * grain - wobble + 32 * (x > 0), rng)
    fine = 0.4 * np.exp(-((border / 0.08) ** 2), dtype=float)
    grooves = np.exp(-((off / 0.018) ** 2), dtype=float) * (0.2 + 0.8 * taper)
    grooves += np.exp(-((out / 0.02) ** 2), dtype=float)
    height = rng.uniform(0.1, 0.4) * np.minimum(border, 0.6) - 0.45 * grooves
    return np.maximum(np.maximum(midrib, sides), fine), height, cells


def _dots(n, centres, radii):
    """A mask (n, n) of round dots, drawn at twice the size: small ones would turn into diamonds."""
    mask = Image.new("L", (2 * n, 2 * n))
    pen = ImageDraw.Draw(mask)
    for (x, y), r in zip((2 * centres).tolist(), (2 * radii).tolist(), strict=True):
        pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
    return mask.resize((n, n), Image.BILINEAR)


def _rust(skin, severity, rng):
    """Small red-brown pustules in pale yellow halos, in loose swarms."""
    n, many = skin.width, int(60 + 900 * severity**1.5)
    spots = rng.integers(0, n, (many, 2))
    spots = spots[_noise(rng, n, 4)[spots[:, 1], spots[:, 0]] > rng.normal(0, 0.8, many)]
    radii = n * rng.gamma(4, 0.0013, len(spots)) * (0.75 + 0.5 * severity)
    halo = _dots(n, spots, radii * rng.uniform(1.3, 3, len(spots)))
    _stain(skin, (0.76, 0.74, 0.32), halo, rng.uniform(0.3, 0.8), n / 120)
    brown = rng.uniform(0.32, 0.58), rng.uniform(0.16, 0.26), 0.08
    _stain(skin, brown, _dots(n, spots, radii), rng.uniform(0.75, 1))


def _angular(skin, cells, severity, rng):
    """Brown patches that fill whole cells between the veins, the blade yellowing around them."""
    n = skin.width
    patch = _image(cells + 0.1 * _noise(rng, n, 5, 2) < 0.03 + 0.19 * severity**1.3)
    _stain(skin, (0.78, 0.73, 0.2), patch, rng.uniform(0.2, 1.2), n / 35)
    brown = np.array((0.46, 0.3, 0.19)) * rng.uniform(0.6, 1.1) + rng.normal(0, 0.02, 3)
    _stain(skin, brown, patch, rng.uniform(0.75, 0.95), n / 400)


def _paint(traits, rng, n):
    """The flat leaf, lit: an RGBA image of n x n pixels."""
    x, y, half, alpha = _blade(rng, n)
    veins, height, cells = _veins(x, y, half, rng)
    green = np.array(colorsys.hsv_to_rgb(traits.hue, traits.saturation, traits.lightness), np.float32)
    skin = _image(green * (1 + 0.05 * _noise(rng, n, 50) + 0.05 * _noise(rng, n, 6))[..., None])
    _stain(skin, (0.75, 0.75, 0.25), _image(0.12 * _noise(rng, n, 3) + rng.normal(0, 0.1)), 1)
    if traits.label == "bean_rust":
        _rust(skin, traits.severity, rng)
    if traits.label == "angular_leaf_spot":
        _angular(skin, cells, traits.severity, rng)
    _stain(skin, green * 0.65 + 0.35, _image(veins), rng.uniform(0.2, 0.8))
    many = int(rng.gamma(0.5, 30))  # specks of sand or dew, on the healthy too
    specks = _dots(n, rng.integers(0, n, (many, 2)), rng.gamma(2, 0.5, many))
    _stain(skin, np.array((1, 1, 0.85)) * rng.uniform(0.15, 0.95), specks, 1)
    # The leaf is posed later, so the light is turned the other way; it shows quilting, curl and fold.
    slope = _slope(height + 0.12 * _noise(rng, n, 30) + 2 * _noise(rng, n, 3), traits.light - traits.angle) / 50
    shade = 1 + (0.15 + 0.4 * traits.contrast) * slope + rng.normal(0, 0.1) * np.tanh(x * 30, dtype=float)
    gloss = rng.uniform(0, 90) * traits.contrast * np.exp(-(((slope - 0.5) / 0.4) ** 2), dtype=float)
    lit = np.asarray(skin) * np.clip(shade, 0.4, 1.6)[..., None] + gloss[..., None]
    leaf = Image.fromarray(np.uint8(np.minimum(lit, 255)))
    if rng.random() < 0.3:  # holes eaten by beetles
        alpha[_noise(rng, n, rng.integers(8, 20)) > rng.uniform(2.2, 2.8)] = 0
    leaf.putalpha(_image(alpha))
    return leaf


def _background(traits, leaf, rng, size):
    """The background, an RGB image slightly out of focus; outdoors with other leaves of the plant."""
    *tone, grit, crowd = BACKGROUNDS[traits.background]
    rough = _noise(rng, size, 12, 4, 0.9)
    rough += (0.3 + traits.contrast) * _slope(rough, traits.light) / size
    tone = np.float32(tone) * np.float32(rng.uniform(0.65, 1.25)) + rng.normal(0, 0.03, 3).astype(np.float32)
    ground = _image(tone * (1 + grit * rough)[..., None])
    pen = ImageDraw.Draw(ground)
    for x, y in rng.uniform(0, size, (rng.integers(60, 200) if traits.background == "straw" else 0, 2)):
        dx, dy = rng.normal(0, size / 5, 2)
        straw = rng.uniform(0.4, 1.15) * np.array((0.8, 0.7, 0.48))
        pen.line((x, y, x + dx, y + dy), fill=_colour(straw), width=int(rng.integers(1, 3)))
    leaf = leaf.resize((size // 2, size // 2), Image.BILINEAR)
    for _ in range(rng.integers(crowd // 2, crowd + 1)):
        side = int(size * rng.uniform(0.2, 0.7))
        other = leaf.resize((side, int(side * rng.uniform(0.5, 1.2))), Image.BILINEAR)
        other = ImageEnhance.Brightness(other).enhance(rng.uniform(0.4, 1.15))
        other = other.rotate(rng.uniform(0, 360), Image.BILINEAR, expand=True)
        ground.paste(other, tuple(rng.integers(-side // 2, size - side // 2, 2).tolist()), other)
    return ground.filter(ImageFilter.GaussianBlur(size * rng.gamma(1.2, 0.004)))


def _pose(traits, rng, n, size):
    """Pillow's perspective coefficients, photograph to flat leaf; the position of its base, the stem's direction."""
    c, s = math.cos(math.radians(traits.angle)), math.sin(math.radians(traits.angle))
    x, y = size / 2 + rng.normal(0, size / 14, 2)
    zoom = n / (traits.scale * SPAN * size)
    wide, long = rng.permutation((zoom, zoom / traits.tilt))
    lean = np.array([[wide, 0, 0], [0, long, 0], [*rng.normal(0, 0.6 * (1.1 - traits.tilt), 2) / size, 1]])
    lean[:2] += n / 2 * lean[2:]  # the centre of the flat leaf lies at n / 2
    matrix = lean @ [[c, s, -c * x - s * y], [-s, c, s * x - c * y], [0, 0, 1]]
    reach = 0.4 * traits.scale * size * zoom / long
    return (matrix / matrix[2, 2]).ravel()[:8], np.array((x - s * reach, y + c * reach)), (-s, c)


def _camera(photo, rng):
    """Exposure, white balance, a shadow falling over the scene, vignette and sensor noise."""
    size = photo.width
    x = np.linspace(-1, 1, size, dtype=np.float32)
    light = rng.uniform(0.85, 1.3) * (1 - rng.uniform(0, 0.2) * (x**2 + x[:, None] ** 2))
    if rng.random() < 0.3:
        turn = rng.uniform(0, 6.3)
        edge = math.cos(turn) * x + math.sin(turn) * x[:, None] + 0.3 * _noise(rng, size, 5) - rng.uniform(0, 0.7)
        light *= 1 - rng.uniform(0.2, 0.5) / (1 + np.exp(-rng.uniform(5, 30) * edge, dtype=float))
    image = np.asarray(photo) * light[..., None] * rng.normal(1, 0.06, 3).astype(np.float32)
    image += rng.uniform(1, 6) * rng.standard_normal((size, size, 1), dtype=np.float32)
    return Image.fromarray(np.uint8(np.clip(image, 0, 255)))


def render_leaf(traits: Traits, rng: np.random.Generator, size: int = 256) -> Image.Image:
    """Render one leaf as an RGB image of size x size pixels."""
    n = int(size * min(traits.scale * SPAN, 1))
    leaf = _paint(traits, rng, n)
    photo = _background(traits, leaf, rng, size * 5 // 8)  # out of focus, so rendered small
    photo = photo.resize((size, size), Image.BICUBIC)
    pose, base, away = _pose(traits, rng, n, size)
    away += rng.normal(0, 0.3, 2)
    stem = rng.uniform(0.5, 0.9) * np.array((traits.lightness, traits.lightness, 0.3))
    ImageDraw.Draw(photo).line((*base, *(base + away * size)), _colour(stem), width=size // 45)
    leaf = leaf.transform((size, size), Image.PERSPECTIVE, pose, Image.BICUBIC)
    # The leaf's own shadow falls along the light, softer the higher the leaf.
    reach, toward = rng.uniform(0.01, 0.08) * size, math.radians(traits.light)
    fall = (1, 0, -reach * math.cos(toward), 0, 1, -reach * math.sin(toward))
    shadow = leaf.getchannel("A").transform((size, size), Image.AFFINE, fall)
    _stain(photo, (0.04, 0.04, 0.06), shadow, 0.2 + 0.5 * traits.contrast, reach / 3)
    photo.paste(leaf, mask=leaf)
    return _camera(photo.filter(ImageFilter.GaussianBlur(traits.blur * size / 256)), rng)
