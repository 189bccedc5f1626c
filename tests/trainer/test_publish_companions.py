"""What is published beside a model: its card, where it comes from, and its signature, of a run that was evaluated."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from google.protobuf import json_format
from huggingface_hub import ModelCard
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from model_signing import verifying
from PIL import Image
from transformers import AutoProcessor

from llava_api.constants import StageName
from llava_api.failures import Reason
from llava_api.spec import MAY_CHANGE, MAY_CHANGE_SUSPENDED
from llava_trainer.data.processor import PROCESSOR_FILES
from llava_trainer.errors import StageError
from llava_trainer.files import sha256_file
from llava_trainer.publishing.content import Content
from llava_trainer.publishing.gathering import gather_contents
from llava_trainer.sources.archive import ARCHIVE_SUFFIX
from llava_trainer.sources.fetched import state_of
from tests.trainer.evaluated import copy_published, make_evaluated, publish_config

SECRET = "hf_do-not-tell"


@pytest.fixture(scope="module")
def made_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluated")
    make_evaluated(root)
    return root


@pytest.fixture
def root(made_root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made_root, tmp_path / "run"))


def gather(root: Path, secrets: Path | None = None, **settings: Any) -> dict[str, Content]:
    contents = gather_contents(publish_config(root, **settings), secrets or root / "secrets")
    return {content.what: content for content in contents}


def read(content: Content, name: str) -> str:
    return next(item.path for item in content.items if item.name == name).read_text()


def code_of(card: str) -> str:
    """The Python that a card tells people to run."""
    (found,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return str(found)


def run_code(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    Image.new("RGB", (120, 90), "red").save(folder.parent / "receipt.png")
    monkeypatch.chdir(folder.parent)
    # There is no accelerate for a place to be chosen by here, and nothing to choose.
    code = code.replace('MODEL = "."', f"MODEL = {str(folder)!r}").replace(', device_map="auto"', "")
    with torch.no_grad():
        exec(compile(code, "card", "exec"), {})
    return capsys.readouterr().out.strip()


def test_the_card_of_a_merged_model(root: Path) -> None:
    card = read(gather(root, license="Llama2")["merged"], "README.md")
    data = ModelCard(card).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("llama2", "transformers", "image-text-to-text")
    assert (data.base_model, data.base_model_relation) == (["llava-hf/llava-1.5-7b-hf"], "finetune")
    assert data.datasets is None, "a bucket is nothing that the hub could link to"
    (result,) = data.eval_results
    assert (result.metric_type, result.dataset_type, result.dataset_split) == ("exact_match", "private", "validation")
    low, high = result.metric_args["interval_95"]
    assert low <= result.metric_value <= high
    for part in (
        "# trays\n\nOn 9 held-out questions",
        "| Model | hf\\://llava-hf/llava-1.5-7b-hf\\@c0ffee42",
        "| Licence | Llama2 |",
        "| Learned from | pvc\\://trays/ · export.json (llava) | 24 | 24 | 24 |",
        "| Held out, scored | pvc\\://trays/ · export.json (llava) | 8 | 8 | 8 |", "| Method | lora, rank 4, alpha 12",
        "| Trained | 60 steps, 54,000 tokens, 1,234 parameters, on 2 processes |",
        "| Held-out loss | 0.07 at step 40, which was taken |", "| validation | exact match | 9 |",
        "was not measured (evaluation.retention)", "No least gain was asked for", "vllm serve FOLDER",
        "logits differ from those of base and adapter by",
    ):  # fmt: skip
        assert part in card, part
    assert "\n\n\n" not in card
    assert "model_signing" not in card
    assert "max_new_tokens=8)" in card


def test_the_card_of_an_adapter(root: Path) -> None:
    content = gather(root, what="adapter")["adapter"]
    card = read(content, "README.md")
    data = ModelCard(card).data
    assert (data.library_name, data.base_model_relation, data.license) == ("peft", "adapter", None)
    assert "Servers load no adapter that brings a projector" in card
    assert f'from_pretrained(BASE, revision="{"c0ffee42" * 5}"' in card
    assert "that of the base and of the data" in card
    assert "\n\n\n" not in card


def test_what_the_cards_tell_to_run_runs(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also: an adapter that was published by itself brings all but the base."""
    contents = gather(root, what="both")
    merged = copy_published(contents["merged"], root / "downloaded-merged")
    said = run_code(code_of((merged / "README.md").read_text()), merged, monkeypatch, capsys)
    adapter = copy_published(contents["adapter"], root / "downloaded-adapter")
    code = code_of((adapter / "README.md").read_text())
    assert 'BASE = "llava-hf/llava-1.5-7b-hf"' in code
    code = code.replace('BASE = "llava-hf/llava-1.5-7b-hf"', f"BASE = {str(root / 'base')!r}")
    code = re.sub(r', revision="[0-9a-f]{40}"', "", code)
    assert said
    assert run_code(code, adapter, monkeypatch, capsys) == said
    # For a server: the base's weights, and these files over its own (docs/serving.md).
    served = Path(shutil.copytree(root / "base", root / "served"))
    for name in PROCESSOR_FILES:
        if (adapter / name).exists():
            shutil.copyfile(adapter / name, served / name)
    question = [{"role": "user", "content": [{"type": "text", "text": "What is the total?"}]}]
    asked = [
        AutoProcessor.from_pretrained(folder).apply_chat_template(question, tokenize=True, add_generation_prompt=True)
        for folder in (served, adapter, merged)
    ]
    assert asked[0] == asked[1] == asked[2]


