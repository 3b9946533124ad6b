"""Writes mosaicml-streaming-0.13.zip with the real package, which is not installed for development.

In an environment of its own: `pip install mosaicml-streaming==0.13.0 && python write.py`.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from streaming import MDSWriter
from streaming.base.util import merge_index

COLUMNS = {
    "id": "int",
    "u8": "uint8",
    "f16": "float16",
    "f32": "float32",
    "text": "str",
    "raw": "bytes",
    "big": "str_int",
    "real": "str_float",
    "money": "str_decimal",
    "meta": "json",
    "image": "png",
    "images": "list[png]",
    "photos": "jpeg_array",
    "any": "ndarray",
    "tokens": "ndarray:int32",
    "fixed": "ndarray:float32:2,3",
    "matrix": "ndarray:int16",
}


def sample(i: int) -> dict[str, Any]:
    """Return a sample, which its number tells."""
    image = Image.fromarray(np.full((2, 2, 3), i, np.uint8))
    photo = io.BytesIO()
    image.save(photo, format="JPEG", quality=5)
    return {
        "id": i,
        "u8": i,
        "f16": np.float16(i / 2),
        "f32": np.float32(i / 4),
        "text": f"text ü {i}" * (i % 3),
        "raw": b"\x00\xff" * (i % 4),
        "big": 10**25 + i,
        "real": i / 3,
        "money": Decimal(i) / 8,
        "meta": {"i": i, "list": [1] * i},
        "image": image,
        "images": [image] * (i % 3),
        "photos": [photo.getvalue()] * (1 + i % 2),
        "any": np.arange(i + 1, dtype=np.int64),
        "tokens": np.arange(i + 1, dtype=np.int32),
        "fixed": np.full((2, 3), i, np.float32),
        "matrix": np.full((1 + i % 2, 2), i, np.int16),
    }


def write(out: Path) -> None:
    """Write the datasets."""
    kinds: list[tuple[str, str | None, list[str]]] = [
        *(("plain", None, ["sha1", "xxh64"]), ("zstd", "zstd:7", ["md5"]), ("gz", "gz:9", [])),
        *(("br", "br:5", ["xxh64"]), ("bz2", "bz2", ["sha256"]), ("snappy", "snappy", ["sha1"])),
    ]
    for name, compression, hashes in kinds:
        arguments: dict[str, Any] = {"compression": compression, "hashes": hashes, "size_limit": 4000}
        with MDSWriter(out=str(out / name), columns=COLUMNS, **arguments) as writer:
            for i in range(7):
                writer.write(sample(i))
    with MDSWriter(out=str(out / "pickled"), columns={"id": "int", "object": "pkl"}) as writer:
        for i in range(3):
            writer.write({"id": i, "object": {i}})
    for part in range(2):
        with MDSWriter(out=str(out / f"parts/{part}"), columns={"id": "int", "text": "str"}, size_limit=200) as writer:
            for i in range(7):
                writer.write({"id": i + 7 * part, "text": "abc"})
    merge_index(str(out / "parts"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        shutil.make_archive(str(Path(__file__).with_name("mosaicml-streaming-0.13")), "zip", folder)
