"""Every layout of a captioned set, each through the same steps: read, encode, train on it, stop, go on."""

import numpy as np
import pytest
from test_data_hub import EN, KNOWN, apart, fetched, imagefolder, parquet, webdataset  # noqa: F401
from test_matrix_towers import aligned, goes_on

import mpm_lite as mpm

IDS = list(map(str, range(12)))
FILES = {
    "parquet": lambda at: (parquet(at / "set", "train", caption=EN, id=IDS), {}),
    "parquet, a column a language": lambda at: (parquet(at / "set", "train", en=EN, de=EN, id=IDS), {}),
    "parquet in a stream": lambda at: (parquet(at / "set", "train", en=EN, id=IDS), {"limit": 7, "streaming": True}),
    "webdataset": lambda at: (webdataset(at / "web"), {}),
    "imagefolder": lambda at: (imagefolder(at / "folder"), {}),
}


@pytest.mark.parametrize("layout", [*FILES, *KNOWN])
def test_a_layout_through_align(tmp_path, monkeypatch, layout):
    if layout in KNOWN:
        fetched(tmp_path, monkeypatch, layout)
    name, how = (layout, {}) if layout in KNOWN else FILES[layout](tmp_path)
    found = mpm.load_captions(name, "train", ["en"], **how)
    images = mpm.load_image_tower("toy", "cpu").encode(np.stack(found.images[:]))
    texts = mpm.load_text_tower("toy", "cpu").encode(found.captions["en"])
    assert len(images) == len(texts) > 1 and np.isfinite(images).all()
    recipe = goes_on(aligned(images, texts), tmp_path)
    assert len(recipe.state_dict())