def test_nothing_depends_on_attempt_time_or_place(root: Path) -> None:
    """What a later attempt finds at a destination is byte for byte what it would send."""
    secrets = root / "secrets"
    write_key(secrets)
    signing = {"name": "key"}
    first = gather(root, secrets, what="both", signing=signing)
    texts = {(what, item.name): item.path.read_bytes() for what, content in first.items() for item in content.items}
    elsewhere = [{"address": "s3://models/a", "secretRef": {"name": "s"}}, {"address": "hf://ab/cd"}]
    again = gather(root, secrets, attempt=2, what="both", signing=signing, destinations=elsewhere)
    assert {what: content.digest for what, content in again.items()} == {
        what: content.digest for what, content in first.items()
    }
    # The merged model is the same whether its adapter goes along or not.
    alone = gather(root, secrets, attempt=3, signing=signing)["merged"]
    assert {item.name: item.path.read_bytes() for item in alone.items} == {
        name: text for (what, name), text in texts.items() if what == "merged"
    }


def test_what_may_change_between_two_attempts_changes_nothing(root: Path) -> None:
    """A destination that has the model would be told of another one: s3 and pvc refuse it."""
    config = publish_config(root)
    training, batch = config.training, config.training.batch
    changed = {
        "training.maxRestarts": {"training": training.model_copy(update={"max_restarts": 9})},
        "training.batch.perDevice": {
            "training": training.model_copy(update={"batch": batch.model_copy(update={"per_device": 2})})
        },
        "workers.replicas": {"workers": config.workers.model_copy(update={"num_nodes": 4})},
        "workers.gpus": {"workers": config.workers.model_copy(update={"processes_per_node": 4, "device": "cuda"})},
    }  # fmt: skip
    beside_the_configuration = {
        "suspend", "retry", "activeDeadlineSeconds", "ttlSecondsAfterFinished", "notifications", "workers.resources",
        "alignment.batch.perDevice", "scheduling",
    }  # fmt: skip
    assert {*changed, *beside_the_configuration, "publish"} == {*MAY_CHANGE, *MAY_CHANGE_SUSPENDED}
    (before,) = gather_contents(config, root / "secrets")
    digest = before.digest
    for field, update in changed.items():
        (after,) = gather_contents(config.model_copy(update=update), root / "secrets")
        assert after.digest == digest, field


def write_key(secrets: Path) -> Path:
    """A signing key as it is mounted; returns the file of its public half."""
    private = ec.generate_private_key(ec.SECP256R1())
    (secrets / "signing").mkdir(parents=True)
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (secrets / "signing" / "privateKey").write_bytes(pem)
    public = secrets / "public.pem"
    public.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return public


def test_the_signature_covers_everything_as_it_is_downloaded(root: Path) -> None:
    public = write_key(root / "secrets")
    contents = gather(root, what="both", signing={"name": "key"})
    folder = copy_published(contents["merged"], root / "downloaded")
    copy_published(contents["adapter"], folder / "adapter")
    key = (root / "secrets" / "signing" / "privateKey").read_text().splitlines()[1:-1]
    texts = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert not any(line.encode() in text for line in key for text in texts), "nothing of the key goes along"
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=public)
    verifier.verify(folder, folder / "model.sig")
    verifying.Config().use_elliptic_key_verifier(public_key=public).verify(
        folder / "adapter", folder / "adapter" / "model.sig"
    )
    assert "model_signing verify key" in (folder / "README.md").read_text()
    for name in (item.name for item in contents["merged"].items if item.name != "model.sig"):
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(before + b" ")
        with pytest.raises(ValueError, match="Hash mismatch"):
            verifying.Config().use_elliptic_key_verifier(public_key=public).verify(folder, folder / "model.sig")
        (folder / name).write_bytes(before)


def test_a_key_that_is_missing_is_refused(root: Path) -> None:
    with pytest.raises(StageError, match=r"spec\.publish\.signing") as error:
        gather(root, signing={"name": "key"})
    assert error.value.reason is Reason.DESTINATION_REFUSED


