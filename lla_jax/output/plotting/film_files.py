"""Writes the frames of a film into one file: .gif, .mp4 or .html, one frame at a time and with no date in it.

Only the frame in hand is held. Of a frame that differs little from another one only the rectangle that differs is
written. The file takes its name when it is whole: a kill leaves the old one, or none.
"""

from __future__ import annotations

import base64
import html
import io
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import matplotlib
import numpy as np
from PIL import GifImagePlugin, Image

from lla_jax.core import files
from lla_jax.core.arguments import Misuse, check_integer, misuse

ENDINGS = (".gif", ".mp4", ".html")
COLOURS = 256
HOLD_S = 1.5  # how long a film that repeats rests on its last frame
_FASTEST = 50  # frames per second: viewers show a GIF of more at their own speed
_LARGEST = 8192  # pixels along a side


class Patch(NamedTuple):
    """The rectangle of a frame that differs from another frame: its left upper corner, and its image."""

    x: int
    y: int
    image: Image.Image


def check_target(path: Any) -> Path:
    """The file of a film, after a check that it can be written: its ending, its folder and, for .mp4, ffmpeg."""
    target = files.check_path("path", path, "descent.gif")
    ending = target.suffix.lower()
    if ending not in ENDINGS:
        raise misuse("path", str(target), "a file that ends in .gif, .mp4 or .html, such as descent.gif")
    if target.is_dir():
        raise misuse("path", str(target), f"a file, and this is a folder; such as {target / 'descent.gif'}")
    if not target.parent.is_dir():
        raise misuse("path", str(target), f"in a folder that exists; make {str(target.parent)!r}, or take another")
    if ending == ".mp4" and _ffmpeg() is None:
        raise Misuse(
            "path",
            f"{str(target)!r} given, but there is no ffmpeg, which writes .mp4; install it, or write a GIF or a page, "
            f"{target.with_suffix('.gif').name!r} or {target.with_suffix('.html').name!r}",
        )
    return target


def check_rate(fps: Any) -> int:
    """The frames per second, after a check."""
    return check_integer("fps", fps, most=_FASTEST, remedy="frames per second, such as 15")


def check_size(size: Any) -> tuple[int, int]:
    """The (width, height) of a film in pixels, after a check."""
    if not isinstance(size, tuple | list) or len(size) != 2:
        raise misuse("size", size, "(width, height) in pixels, such as (1280, 720)")
    width, height = (
        check_integer("size", n, least=16, most=_LARGEST, remedy="pixels along a side, such as (1280, 720)")
        for n in size
    )
    return width, height


def write(target: Path, frames: Iterable[np.ndarray], sample: np.ndarray, fps: int, title: str) -> None:
    """Write a film.

    Args:
      target: the file, which ``check_target`` has passed.
      frames: pictures (height, width, 3) uint8, which are taken one by one.
      sample: a frame with all colours of the film, such as its last one; .gif and .html have 256 colours, its own.
      fps: frames per second.
      title: of the page.

    Raises:
      OSError: the folder cannot be written, or the disk is full.
      ValueError: ffmpeg failed.
    """
    try:
        with files.replacing(target) as name:
            if target.suffix.lower() == ".mp4":
                _write_mp4(name, frames, sample.shape, fps)
                return
            palette = _make_palette(sample)
            with open(name, "wb") as file:
                if target.suffix.lower() == ".gif":
                    _write_gif(file, frames, palette, fps)
                else:
                    _write_page(file, frames, palette, fps, title)
    except OSError as error:
        remedy = "mend that, or pass a file in a folder that can be written to"
        raise files.explain("path", target, "could not be written", error, remedy) from error


