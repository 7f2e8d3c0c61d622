"""The exported file of a design: what it says of its outputs, and a copy where the store may give one."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from mlflow import MlflowClient

from dxc.analysis.network_file import chosen_file, outputs_of
from dxc.deploy.export import export_onnx
from dxc.deploy.metadata import Metadata
from dxc.errors import AnalysisError
from dxc.models.sppnet import SppNet
from dxc.tracking.places import OutsideError
from dxc.tracking.reader import Reader


def test_outputs_of_a_detector_and_of_foreign_files(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    metadata = Metadata(channels=("red", "green", "blue"))
    export_onnx(SppNet(3, level=1, features=8), file, in_channels=3, size=32, metadata=metadata, check=False)
    assert outputs_of(file) == (
        "presence (batch): logit of the last class; its sigmoid is a probability; box (batch, 4): cx, cy, w, h, centre "
        "and size, 0..1 of the width (cx, w) and the height (cy, h) of the image; x to the right, y down; classes: no "
        "crossing, crossing"
    )
    model = onnx.load(file)
    del model.metadata_props[:]
    onnx.save(model, file)
    assert outputs_of(file) == "presence, box: the file does not say what they mean"
    file.write_bytes(b"PK no network")
    assert outputs_of(file).startswith("not known: ")


def test_a_file_outside_the_store_is_not_copied(store_file: Path, tmp_path: Path) -> None:
    """The address of a run's files is the store's word, and anyone may have written it."""
    uri = f"sqlite:///{store_file}"
    client = MlflowClient(uri)
    secret = tmp_path / "elsewhere"
    secret.mkdir()
    (secret / "model.onnx").write_bytes(b"secret")
    experiment = client.create_experiment("hostile", artifact_location=secret.as_uri())
    run = client.create_run(experiment)
    inside = Path(run.info.artifact_uri.removeprefix("file://"))
    inside.mkdir(parents=True)
    (inside / "model.onnx").write_bytes(b"secret")
    reader, copy = Reader(uri), tmp_path / "copy.onnx"
    assert "outside the store" in chosen_file(reader, run.info.run_id).where
    with pytest.raises(OutsideError):
        chosen_file(reader, run.info.run_id, export=str(copy))
    assert not copy.exists()
    allowed = Reader(uri, artifacts=[str(secret)])
    assert chosen_file(allowed, run.info.run_id, export=str(copy)).where.startswith(f"{copy} (a copy of ")
    assert copy.read_bytes() == b"secret"
    with pytest.raises(AnalysisError, match="cannot be written: it exists by now"):
        chosen_file(allowed, run.info.run_id, export=str(copy))
    (inside / "model.onnx").unlink()
    with pytest.raises(
        AnalysisError, match=r"has no model.onnx any more; train it again:\npython train.py seed=1"
    ):
        chosen_file(allowed, run.info.run_id, export=str(copy), rebuild="python train.py seed=1")