def test_where_it_comes_from(root: Path) -> None:
    image = f"registry.example/trainer@sha256:{'ab' * 32}"
    content = gather(root, image=image)["merged"]
    text = read(content, "provenance.intoto.jsonl")
    assert text.count("\n") == 1, "one statement a line"
    statement = json.loads(text)
    # The published types refuse a field that they do not know.
    parsed = json_format.ParseDict(statement, statement_pb2.Statement())
    Statement.copy_from_pb(parsed).validate()
    json_format.ParseDict(statement["predicate"], provenance_pb2.Provenance())
    assert (statement["_type"], statement["predicateType"]) == (
        "https://in-toto.io/Statement/v1",
        "https://slsa.dev/provenance/v1",
    )
    subjects = {subject["name"]: subject["digest"]["sha256"] for subject in statement["subject"]}
    made_later = {"provenance.intoto.jsonl", "publication.json"}
    assert subjects == {item.name: item.sha256 for item in content.items if item.name not in made_later}
    definition, details = statement["predicate"]["buildDefinition"], statement["predicate"]["runDetails"]
    sources = {source["name"]: source for source in definition["resolvedDependencies"]}
    assert sources["model"]["digest"] == {"gitCommit": "c0ffee42" * 5}
    assert sources["dataset"] == {"name": "dataset", "uri": "s3://trays/export"}
    assert sources["prepared samples"]["digest"]["dirHash"]
    assert details["builder"]["builderDependencies"] == [
        {"name": "trainer image", "uri": image, "digest": {"sha256": "ab" * 32}}
    ]
    products = {product["name"]: product["digest"] for product in details["byproducts"]}
    metrics = publish_config(root).volume.metrics_file
    assert products["metrics"] == {"sha256": sha256_file(metrics).removeprefix("sha256:")}
    assert products["adapter"]["dirHash"]
    assert definition["externalParameters"]["training"]["lora"]["rank"] == 4
    assert definition["internalParameters"] == {
        "run": {"namespace": "team-a", "name": "trays", "uid": "0c6f"},
        "worldSize": 2,
    }


def test_what_came_in_is_told_by_digest(root: Path) -> None:
    """Of what was fetched and has no commit: the journal has the digest of each file."""
    volume = publish_config(root).volume
    folder = volume.download_dir("dataset")
    state = state_of(folder)
    state.mkdir(parents=True)
    notes = [{"name": f"{n}.json", "address": f"s3://t/{n}", "size": 1, "sha256": f"{n}" * 64} for n in (2, 1, 1)]
    lines = "".join(f"{json.dumps(note)}\n" for note in notes)
    (state / "fetched.jsonl").write_text(lines + '{"name": "cut off')

    def digest_of() -> object:
        statement = json.loads(read(gather(root)["merged"], "provenance.intoto.jsonl"))
        sources = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
        return next(one.get("digest") for one in sources if one["name"] == "dataset")

    listing = "".join(f"{f'{n}' * 64}  {n}.json\n" for n in (1, 2))
    assert digest_of() == {"dirHash": hashlib.sha256(listing.encode()).hexdigest()}
    # An archive is one file, whose journal stays beside what was unpacked of it.
    archive = state.rename(state_of(folder.with_name(f"dataset{ARCHIVE_SUFFIX}")))
    (archive / "fetched.jsonl").write_text(json.dumps(notes[0]) + "\n")
    assert digest_of() == {"sha256": "2" * 64}


def test_nothing_secret_is_told(root: Path) -> None:
    config = publish_config(root)
    inputs = json.loads(config.volume.inputs_file.read_text())
    inputs["origins"]["dataset"] = f"https://user:{SECRET}@data.example/trays.zip?sig={SECRET}"
    config.volume.inputs_file.write_text(json.dumps(inputs))
    dataset = config.dataset.model_copy(update={"source": f"https://data.example/trays.zip?sig={SECRET}"})
    download = config.download.model_copy(update={"https_proxy": f"http://me:{SECRET}@proxy.example"})
    config = config.model_copy(update={"dataset": dataset, "download": download})
    (content,) = gather_contents(config, root / "secrets")
    for name in ("README.md", "provenance.intoto.jsonl", "publication.json"):
        text = read(content, name)
        assert SECRET not in text, name
        assert "secretRef" not in text
    assert "data.example" in read(content, "README.md")


@pytest.mark.parametrize("name", ["data/report.json", "evaluation/metrics.json", "merged/merge.json"])
def test_what_a_card_is_made_of_is_damaged(name: str, root: Path) -> None:
    folders = {"data": StageName.PREPARE, "evaluation": StageName.EVALUATE, "merged": StageName.MERGE}
    file = publish_config(root).volume.result_dir(folders[name.partition("/")[0]]) / name
    for damage in (lambda: file.write_text("{}"), file.unlink):
        damage()
        with pytest.raises(StageError, match=re.escape(file.name)) as error:
            gather(root)
        assert error.value.reason is Reason.RESULT_DAMAGED
