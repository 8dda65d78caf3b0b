"""What a model folder contains that is not read is listed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import audit
from audit.models.unread_files import files_not_read


def test_what_is_not_read_is_listed_and_a_folder_of_it_is_one_entry(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(data / "toy-model", folder)
    assert audit.load_model(folder).about["files_not_read"] == []
    for name in (
        "safety_checker/config.json",
        "safety_checker/model.safetensors",
        "feature_extractor/preprocessor_config.json",
        "image_encoder/nested/config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.bin",
        "v1-5-pruned.ckpt",
        ".gitattributes",
        ".cache/huggingface/download",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"{}")
    assert audit.load_model(folder).about["files_not_read"] == [
        "feature_extractor/ (1 file)",
        "image_encoder/ (1 file)",
        "safety_checker/ (2 files)",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "v1-5-pruned.ckpt",
        "vae/diffusion_pytorch_model.bin",
    ]


@pytest.mark.parametrize(
    ("shard", "index"),
    [
        ("diffusion_pytorch_model-0000{}-of-00002.safetensors", "diffusion_pytorch_model.safetensors.index.json"),
        ("model.fp16-0000{}-of-00002.safetensors", "model.safetensors.index.fp16.json"),
    ],
)
def test_the_index_of_weights_in_several_files_counts_as_read(shard: str, index: str, tmp_path: Path) -> None:
    shards = [tmp_path / "unet" / shard.format(number) for number in (1, 2)]
    (tmp_path / "unet").mkdir()
    for file in (*shards, tmp_path / "unet" / index):
        file.write_bytes(b"")
    assert files_not_read(tmp_path, shards) == []
    assert len(files_not_read(tmp_path, shards[:1])) == 1
