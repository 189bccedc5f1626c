"""What prepare leaves behind about model and datasets is what every later stage reads."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from llava_api.constants import StageName
from llava_api.failures import Reason
from llava_api.run_config import RunConfig
from llava_trainer.errors import StageError
from llava_trainer.inputs import BaseModel, Inputs, load_run_config, provide_inputs, read_inputs
from llava_trainer.outcome import load_config
from llava_trainer.sources.fetching import Surroundings
from tests.trainer.runs import Recorder, make_random_base, run_config
from tests.trainer.servers.authority import Authority
from tests.trainer.servers.hub import HubRepository, HubServer

COMMIT = "c" * 40


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_random_base(folder)
    return folder


@pytest.fixture(autouse=True)
def mounted(tmp_path: Path) -> None:
    """The claims of the datasets, as the operator mounts them."""
    for name in ("data", "captions"):
        (tmp_path / name).mkdir()


def write(config: RunConfig, root: Path) -> Path:
    file = root / "run.json"
    file.write_text(config.model_dump_json())
    return file


def later(config: RunConfig, stage: StageName = StageName.TRAIN) -> RunConfig:
    return config.model_copy(update={"run": config.run.model_copy(update={"stage": stage})})


def test_model_on_a_claim_stays_where_it_is(tmp_path: Path, base: Path) -> None:
    config = run_config(tmp_path, StageName.PREPARE).model_copy(update={"model_dir": base})
    provided = provide_inputs(config, Recorder(config))
    assert (provided.model_dir, provided.dataset_dir, provided.alignment_dir) == (base, tmp_path / "data", None)
    assert not config.volume.model_dir.exists()
    inputs = read_inputs(config)
    assert inputs is not None
    assert (inputs.model_layout, inputs.model_origin) == ("hub", "")
    assert inputs.origins == {"dataset": "pvc://trays/"}
    assert config.volume.inputs_file.stat().st_mode & 0o777 == 0o644


def test_model_of_the_hub_reaches_every_later_stage(tmp_path: Path, base: Path, authority: Authority) -> None:
    with HubServer().run(authority) as hub:
        files = {path.name: path.read_bytes() for path in base.iterdir()}
        hub.repositories["models", "me/tiny"] = HubRepository(commits={COMMIT: files}, revisions={"main": COMMIT})
        plain = run_config(tmp_path, StageName.PREPARE).model_dump()
        plain |= {"model": {"source": "hf://me/tiny"}, "download": {"hubEndpoint": hub.base}}
        plain |= {"alignment": {"dataset": {**plain["dataset"], "source": "pvc://captions/"}}}
        plain |= {"modelDir": Path("/not/there"), "alignmentDir": tmp_path / "captions"}
        (tmp_path / "general").mkdir()
        general = {**plain["dataset"], "source": "pvc://general/"}
        plain |= {"mixture": [{"dataset": general, "share": 0.1}], "mixtureDirs": [tmp_path / "general"]}
        config = RunConfig.model_validate(plain)
        around = Surroundings(ca_file=authority.ca_file, environ={})
        provided = provide_inputs(config, Recorder(config), around)
    folder = config.volume.download_dir("model")
    assert provided.model_dir == folder
    # Told from where it stands: another attempt may take it over.
    assert json.loads(config.volume.inputs_file.read_text())["modelDir"] == "downloads/model"
    inputs = read_inputs(config)
    assert inputs is not None
    assert inputs.model_origin == f"hf://me/tiny@{COMMIT}"
    for stage in (StageName.ALIGN, StageName.TRAIN, StageName.MERGE, StageName.EVALUATE):
        read = load_config(write(later(config, stage), tmp_path), stage)
        assert (read.model_dir, read.dataset_dir) == (folder, tmp_path / "data")
        assert read.alignment_dir == tmp_path / "captions"
        assert read.mixture_dirs == (tmp_path / "general",)
    # Prepare of another attempt begins with what the operator says.
    assert load_run_config(write(config, tmp_path), StageName.PREPARE) == config


def test_model_of_parts_is_made_on_the_volume(tmp_path: Path, base: Path) -> None:
    """The same model with another projector; what importing does with each part has tests of its own."""
    claims = tmp_path / "claims"
    folder = claims / "parts" / "projector"
    folder.mkdir(parents=True)
    tensors = load_file(base / "model.safetensors")
    projector = {name: tensor + 1 for name, tensor in tensors.items() if name.startswith("multi_modal_projector.")}
    save_file(projector, folder / "projector.safetensors")
    plain = run_config(tmp_path, StageName.PREPARE).model_dump()
    plain |= {"model": {"source": "pvc://models/tiny", "projector": "pvc://parts/projector"}, "modelDir": base}
    config = RunConfig.model_validate(plain)
    recorder = Recorder(config)
    provided = provide_inputs(config, recorder, Surroundings(claims=claims, environ={}))
    assert provided.model_dir == config.volume.model_dir
    made = load_file(provided.model_dir / "model.safetensors")
    assert all(torch.equal(made[name], tensor) for name, tensor in projector.items())
    assert recorder.steps[-1] == (len(made), len(made))
    inputs = read_inputs(config)
    assert inputs is not None
    assert inputs.model_origin == "pvc://models/tiny"
    assert inputs.model_dir == provided.model_dir


def test_origin_fits_into_the_status() -> None:
    def origin(source: str) -> str:
        return Inputs(model_dir=Path("/m"), dataset_dir=Path("/d"), origins={"language-model": source}).model_origin

    longest = "s3://bucket/" + "x" * 244
    assert origin(longest) == longest
    assert origin(f"{longest}y") == f"{longest[:-1]}…"


@pytest.mark.parametrize(
    ("role", "origin", "layout", "expected"),
    [
        ("model", f"hf://me/tiny@{COMMIT}", "hub", BaseModel(name="me/tiny", revision=COMMIT)),
        # Not to be loaded by that name: it was converted.
        ("model", f"hf://me/tiny@{COMMIT}", "original", BaseModel(name=f"hf://me/tiny@{COMMIT}")),
        ("language-model", f"hf://me/vicuna@{COMMIT}", "assembled", BaseModel(name=f"hf://me/vicuna@{COMMIT}")),
        ("model", "https://host/model.tar", "hub", BaseModel(name="https://host/model.tar")),
        ("model", "pvc://models/tiny", "hub", BaseModel(name="pvc://models/tiny")),
        ("dataset", "pvc://trays/", "hub", None),
    ],
)
def test_an_adapters_base_has_the_name_by_which_others_find_it(
    role: str, origin: str, layout: str, expected: BaseModel | None
) -> None:
    inputs = Inputs(model_dir=Path("/m"), dataset_dir=Path("/d"), origins={role: origin}, model_layout=layout)
    assert inputs.base_model == expected


def test_without_word_of_prepare_the_operators_holds(tmp_path: Path) -> None:
    config = run_config(tmp_path, StageName.TRAIN)
    assert read_inputs(config) is None
    assert load_run_config(write(config, tmp_path), StageName.TRAIN) == config


def test_word_of_another_version_is_refused(tmp_path: Path) -> None:
    config = run_config(tmp_path, StageName.TRAIN)
    config.volume.inputs_file.parent.mkdir(parents=True)
    config.volume.inputs_file.write_text(json.dumps({"version": 2, "modelDir": "/a", "datasetDir": "/b"}))
    with pytest.raises(ValidationError):
        load_run_config(write(config, tmp_path), StageName.TRAIN)
    with pytest.raises(StageError) as caught:
        load_config(write(config, tmp_path), StageName.TRAIN)
    assert caught.value.reason is Reason.INVALID_CONFIG
    assert "version" in caught.value.message
