"""Films as files: frames and times of a GIF, a page that loads nothing, and what ffmpeg is given and says."""

from __future__ import annotations

import base64
import io
import re
import stat
import sys
import weakref

import matplotlib
import numpy as np
import pytest
from PIL import Image

from lla_jax.core.arguments import Misuse
from lla_jax.output.plotting import film_files


def shots(num=4):
    """Frames of 24 x 31 pixels: white, with a black square that moves, and none in the second."""
    frames = np.full((num, 24, 31, 3), 255, np.uint8)
    for k in range(num):
        if k != 1:
            frames[k, 5:9, 3 * k : 3 * k + 4] = 0
    return frames


def write(path, frames, **options):
    options = {"fps": 8, "title": "loss <of> a plane"} | options
    film_files.write(path, iter(frames), frames[-1], **options)
    return path


def test_a_gif_has_all_frames_as_they_were_for_as_long_as_they_shall_last(tmp_path):
    frames = shots(5)
    frames[4] = frames[3]  # nothing changes
    with Image.open(write(tmp_path / "a.gif", frames, fps=7)) as image:
        assert image.n_frames == 5
        assert image.info["loop"] == 0
        lasts = []
        for k, frame in enumerate(frames):
            image.seek(k)
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), frame)
            lasts.append(image.info["duration"])
    assert set(lasts[:4]) <= {140, 150}
    assert sum(lasts) == pytest.approx(5 / 7 * 1000 + 1500, abs=10)


def test_a_page_holds_all_that_it_shows(tmp_path):
    frames = shots()
    page = write(tmp_path / "a.html", frames).read_text()
    assert "<title>loss &lt;of&gt; a plane</title>" in page
    assert not re.search(r"https?:|src=|href=|@import|url\(", page.replace("image.src = data", ""))
    assert "default-src 'none'" in page
    found = re.findall(r'^\[(\d+), (\d+), "data:image/png;base64,([^"]+)"\],$', page, re.M)
    assert len(found) == len(frames)
    first = None
    for (x, y, data), frame in zip(found, frames, strict=True):
        part = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
        first = part.copy() if first is None else first
        whole = first.copy()
        whole.paste(part, (int(x), int(y)))
        np.testing.assert_array_equal(np.asarray(whole), frame)
    assert write(tmp_path / "b.html", frames).read_text() == page


def test_without_ffmpeg_a_gif_is_offered(monkeypatch, tmp_path):
    monkeypatch.setattr(film_files.shutil, "which", lambda name: None)
    with pytest.raises(Misuse, match=r"^path: .*there is no ffmpeg.*'descent\.gif'"):
        film_files.check_target(tmp_path / "descent.mp4")
    assert film_files.check_target(tmp_path / "descent.GIF")


@pytest.fixture
def ffmpeg(tmp_path, monkeypatch):
    """A program in the place of ffmpeg: it writes its arguments and the number of bytes that it read."""

    def make(body):
        program = tmp_path / "ffmpeg"
        program.write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setitem(matplotlib.rcParams, "animation.ffmpeg_path", str(program))
        return tmp_path

    return make


def test_ffmpeg_is_given_all_frames_and_leaves_out_dates(ffmpeg):
    folder = ffmpeg("data = sys.stdin.buffer.read(); open(sys.argv[-1], 'w').write(f'{sys.argv[1:-1]} {len(data)}')")
    text = write(film_files.check_target(folder / "a.mp4"), shots(), fps=9).read_text()
    assert text.endswith(f" {4 * 24 * 31 * 3}")
    for words in ("31x24", "'-framerate', '9'", "'-map_metadata', '-1'", "+bitexact", "yuv420p"):
        assert words in text
    assert sorted(path.name for path in folder.iterdir()) == ["a.mp4", "ffmpeg"]


@pytest.mark.parametrize("body", ["sys.exit('no libx264')", "sys.stdin.buffer.read(); sys.exit('no libx264')"])
def test_what_ffmpeg_says_is_told_and_no_file_is_left(body, ffmpeg):
    folder = ffmpeg(body)
    with pytest.raises(Misuse, match=r"^path: ffmpeg could not write the \.mp4 \(no libx264\)"):
        write(film_files.check_target(folder / "a.mp4"), np.tile(shots(), (300, 1, 1, 1)))
    assert [path.name for path in folder.iterdir()] == ["ffmpeg"]


def test_frames_are_taken_one_at_a_time(tmp_path):
    made = []

    def frames():
        for k in range(8):
            assert sum(ref() is not None for ref in made) <= 2
            frame = shots(8)[k].copy()
            made.append(weakref.ref(frame))
            yield frame
            del frame

    film_files.write(tmp_path / "a.gif", frames(), shots()[-1], 8, "")


def test_a_folder_that_cannot_be_written_to(tmp_path):
    missing = tmp_path / "missing"
    with pytest.raises(OSError, match=r"^path: .*could not be written"):
        write(missing / "a.gif", shots())
