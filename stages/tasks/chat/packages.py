"""A model whose weights ship in parts in several packages, as registries limit the size of one."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from pydantic import Field, model_validator

from stages.core.errors import UsageError
from stages.tasks.account import Account
from stages.tasks.language.form import GenerationConfig
from stages.tasks.language.models import WHERE, WeightsModel, _check_header, _convert, _readable
from stages.tasks.sources import collect, package_file

_ARCHITECTURE = "general.architecture"


class PackagesModel(WeightsModel):
    """{packages: [NAME, ...], files: [PATH, ...], sha256: HASH}: a GGUF file in parts, one in each package.

    The parts are joined in order as bytes, and no package is imported.
    """

    packages: tuple[str, ...] = Field(strict=False, min_length=1)
    files: tuple[str, ...] = Field(strict=False, description="the part of each package: its path within the package")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the whole file")

    @model_validator(mode="after")
    def _one_file_each(self) -> Self:
        if len(self.files) != len(self.packages):
            raise ValueError(f"expected a file for each of {len(self.packages)} packages, found {len(self.files)}")
        return self

    def _parts(self, inputs: Path) -> list[Path]:
        return [package_file(inputs, *part, WHERE) for part in zip(self.packages, self.files, strict=True)]

    def errors(self, inputs: Path) -> list[str]:
        return collect(lambda: self._parts(inputs))

    def origin(self, inputs: Path) -> str:
        return f"parts in the packages {', '.join(self.packages)}, SHA-256 {self.sha256}"

    def write(self, inputs: Path, out_dir: Path, generation: GenerationConfig, dtype: str, account: Account) -> None:
        out_dir.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out_dir.parent) as folder, _readable(f"{WHERE}.packages"):
            path = Path(folder) / "model.gguf"
            with path.open("w+b") as joined:
                for part in self._parts(inputs):
                    with part.open("rb") as file:
                        shutil.copyfileobj(file, joined)
                joined.seek(0)
                found = hashlib.file_digest(joined, "sha256").hexdigest()
            if found != self.sha256:
                raise UsageError(f"{WHERE}.sha256: expected {self.sha256}, but the joined parts have {found}")
            _write_known_types(path)
            _check_header(path)
            from transformers import GgufConfig

            weights = {"quantization_config": GgufConfig(dequantize=True)}
            options = {"gguf_file": path.name}
            _convert(path.parent, out_dir, generation, dtype, self.origin(inputs), found, options, weights)


def _write_known_types(path: Path) -> None:
    """Write tensors of a GGUF file as float32, without loss, if transformers does not know their type."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
    from gguf.quants import dequantize

    reader, unknown = GGUFReader(path), (GGMLQuantizationType.Q5_0, GGMLQuantizationType.Q5_1)
    if not any(tensor.tensor_type in unknown for tensor in reader.tensors):
        return
    written = path.with_suffix(".written")
    writer = GGUFWriter(written, reader.fields[_ARCHITECTURE].contents())
    for name, field in reader.fields.items():
        if name != _ARCHITECTURE and not name.startswith("GGUF."):  # which the writer adds
            of = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=of)
    for tensor in reader.tensors:
        if tensor.tensor_type in unknown:
            writer.add_tensor(tensor.name, dequantize(tensor.data, tensor.tensor_type))
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    written.replace(path)