def _make_palette(sample: np.ndarray) -> Image.Image:
    """An image of the sample's size with a palette of 256 colours: greys, its frequent colours, and its rare ones."""
    image = Image.fromarray(sample)
    colours = [(grey, grey, grey) for grey in range(0, 256, 17)]  # white stays white
    for method in (Image.Quantize.MEDIANCUT, Image.Quantize.MAXCOVERAGE):
        found = image.quantize((COLOURS - 16) // 2, method, dither=Image.Dither.NONE).getpalette() or []
        colours += list(zip(found[0::3], found[1::3], found[2::3], strict=True))[: (COLOURS - 16) // 2]
    entries = np.array(colours, np.uint8)
    entries[entries.min(axis=1) > 246] = 255  # otherwise a shade beside white is taken for it
    palette = Image.new("P", image.size)
    palette.putpalette(entries.tobytes())
    return palette


def _patches(frames: Iterable[np.ndarray], palette: Image.Image, *, against_first: bool) -> Iterator[Patch]:
    """What differs in each frame from the one before, or from the first one, in the colours of the palette."""
    base: np.ndarray | None = None
    for frame in frames:
        x, y, part = (0, 0, frame) if base is None else _cut(frame, (frame != base).any(axis=-1))
        yield Patch(x, y, Image.fromarray(part).quantize(palette=palette, dither=Image.Dither.NONE))
        if base is None or not against_first:
            base = frame


def _cut(frame: np.ndarray, differs: np.ndarray) -> tuple[int, int, np.ndarray]:
    """(x, y, part) of the smallest rectangle with all that differs; of frames that are the same, a single pixel."""
    rows, columns = (np.flatnonzero(differs.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return 0, 0, frame[:1, :1]
    left, upper = int(columns[0]), int(rows[0])
    return left, upper, np.ascontiguousarray(frame[upper : int(rows[-1]) + 1, left : int(columns[-1]) + 1])


def _mark_last(items: Iterable[Patch]) -> Iterator[tuple[Patch, bool]]:
    """Each item, and whether it is the last one."""
    waiting: Patch | None = None
    for item in items:
        if waiting is not None:
            yield waiting, False
        waiting = item
    if waiting is not None:
        yield waiting, True


# --- .gif


def _write_gif(file: IO[bytes], frames: Iterable[np.ndarray], palette: Image.Image, fps: int) -> None:
    """Write a GIF that repeats for ever, with one palette for all frames."""
    width, height = palette.size
    colours = bytes(palette.getpalette() or [])[: 3 * COLOURS].ljust(3 * COLOURS, b"\0")
    file.write(struct.pack("<6sHHBBB", b"GIF89a", width, height, 0xF7, 0, 0) + colours)
    file.write(b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00")
    for k, (patch, is_last) in enumerate(_mark_last(_patches(frames, palette, against_first=False))):
        end = round(100 * (k + 1) / fps)  # in hundredths of a second, so that rounding does not add up
        duration = end - round(100 * k / fps) + round(100 * HOLD_S) * is_last
        for block in GifImagePlugin.getdata(patch.image, (patch.x, patch.y), duration=10 * duration, disposal=1):
            file.write(block)
    file.write(b";")


# --- .html


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>
body {{ margin: 1em auto; max-width: {width}px; font: 14px sans-serif; text-align: center }}
canvas {{ max-width: 100% }} input {{ width: 60%; vertical-align: middle }} button {{ width: 5em }}
</style></head><body>
<canvas id="film" width="{width}" height="{height}" role="img" aria-label="{title}"></canvas>
<p><button id="play">Pause</button> <input id="at" type="range" min="0" value="0" aria-label="frame">
<span id="number"></span></p>
<noscript>This film needs JavaScript, of this page alone: it loads nothing.</noscript>
<script>
const frames = [
"""
_PLAYER = """];
const fps = %d, hold = %d;
const canvas = document.getElementById("film").getContext("2d"), at = document.getElementById("at");
const button = document.getElementById("play"), number = document.getElementById("number");
const pictures = frames.map(([x, y, data]) => { const image = new Image(); image.src = data; return [x, y, image]; });
let now = 0, playing = true, wait = 0;
at.max = frames.length - 1;
function show(k) {
  now = k; at.value = k; number.textContent = (k + 1) + " / " + frames.length;
  for (const [x, y, image] of k ? [pictures[0], pictures[k]] : [pictures[0]]) canvas.drawImage(image, x, y);
}
function play(on) { playing = on; button.textContent = on ? "Pause" : "Play"; }
button.onclick = () => play(!playing);
at.oninput = () => { play(false); show(Number(at.value)); };
const decoded = pictures.map(([x, y, image]) => image.decode());
decoded[0].then(() => show(0));
Promise.all(decoded).then(() => {
  setInterval(() => {
    if (!playing) return;
    if (now == frames.length - 1 && ++wait <= hold) return;
    wait = 0; show((now + 1) %% frames.length);
  }, 1000 / fps);
});
</script></body></html>
"""


def _write_page(file: IO[bytes], frames: Iterable[np.ndarray], palette: Image.Image, fps: int, title: str) -> None:
    """Write a page that plays the film and loads nothing: the pictures are in it, as the difference to the first."""
    width, height = palette.size
    file.write(_PAGE.format(title=html.escape(title), width=width, height=height).encode())
    for patch in _patches(frames, palette, against_first=True):
        picture = io.BytesIO()
        patch.image.save(picture, format="png")
        data = base64.b64encode(picture.getvalue()).decode()
        file.write(f'[{patch.x}, {patch.y}, "data:image/png;base64,{data}"],\n'.encode())
    file.write((_PLAYER % (fps, round(HOLD_S * fps))).encode())


# --- .mp4


def _ffmpeg() -> str | None:
    """The path of ffmpeg, which matplotlib's settings may name; None if there is none."""
    return shutil.which(os.path.expanduser(matplotlib.rcParams["animation.ffmpeg_path"]))


def _write_mp4(name: str, frames: Iterable[np.ndarray], shape: tuple[int, ...], fps: int) -> None:
    """Hand the frames to ffmpeg (H.264), which writes the file of this name without dates and its own version."""
    plain = ["-threads", "1", "-map_metadata", "-1", "-fflags", "+bitexact", "-flags:v", "+bitexact"]
    command = [
        *(str(_ffmpeg()), "-loglevel", "error", "-y"),
        *("-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", f"{shape[1]}x{shape[0]}"),
        *("-framerate", str(fps), "-i", "pipe:0", "-an"),
        *("-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2:color=white", "-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p"),
        *(*plain, "-movflags", "+faststart", "-f", "mp4", name),
    ]
    with tempfile.TemporaryFile() as said:  # a session of its own: Ctrl-C is ours alone
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=said, start_new_session=True)
        try:
            _feed(process, frames)
        except BaseException:
            process.kill()
            process.wait()
            raise
        if process.wait():
            said.seek(0)
            text = said.read().decode(errors="replace").strip()[:300] or f"exit code {process.returncode}"
            raise Misuse("path", f"ffmpeg could not write the .mp4 ({text}); write a .gif or .html, or mend ffmpeg")


def _feed(process: subprocess.Popen[bytes], frames: Iterable[np.ndarray]) -> None:
    """Write the frames to a process, until they are written or it has ended, which its exit code explains."""
    assert process.stdin is not None
    try:
        with process.stdin as pipe:
            for frame in frames:
                pipe.write(frame.tobytes())
    except BrokenPipeError:
        process.wait()
