"""A real API server refuses bad manifests at apply, naming the field and what would be right."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from llava_api.constants import API_VERSION, KIND
from llava_api.crd import build_crd
from llava_api.names import MAX_RUN_NAME
from llava_api.rules import RULES_KEY
from llava_api.spec import LORA_TARGETS
from tests.kubectl import Kubectl, KubectlError
from tests.rendering import ROOT

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def kubectl(api_server: Kubectl) -> Iterator[Kubectl]:
    api_server.apply(build_crd())
    # Before a CRD has any condition, waiting for one is an error.
    for condition in ("jsonpath={.status.acceptedNames.kind}", "condition=Established"):
        api_server.run("wait", f"--for={condition}", "crd/llavafinetunes.finetune.llava.dev", "--timeout=30s")
    yield api_server
    api_server.run("delete", "lft", "--all")


def make(name: str = "run", **changes: Any) -> dict[str, Any]:
    """A small valid manifest; keys of ``changes`` are dotted paths with ``__`` for the dots."""
    manifest: dict[str, Any] = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name},
        "spec": {
            "model": {"source": "pvc://models/llava"},
            "dataset": {"source": "pvc://data/set", "format": "llava", "file": "train.json"},
        },
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        target = manifest["spec"]
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    return manifest


CAPTIONS = {"source": "pvc://data/captions", "format": "llava", "file": "captions.json"}
SECOND = {"source": "pvc://data/general", "format": "llava", "file": "g.json"}
FROM_SCRATCH = {"languageModel": "pvc://models/vicuna", "visionTower": "pvc://models/clip"}


def mixed(*, share: float = 0.1, **dataset: Any) -> dict[str, Any]:
    """A dataset of the mixture."""
    return {"dataset": {"source": "pvc://data/general", "format": "llava", "file": "g.json", **dataset}, "share": share}


def refusal(kubectl: Kubectl, manifest: dict[str, Any]) -> str:
    with pytest.raises(KubectlError) as caught:
        kubectl.apply(manifest)
    return str(caught.value)


def test_smallest_manifest_is_accepted_and_gets_the_recipe(kubectl: Kubectl) -> None:
    kubectl.apply(make("smallest"))
    spec = kubectl.get("lft", "smallest")["spec"]
    assert "learningRate" not in spec["training"], "it depends on the method"
    assert spec["training"]["lora"] == {
        "rank": 128, "alpha": 256, "dropout": 0.05, "targets": list(LORA_TARGETS), "rsLora": False
    }  # fmt: skip
    assert spec["training"]["batch"] == {"perDevice": 8, "global": 128}
    assert spec["dataset"]["validation"] == {"fraction": 0.05}
    assert spec["dataset"]["imageAspectRatio"] == "pad"
    assert spec["workers"]["resources"]["limits"] == {"memory": "64Gi"}


@pytest.mark.parametrize(
    ("name", "evaluation"),
    [
        ("plain-gate", {"gate": {}}),
        ("gate-of-one", {"metrics": ["anls", "rouge_l"], "gate": {"metric": "rouge_l", "minimumGain": -0.01}}),
        ("gate-of-a-part", {"metrics": ["yes_no"], "gate": {"metric": "yes_no_recall", "use": "pointValue"}}),
        ("retained", {"metrics": ["anls"], "gate": {}, "retention": {"dataset": SECOND, "metric": "anls"}}),
        ("gate-of-the-first", {"metrics": ["anls"], "gate": {"metric": None}}),
    ],
)
def test_gates_that_can_be_judged_are_accepted(kubectl: Kubectl, name: str, evaluation: dict[str, Any]) -> None:
    kubectl.apply(make(name, evaluation=evaluation))
    taken = kubectl.get("lft", name)["spec"]["evaluation"]
    assert taken["gate"].keys() >= {"minimumGain", "use"}
    assert taken["metrics"] == evaluation.get("metrics", ["exact_match"])
    assert taken["numberTolerance"] == 0.05


def test_a_global_batch_by_the_data_needs_to_be_no_multiple(kubectl: Kubectl) -> None:
    kubectl.apply(make("auto", training__batch={"perDevice": 7, "global": "auto"}, workers__gpus=3))
    assert kubectl.get("lft", "auto")["spec"]["training"]["batch"] == {"perDevice": 7, "global": "auto"}


@pytest.mark.parametrize("path", sorted((ROOT / "manifests" / "samples").glob("*.yaml")), ids=lambda path: path.name)
def test_samples_are_accepted(kubectl: Kubectl, path: Any) -> None:
    kubectl.run("apply", "--dry-run=server", "-f", str(path))


@pytest.mark.parametrize(
    ("changes", "field", "right"),
    [
        ({"training__learningRate": -1}, "spec.training.learningRate", "greater than 0"),
        ({"training__learningRate": 0}, "spec.training.learningRate", "greater than 0"),
        ({"training__learningRate": 20}, "spec.training.learningRate", "less than or equal to 1"),
        ({"training__epochs": 0}, "spec.training.epochs", "greater than or equal to 1"),
        ({"training__epochs": 100_000}, "spec.training.epochs", "less than or equal to 1000"),
        ({"training__epochs": "many"}, "spec.training.epochs", "integer"),
        ({"training__lora__rank": 0}, "spec.training.lora.rank", "greater than or equal to 1"),
        ({"training__lora__dropout": 1}, "spec.training.lora.dropout", "less than 1"),
        (
            {"training__tracking": {"wandb": {"project": "a/b"}}},
            "spec.training.tracking.wandb.project",
            "letters, digits",
        ),
        (
            {"training__tracking": {"wandb": {"project": "p", "entity": "a b"}}},
            "spec.training.tracking.wandb.entity",
            "letters, digits",
        ),
        (
            {"training__tracking": {"wandb": {"project": "p", "url": "http://a.example", "secretRef": {"name": "s"}}}},
            "spec.training.tracking.wandb.url",
            "must begin with https://",
        ),
        (
            {"training__tracking": {"wandb": {"project": "p", "url": "https://u:p@a.example"}}},
            "spec.training.tracking.wandb.url",
            "credentials belong in a Secret",
        ),
        ({"training__lora__targets": []}, "spec.training.lora.targets", "at least 1 items"),
        ({"training__lora__targets": ["lm_head"]}, "spec.training.lora.targets[0]", '"q_proj"'),
        ({"training__lora__targets": ["q_proj", "q_proj"]}, "spec.training.lora.targets[1]", "Duplicate value"),
        ({"training__lora__rsLora": "yes"}, "spec.training.lora.rsLora", "boolean"),
        ({"training__projector": "half"}, "spec.training.projector", '"frozen"'),
        ({"training__visionTower": {"mode": "half"}}, "spec.training.visionTower.mode", '"full"'),
        ({"training__visionTower": {"learningRate": 0}}, "spec.training.visionTower.learningRate", "greater than 0"),
        ({"training__maxSteps": 0}, "spec.training.maxSteps", "greater than or equal to 1"),
        ({"training__maxSteps": 10**8}, "spec.training.maxSteps", "less than or equal to 10000000"),
        ({"training__minimumLearningRate": -1e-6}, "spec.training.minimumLearningRate", "greater than or equal to 0"),
        ({"training__optimizer": {"beta1": 1}}, "spec.training.optimizer.beta1", "less than 1"),
        ({"training__optimizer": {"beta2": -0.1}}, "spec.training.optimizer.beta2", "greater than or equal to 0"),
        ({"training__optimizer": {"epsilon": 0}}, "spec.training.optimizer.epsilon", "greater than 0"),
        ({"training__method": "magic"}, "spec.training.method", '"lora"'),
        ({"training__precision": "fp8"}, "spec.training.precision", '"bf16"'),
        ({"training__scheduler": "step"}, "spec.training.scheduler", '"cosine"'),
        ({"workers__replicas": 0}, "spec.workers.replicas", "greater than or equal to 1"),
        ({"workers__gpus": -1}, "spec.workers.gpus", "greater than or equal to 0"),
        ({"workers__gpus": 1000}, "spec.workers.gpus", "less than or equal to 16"),
        ({"workers__shmSize": "lots"}, "spec.workers.shmSize", "should match"),
        ({"workers__shmSize": -5}, "spec.workers.shmSize", "greater than or equal to 0"),
        ({"storage__size": "-1Gi"}, "spec.storage.size", "should match"),
        (
            {"ttlSecondsAfterFinished": 60},
            "spec.ttlSecondsAfterFinished",
            "needs spec.storage.retain Always or OnSuccess, or spec.storage.existingClaim",
        ),
        (
            {"ttlSecondsAfterFinished": 60, "storage__retain": "Never"},
            "spec.ttlSecondsAfterFinished",
            "would delete the only copy of the model",
        ),
        ({"notifications": [{"name": "a"}]}, "spec.notifications[0]", "set either webhook (CloudEvents) or slack"),
        (
            {"notifications": [{"name": "a", "webhook": {"url": "https://h"}, "slack": {"secretRef": {"name": "s"}}}]},
            "spec.notifications[0]",
            "two receivers are two notifications",
        ),
        ({"notifications": [{"name": "a", "webhook": {}}]}, "spec.notifications[0].webhook", "needs url, or secretRef"),
        ({"notifications": [{"name": "a", "slack": {}}]}, "spec.notifications[0].slack.secretRef", "Required"),
        *(
            (
                {"notifications": [{"name": "a", "webhook": {"url": url}}]},
                "spec.notifications[0].webhook.url",
                "belongs in a Secret (secretRef)",
            )
            for url in (
                "https://me:secret@hooks.example/",
                "https://h@evil.example",
                "ftp://h.example",
                "https://h.example#x",
                "https://h.example/a#b",
                "https://h.example/ü",
                "https://h.example\n",
                "https://[::1]/",
                "https://h.example:x/",
                "//h.example",
            )
        ),
        ({"notifications": [{"name": "a", "webhook": {"url": "https://h"}}] * 2}, "spec.notifications[1]", "Duplicate"),
        (
            {"notifications": [{"name": f"a{n}", "webhook": {"url": "https://h"}} for n in range(9)]},
            "spec.notifications",
            "must have at most 8 items",
        ),
        (
            {"notifications": [{"name": "a", "events": ["Promoted"], "webhook": {"url": "https://h"}}]},
            "spec.notifications[0].events[0]",
            '"WaitingTooLong"',
        ),
        (
            {"notifications": [{"name": "a", "true": ["Failed"], "webhook": {"url": "https://h"}}]},
            "spec.notifications[0].true",
            "unknown field",
        ),
        ({"ttlSecondsAfterFinished": -1}, "spec.ttlSecondsAfterFinished", "greater than or equal to 0"),
        ({"ttlSecondsAfterFinished": 10**8}, "spec.ttlSecondsAfterFinished", "less than or equal to 31536000"),
        ({"scheduling__priorityClassName": "High!"}, "spec.scheduling.priorityClassName", "should match"),
        ({"scheduling__priorityClassName": ""}, "spec.scheduling.priorityClassName", "at least 1 chars"),
        ({"scheduling__serviceAccountName": "a/b"}, "spec.scheduling.serviceAccountName", "should match"),
        (
            {"scheduling__serviceAccountName": "a" * 254},
            "spec.scheduling.serviceAccountName",
            "may not be more than 253",
        ),
        ({"scheduling__topologySpread": [{}]}, "spec.scheduling.topologySpread[0].topologyKey", "Required"),
        ({"scheduling__topologySpread": [{"topologyKey": "a b"}]}, "topologySpread[0].topologyKey", "should match"),
        (
            {"scheduling__topologySpread": [{"topologyKey": "zone", "maxSkew": 0}]},
            "spec.scheduling.topologySpread[0].maxSkew",
            "greater than or equal to 1",
        ),
        (
            {"scheduling__topologySpread": [{"topologyKey": "zone", "whenUnsatisfiable": "Hope"}]},
            "spec.scheduling.topologySpread[0].whenUnsatisfiable",
            '"DoNotSchedule"',
        ),
        (
            {"scheduling__topologySpread": [{"topologyKey": "zone"}, {"topologyKey": "zone", "maxSkew": 2}]},
            "spec.scheduling.topologySpread",
            "each topologyKey may stand there once",
        ),
        (
            {"scheduling__topologySpread": [{"topologyKey": f"a{n}"} for n in range(5)]},
            "spec.scheduling.topologySpread",
            "at most 4 items",
        ),
        ({"storage__retain": "Sometimes"}, "spec.storage.retain", '"OnSuccess"'),
        ({"storage__existingClaim": "Not/A/Claim"}, "spec.storage.existingClaim", "should match"),
        ({"storage__existingClaim": ""}, "spec.storage.existingClaim", "at least 1 chars"),
        ({"dataset__format": "csv"}, "spec.dataset.format", '"llava"'),
        ({"dataset__validation": {"fraction": 0.9}}, "spec.dataset.validation.fraction", "less than or equal to 0.5"),
        ({"dataset__validation": {}}, "spec.dataset.validation", "either fraction or file"),
        (
            {"dataset__validation": {"fraction": 0.1, "file": "val.json"}},
            "spec.dataset.validation",
            "either fraction or file",
        ),
        ({"dataset__file": "../../etc/passwd"}, "spec.dataset.file", "relative to the source"),
        ({"dataset__file": "/etc/passwd"}, "spec.dataset.file", "relative to the source"),
        ({"dataset__ubiai": {}}, "spec.dataset.ubiai", "set format to ubiai"),
        ({"dataset__messages": {}}, "spec.dataset.messages", "set format to messages"),
        ({"dataset__format": "table"}, "spec.dataset.table", "set both or neither"),
        ({"dataset__table": {"turns": "t"}}, "spec.dataset.table", "set both or neither"),
        (
            {"dataset__format": "table", "dataset__table": {"question": "q"}},
            "spec.dataset.table",
            "name either question and answer",
        ),
        (
            {"dataset__format": "table", "dataset__table": {"question": "q", "answer": "a", "turns": "t"}},
            "spec.dataset.table",
            "name either question and answer",
        ),
        ({"dataset__format": "ubiai", "dataset__file": "*.json"}, "spec.dataset.file", "must name one file"),
        (
            {"dataset__format": "ubiai", "dataset__ubiai": {"questionLabel": "A", "answerLabel": "A"}},
            "spec.dataset.ubiai.answerLabel",
            "must differ",
        ),
        (
            {"model__source": "ftp://models/llava"},
            "spec.model.source",
            "must begin with pvc://, hf://, s3:// or https://",
        ),
        (
            {"model__source": "https://huggingface.co/liuhaotian/llava-v1.5-7b/tree/main"},
            "spec.model.source",
            "a page of the hub is no source: write hf://OWNER/NAME",
        ),
        ({"dataset__validation": {"fraction": 5}}, "spec.dataset.validation.fraction", "5 % are 0.05"),
        ({"model__source": "pvc://models/../../other"}, "spec.model.source", ".. parts"),
        ({"model__source": "pvc://Models/x"}, "spec.model.source", "pvc://CLAIM/PATH"),
        ({"model__source": "hf://llava-hf"}, "spec.model.source", "hf://OWNER/NAME or hf://OWNER/NAME@REVISION"),
        ({"model__source": "hf://-x/llava"}, "spec.model.source", "hf://OWNER/NAME or hf://OWNER/NAME@REVISION"),
        ({"model__base": "s3://Bucket_/x"}, "spec.model.base", "s3://BUCKET/PREFIX"),
        (
            {"dataset__source": "https://me:secret@host/data.zip"},
            "spec.dataset.source",
            "credentials belong in a Secret",
        ),
        ({"dataset__source": "https://host/data.rar"}, "spec.dataset.source", "must end with .zip, .tar, .tar.gz"),
        (
            {"dataset__source": f"https://host/data.zip#sha256={'A' * 64}"},
            "spec.dataset.source",
            "optionally followed by #sha256=DIGEST",
        ),
        (
            {"dataset__source": f"https://host/data/#sha256={'a' * 64}"},
            "spec.dataset.source",
            "must not end with #sha256= where it is a folder",
        ),
        ({"model": {"source": "pvc://a/b", "languageModel": "pvc://c/d"}}, "spec.model", "set either source"),
        ({"model": {"languageModel": "pvc://c/d"}}, "spec.model.visionTower", "languageModel needs visionTower"),
        (
            {"model": {"languageModel": "pvc://c/d", "visionTower": "pvc://c/e", "base": "pvc://c/f"}},
            "spec.model.base",
            "base goes with source",
        ),
        (
            {"model": {"languageModel": "pvc://c/d", "visionTower": "pvc://c/e"}},
            "spec.alignment",
            "or spec.model.projector with one that is aligned",
        ),
        ({"alignment": {"dataset": CAPTIONS}}, "spec.alignment.freshProjector", "begin with a new one"),
        (
            {"alignment": {"dataset": CAPTIONS | {"validation": {"file": "v.json"}}, "freshProjector": True}},
            "spec.alignment.dataset.validation.file",
            "alignment holds nothing out",
        ),
        (
            {"model": FROM_SCRATCH | {"projector": "pvc://c/f"}, "alignment": {"dataset": CAPTIONS}},
            "spec.alignment.freshProjector",
            "would damage the projector",
        ),
        (
            {"alignment": {"dataset": CAPTIONS, "freshProjector": True, "batch": {"perDevice": 3, "global": 7}}},
            "spec.alignment.batch.global",
            "is 7 but must be a multiple of 3",
        ),
        ({"training__method": "none"}, "spec.training.method", "none needs spec.alignment, or spec.model.adapter"),
        (
            {"model__adapter": "pvc://run/adapter", "training__method": "full"},
            "spec.model.adapter",
            "merge it first (with method none)",
        ),
        (
            {
                "model__adapter": "pvc://run/adapter",
                "alignment": {"dataset": CAPTIONS, "freshProjector": True},
            },
            "spec.model.adapter",
            "does not go with spec.alignment",
        ),
        ({"model__adapter": "/somewhere"}, "spec.model.adapter", "must begin with pvc://"),
        *(
            ({"mixture": [mixed(**part) for part in parts], **changes}, field, told)
            for parts, changes, field, told in (
                ([{"share": 0.01}] * 9, {}, "spec.mixture", "at most 8 items"),
                ([{"share": 0.5}] * 2, {}, "spec.mixture", "must come to at most 0.99 together"),
                ([{"share": 0}], {}, "spec.mixture[0].share", "greater than 0"),
                ([{"share": 1}], {}, "spec.mixture[0].share", "less than 1"),
                ([{"validation": {"file": "v.json"}}], {}, "spec.mixture", "only spec.dataset is held out"),
                ([{"imageAspectRatio": "square"}], {}, "spec.mixture", "must be that of spec.dataset"),
                ([{"source": "nfs://x/y"}], {}, "spec.mixture[0].dataset.source", "must begin with pvc://"),
                ([{"format": "table"}], {}, "spec.mixture[0].dataset.table", "set both or neither"),
                (
                    [{}],
                    {"model": FROM_SCRATCH, "alignment": {"dataset": CAPTIONS}, "training__method": "none"},
                    "spec.mixture",
                    "only read where something is trained after alignment",
                ),
            )
        ),
        (
            {"training__method": "qlora", "training__zero": {"stage": 3}},
            "spec.training.zero.stage",
            "quantised weights cannot be partitioned; use stage 2",
        ),
        ({"training__quantization": {"double": False}}, "spec.training.quantization", "qlora"),
        (
            {
                "training__validation": {"everySteps": 5, "answers": {"questions": 2}},
                "training__zero": {"stage": 3},
            },
            "spec.training.validation.answers",
            "does not go with spec.training.zero.stage 3",
        ),
        ({"training__keepBest": {"by": "loss"}}, "spec.training.keepBest", "needs spec.training.validation"),
        (
            {
                "training__method": "none",
                "training__projector": "frozen",
                "alignment": {"dataset": CAPTIONS, "freshProjector": True},
            },
            "spec.training.projector",
            "only read where something is trained after alignment",
        ),
        (
            {
                "training__method": "none",
                "training__visionTower": {"mode": "full"},
                "alignment": {"dataset": CAPTIONS, "freshProjector": True},
            },
            "spec.training.visionTower",
            "only read where something is trained after alignment",
        ),
        (
            {
                "training__method": "none",
                "training__maxSteps": 5,
                "alignment": {"dataset": CAPTIONS, "freshProjector": True},
            },
            "spec.training.maxSteps",
            "only read where something is trained after alignment",
        ),
        (
            {"training__minimumLearningRate": 1e-5, "training__scheduler": "constant"},
            "spec.training.minimumLearningRate",
            "never falls",
        ),
        ({"training__minimumLearningRate": 3e-4}, "spec.training.minimumLearningRate", "at most"),
        (
            {"training__minimumLearningRate": 3e-5, "training__method": "full"},
            "spec.training.minimumLearningRate",
            "2e-5 with method full",
        ),
        (
            {"training__minimumLearningRate": 2e-3, "training__learningRate": 1e-3},
            "spec.training.minimumLearningRate",
            "at most",
        ),
        ({"training__earlyStopping": {"patience": 2}}, "spec.training.earlyStopping", "needs spec.training.validation"),
        (
            {
                "training__method": "none",
                "training__validation": {"everySteps": 5},
                "alignment": {"dataset": CAPTIONS, "freshProjector": True},
            },
            "spec.training.validation",
            "only read where something is trained after alignment",
        ),
        (
            {"training__zero": {"stage": 2, "offload": {"parameters": True}}},
            "spec.training.zero.offload.parameters",
            "needs spec.training.zero.stage 3",
        ),
        (
            {"model": {"languageModel": "pvc://c/d", "visionTower": "pvc://c/e"}},
            "spec.alignment",
            "must be aligned before anything else",
        ),
        ({"model__secretRef": {"name": ""}}, "spec.model.secretRef.name", "at least 1 chars"),
        ({"download__caConfigMap": ""}, "spec.download.caConfigMap", "at least 1 chars"),
        (
            {"evaluation__generation": {"load": "16bit"}},
            "spec.evaluation.generation.load",
            'Unsupported value: "16bit"',
        ),
        ({"evaluation__prompts": [{"text": ""}]}, "spec.evaluation.prompts[0].text", "at least 1 chars"),
        ({"evaluation__prompts": [{"text": "x"}] * 33}, "spec.evaluation.prompts", "at most 32 items"),
        ({"evaluation__metrics": []}, "spec.evaluation.metrics", "at least 1 items"),
        ({"evaluation__metrics": ["bleu"]}, "spec.evaluation.metrics[0]", '"exact_match"'),
        ({"evaluation__metrics": ["yes_no_f1"]}, "spec.evaluation.metrics[0]", '"yes_no"'),
        ({"evaluation__metrics": ["anls", "anls"]}, "spec.evaluation.metrics[1]", "Duplicate value"),
        ({"evaluation__metrics": ["anls"] * 8}, "spec.evaluation.metrics", "at most 7 items"),
        ({"evaluation__numberTolerance": -0.1}, "spec.evaluation.numberTolerance", "greater than or equal to 0"),
        ({"evaluation__numberTolerance": 5}, "spec.evaluation.numberTolerance", "less than or equal to 1"),
        *(
            ({"evaluation__retention": {"dataset": SECOND | dataset, **retention}, **changes}, field, told)
            for dataset, retention, changes, field, told in (
                ({}, {"maximumLoss": 1}, {}, "spec.evaluation.retention.maximumLoss", "less than 1"),
                ({}, {"maximumLoss": -0.1}, {}, "spec.evaluation.retention.maximumLoss", "greater than or equal to 0"),
                ({}, {"metric": "bleu"}, {}, "spec.evaluation.retention.metric", '"yes_no_f1"'),
                ({}, {"metric": "anls"}, {}, "spec.evaluation.retention.metric", "must be one of evaluation.metrics"),
                ({"source": "nfs://x/y"}, {}, {}, "spec.evaluation.retention.dataset.source", "must begin with pvc://"),
                (
                    {"validation": {"file": "v.json"}},
                    {},
                    {},
                    "spec.evaluation.retention.dataset.validation.file",
                    "all of dataset.file is asked",
                ),
                (
                    {"imageAspectRatio": "square"},
                    {},
                    {},
                    "spec.evaluation.retention.dataset.imageAspectRatio",
                    "must be that of spec.dataset",
                ),
            )
        ),
        ({"evaluation__retention": {}}, "spec.evaluation.retention.dataset", "Required value"),
        ({"evaluation__gate": {"metric": "bleu"}}, "spec.evaluation.gate.metric", '"yes_no_f1"'),
        ({"evaluation__gate": {"minimumGain": 1}}, "spec.evaluation.gate.minimumGain", "less than 1"),
        (
            {"evaluation__gate": {"minimumGain": -1.5}},
            "spec.evaluation.gate.minimumGain",
            "greater than or equal to -1",
        ),
        ({"evaluation__gate": {"use": "mean"}}, "spec.evaluation.gate.use", '"lowerBound"'),
        (
            {"evaluation__metrics": ["anls", "number"], "evaluation__gate": {"metric": "rouge_l"}},
            "spec.evaluation.gate.metric",
            "evaluation.gate.metric is rouge_l but must be one of evaluation.metrics, which is anls, number",
        ),
        (
            {"evaluation__gate": {"metric": "yes_no_f1"}},
            "spec.evaluation.gate.metric",
            "evaluation.gate.metric is yes_no_f1 but must be one of evaluation.metrics, which is exact_match",
        ),
        ({"evaluation__workers__replicas": 0}, "spec.evaluation.workers.replicas", "greater than or equal to 1"),
        ({"evaluation__workers__replicas": 33}, "spec.evaluation.workers.replicas", "less than or equal to 32"),
        ({"evaluation__workers__gpus": -1}, "spec.evaluation.workers.gpus", "greater than or equal to 0"),
        ({"evaluation__workers__gpus": 2}, "spec.evaluation.workers.gpus", "less than or equal to 1"),
        ({"evaluation__gpus": 2}, "spec.evaluation.gpus", "less than or equal to 1"),
        ({"evaluation": {"gpus": 0, "workers": {"gpus": 1}}}, "spec.evaluation.gpus", "remove spec.evaluation.gpus"),
        (
            {"evaluation__workers__replicas": 2, "storage__accessModes": ["ReadWriteOnce"]},
            "spec.storage.accessModes",
            "must contain ReadWriteMany",
        ),
        (
            {"training__batch": {"perDevice": 8, "global": 100}, "workers__replicas": 2, "workers__gpus": 4},
            "spec.training.batch.global",
            "is 100 but must be a multiple of 64",
        ),
        (
            {"training__batch": {"perDevice": 8, "global": 20}, "workers__replicas": 2, "workers__gpus": 0},
            "spec.training.batch.global",
            "is 20 but must be a multiple of 16",
        ),
        *(
            ({"training__batch__global": value}, "spec.training.batch.global", told)
            for value, told in (
                ("all", "should match"),
                ("128", "should match"),
                (0, "greater than or equal to 1"),
                (65_600, "less than or equal to 65536"),
            )
        ),
        (
            {"workers__replicas": 2, "storage__accessModes": ["ReadWriteOnce"]},
            "spec.storage.accessModes",
            "must contain ReadWriteMany",
        ),
        ({"workers__gpus": 0, "training__precision": "bf16"}, "spec.training.precision", "use auto or fp32"),
        (
            {"workers__gpus": 0, "training__attention": "flash_attention_2"},
            "spec.training.attention",
            "use auto or sdpa",
        ),
        ({"workers__computeCapability": "7.0"}, "spec.workers.computeCapability", "must be at least 7.5"),
        ({"workers__computeCapability": "7.5"}, "spec.training.precision", "must be fp32"),
        (
            {
                "workers__computeCapability": "7.5",
                "training__precision": "fp32",
                "training__attention": "flash_attention_2",
            },
            "spec.training.attention",
            "use auto or sdpa",
        ),
        ({"workers__computeCapability": "sm90"}, "spec.workers.computeCapability", "should match"),
        ({"workers__gpuMemory": "80 G"}, "spec.workers.gpuMemory", "should match"),
        ({"workers__gpuMemory": "80GB"}, "spec.workers.gpuMemory", "has no B: 80Gi for 80 GiB, 80G for 80 GB"),
        (
            {"workers__resources": {"limits": {"memory": "64Gb"}}},
            "spec.workers.resources.limits[memory]",
            "has no B",
        ),
        ({"workers__network": {"interface": "eth0 up"}}, "spec.workers.network.interface", "should match"),
        ({"workers__network": {"debug": "LOUD"}}, "spec.workers.network.debug", "supported values"),
        (
            {"workers__network": {"resource": "cpu"}},
            "spec.workers.network.resource",
            "is cpu, but must be the extended",
        ),
        (
            {"workers__network": {"resource": "hugepages-2Mi"}},
            "spec.workers.network.resource",
            "in spec.workers.resources",
        ),
        ({"workers__network": {"resource": "x.kubernetes.io/nic"}}, "spec.workers.network.resource", "like rdma/hca"),
        (
            {"workers__network": {"resource": "nvidia.com/gpu"}},
            "spec.workers.network.resource",
            "GPUs in spec.workers.gpus",
        ),
    ],
)
def test_bad_values_are_refused(kubectl: Kubectl, changes: dict[str, Any], field: str, right: str) -> None:
    message = refusal(kubectl, make("refused", **changes))
    assert field in message
    assert right in message


@pytest.mark.parametrize(
    "source",
    [
        "pvc://claim/",
        "hf://llava-hf/llava-1.5-7b-hf",
        "hf://liuhaotian/llava-v1.5-7b@refs/pr/3",
        "s3://models.example/llava/7b/",
        f"https://files.example:8443/a%20b/set.tar.gz?version=2#sha256={'0' * 64}",
        "https://files.example/set/",
    ],
)
def test_every_kind_of_source_is_accepted(kubectl: Kubectl, source: str) -> None:
    manifest = make("source", dataset__source=source, model__source=source)
    kubectl.run("apply", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(manifest).encode())


@pytest.mark.parametrize(
    "changes",
    [
        {"model": FROM_SCRATCH, "alignment": {"dataset": CAPTIONS}},
        {"model": FROM_SCRATCH, "alignment": {"dataset": CAPTIONS}, "training__method": "none"},
        {"model": FROM_SCRATCH | {"projector": "pvc://first-run/projector"}},
        {"alignment": {"dataset": CAPTIONS, "freshProjector": True}, "training__method": "full"},
        {"mixture": []},
        {"mixture": [mixed(share=0.33)] * 3},
        {"mixture": [mixed(share=0.12)] * 8},
        {"training__method": "qlora", "training__quantization": {"computeDtype": "bf16"}},
        {
            "training__projector": "frozen",
            "training__maxSteps": 500,
            "training__minimumLearningRate": 2e-4,
            "training__optimizer": {"beta2": 0.95},
            "training__lora": {"targets": ["q_proj", "v_proj"], "rsLora": True},
            "training__visionTower": {"mode": "full", "learningRate": 1e-6},
        },
        {"model__adapter": "pvc://earlier-run/adapter"},
        {"model__adapter": "hf://me/adapter", "training__method": "none"},
        {"training__batch": {"perDevice": 8, "global": "auto"}, "training__maxSteps": 300},
    ],
    ids=[
        "both phases from scratch",
        "phase 1 alone",
        "phase 2 of an earlier phase 1",
        "a new projector",
        "no mixture",
        "a mixture of three",
        "a mixture of eight",
        "qlora",
        "all that is not the recipe",
        "from an adapter",
        "an adapter alone",
        "a batch by the data",
    ],
)
def test_every_way_through_the_phases_is_accepted(kubectl: Kubectl, changes: dict[str, Any]) -> None:
    manifest = make("phases", **changes)
    kubectl.run("apply", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(manifest).encode())


@pytest.mark.parametrize(
    "changes",
    [
        {"workers__computeCapability": "7.5", "training__precision": "fp32"},
        {"workers__computeCapability": "12.0", "workers__gpuMemory": "96Gi"},
        {"workers__gpus": 0, "workers__computeCapability": "7.0"},
        {"workers__network": {"interface": "^lo,docker0", "hca": "=mlx5_0:1", "resource": "rdma/hca", "debug": "INFO"}},
    ],
    ids=["an old card in fp32", "a new card", "on CPUs cards do not matter", "the network"],
)
def test_what_is_said_of_cards_and_network_is_accepted(kubectl: Kubectl, changes: dict[str, Any]) -> None:
    manifest = make("cards", **changes)
    kubectl.run("apply", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(manifest).encode())


@pytest.mark.parametrize("path", ["learningrate", "training__learning_rate", "dataset__ubiai__x", "workers__gpu"])
def test_unknown_fields_are_refused(kubectl: Kubectl, path: str) -> None:
    message = refusal(kubectl, make("refused", **{path: 1}))
    assert f'unknown field "spec.{path.replace("__", ".")}"' in message


@pytest.mark.parametrize("field", ["model", "dataset"])
def test_missing_fields_are_refused(kubectl: Kubectl, field: str) -> None:
    manifest = make("refused")
    del manifest["spec"][field]
    message = refusal(kubectl, manifest)
    assert f"spec.{field}" in message
    assert "Required" in message


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("a" * (MAX_RUN_NAME + 1), f"at most {MAX_RUN_NAME} characters"),
        ("7b", "must begin with a letter"),
        ("with.dots", "lower-case letters, digits and '-'"),
    ],
)
def test_names_that_children_cannot_carry_are_refused(kubectl: Kubectl, name: str, right: str) -> None:
    message = refusal(kubectl, make(name))
    assert "metadata.name" in message
    assert right in message


def test_longest_name_is_accepted(kubectl: Kubectl) -> None:
    kubectl.apply(make("a" * MAX_RUN_NAME))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"training__epochs": 2}, "training"),
        ({"training__projector": "frozen"}, "training.projector"),
        ({"model__source": "pvc://other/llava"}, "model"),
        ({"dataset__file": "other.json"}, "dataset"),
        ({"training__batch__global": 4}, "training.batch.global"),
        ({"training__batch__global": "auto"}, "training.batch.global"),
        ({"mixture": [mixed()]}, "mixture"),
        ({"workers__shmSize": "1Gi"}, "workers.shmSize"),
        ({"workers__gpuMemory": "80Gi"}, "workers.gpuMemory"),
        ({"alignment": {"dataset": {"source": "pvc://d/a", "format": "llava", "file": "a.json"}}}, "alignment"),
        ({"evaluation__prompts": [{"text": "What?"}]}, "evaluation"),
        ({"evaluation__workers__replicas": 2}, "evaluation"),
        ({"storage__storageClassName": "fast"}, "storage.storageClassName"),
        ({"storage__retain": "Always"}, "storage.retain"),
        ({"storage__existingClaim": "other"}, "storage.existingClaim"),
        ({"image__reference": "other"}, "image"),
        ({"imagePullSecrets": [{"name": "x"}]}, "imagePullSecrets"),
        ({"merge__dtype": "float32"}, "merge"),
        ({"prepare__resources": {"limits": {"memory": "1Gi"}}}, "prepare"),
        ({"publish": {"destinations": [{"address": "s3://models/a"}]}}, "publish"),
    ],
)
def test_editing_is_refused_from_the_first_moment(kubectl: Kubectl, changes: dict[str, Any], field: str) -> None:
    """No status has been written: nothing but the spec itself tells that the run exists."""
    kubectl.apply(make("edited"))
    status = kubectl.get("lft", "edited")["status"]
    assert (status["observedGeneration"], status["stages"]) == (-1, []), "what the schema says of a new run"
    message = refusal(kubectl, make("edited", **changes))
    assert f"spec.{field}" in message
    assert "is fixed from creation" in message or "neither comes nor goes after creation" in message


@pytest.mark.parametrize(
    ("evaluation", "kept"),
    [
        ({"gpus": 0}, {"gpus": 0, "workers": {"replicas": 1}}),
        ({"gpus": 1, "workers": {"gpus": 1}}, {"gpus": 1, "workers": {"gpus": 1, "replicas": 1}}),
        ({"workers": {"replicas": 32}}, {"workers": {"replicas": 32}}),
        ({}, {"workers": {"replicas": 1}}),
    ],
)
def test_the_older_name_of_evaluations_gpus_stays(
    kubectl: Kubectl, evaluation: dict[str, Any], kept: dict[str, Any]
) -> None:
    """Nothing is filled in beside it, so that what is stored by an older CRD means what it meant."""
    kubectl.run("delete", "lft", "older-name", "--ignore-not-found")
    kubectl.apply(make("older-name", evaluation=evaluation))
    found = kubectl.get("lft", "older-name")["spec"]["evaluation"]
    assert {name: found[name] for name in ("gpus", "workers") if name in found} == kept
    kubectl.apply(make("older-name", evaluation=evaluation, suspend=True))


SIZES = [
    ({"workers__replicas": 2, "storage__accessModes": ["ReadWriteMany"]}, "workers.replicas"),
    ({"workers__gpus": 0}, "workers.gpus"),
    ({"workers__resources": {"limits": {"memory": "1Gi"}}}, "workers.resources"),
    ({"training__batch__perDevice": 2}, "training.batch.perDevice"),
    ({"scheduling__nodeSelector": {"a": "b"}}, "scheduling"),
    ({"scheduling__queueName": "gpus"}, "scheduling"),
    ({"scheduling__serviceAccountName": "llava-s3"}, "scheduling"),
]


@pytest.mark.parametrize(("changes", "field"), SIZES)
def test_size_changes_only_while_suspended(kubectl: Kubectl, changes: dict[str, Any], field: str) -> None:
    kubectl.run("delete", "lft", "sized", "--ignore-not-found")
    modes = {name: value for name, value in changes.items() if name == "storage__accessModes"}
    kubectl.apply(make("sized", **modes))
    message = refusal(kubectl, make("sized", **changes))
    assert f"spec.{field} can only change while the run is suspended" in message
    # Not in the same moment: what stops has to have stopped.
    assert "while the run is suspended" in refusal(kubectl, make("sized", suspend=True, **changes))
    kubectl.apply(make("sized", suspend=True, **modes))
    kubectl.apply(make("sized", suspend=False, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"activeDeadlineSeconds": 60},
        {"training__maxRestarts": 9},
        {"suspend": True},
        {"retry": 1},
        {"ttlSecondsAfterFinished": 60},
        {"notifications": [{"name": "a", "events": ["Suspended"], "webhook": {"url": "https://hooks.example/a@b?c"}}]},
    ],
)
def test_what_may_change_at_any_time(kubectl: Kubectl, changes: dict[str, Any]) -> None:
    kubectl.run("delete", "lft", "patient", "--ignore-not-found")
    kubectl.apply(make("patient", storage__retain="OnSuccess"))
    for _ in range(2):
        kubectl.apply(make("patient", storage__retain="OnSuccess", **changes))


def publish(*addresses: str, what: str = "merged", **destination: Any) -> dict[str, Any]:
    """Destinations, the last of which has more to it than an address."""
    destinations: list[dict[str, Any]] = [{"address": address} for address in addresses]
    destinations[-1] |= destination
    return {"destinations": destinations, "what": what}


HASH = "0" * 40
PLACES = (
    "s3://abc/x", "s3://my.models-1/team/LLaVA_v1.5/run-7", "s3://123/_x", "hf://a/b", "hf://Team_1/in.voices-7b",
    f"hf://team/invoices@{HASH}", "hf://team/invoices@v1.5_x", "oci://r/a:1", "oci://registry.svc:5000/a/b__c/d-e:V1.0",
    "oci://ghcr.io/team/invoices:latest", "oci://r/a-modelcar:modelcar", "pvc://models/a-modelcar", "pvc://models.v1/team/run-7/_x",
)  # fmt: skip


NO_PLACES = {
    "must begin with s3://, hf://, oci:// or pvc://": (
        "https://h.example/x", "S3://abc/x", " s3://abc/x", "models/llava", "docker://r/a:1",
    ),
    "a destination in a bucket must be s3://BUCKET/FOLDER": (
        "s3://abc", "s3://abc/", "s3://abc/x/", "s3://ab/x", "s3://Abc/x", "s3://abc//x", "s3://abc/../x", "s3://abc/.x",
        "s3://abc/-x", "s3://abc/x?y", "s3://abc/x y", "s3://me:pw@abc/x", "s3://abc/x\n", "s3://abc/ü",
        f"s3://{'a' * 64}/x",
    ),
    "a destination on the hub must be hf://OWNER/NAME or hf://OWNER/NAME@BRANCH": (
        "hf://invoices", "hf://team/", "hf://team/a/b", "hf://team/a@", "hf://team/a@refs/pr/1", "hf://-team/a",
        "hf://team/a.", "hf://datasets/team/a", f"hf://{'a' * 97}/b",
    ),
    "a destination in a registry must be oci://REGISTRY/REPOSITORY:TAG, the repository in lower case": (
        "oci://r.example/a", "oci://r.example:1", "oci://r.example/A:1", "oci://r.example/a:", "oci://r.example/a:-x",
        "oci://r.example/a//b:1", "oci://r.example/../b:1", "oci://me:pw@r.example/a:1", "oci://R.example/a:1",
        f"oci://r.example/a@sha256:{'a' * 64}", f"oci://r.example/a:{'a' * 101}",
    ),
    "a destination's tag must not end in -modelcar": ("oci://r/a:-modelcar", "oci://r/a:1-modelcar"),
    "a destination on a claim must be pvc://CLAIM/FOLDER": (
        "pvc://models", "pvc://models/", "pvc://Models/x", "pvc://models/../x", "pvc://models/.x", "pvc://models/x/",
        "pvc://models//x",
    ),
}  # fmt: skip


def try_out(kubectl: Kubectl, *manifests: dict[str, Any]) -> None:
    body = "\n---\n".join(json.dumps(manifest) for manifest in manifests)
    kubectl.run("create", "--dry-run=server", "-f", "-", stdin=body.encode())


def test_places_to_publish_to_are_accepted(kubectl: Kubectl) -> None:
    try_out(kubectl, *(make(f"p-{n}", publish=publish(one, what="both")) for n, one in enumerate(PLACES)))


def test_places_that_are_none_are_refused(kubectl: Kubectl) -> None:
    """Each by what would be right."""
    wrong = [(place, right) for right, places in NO_PLACES.items() for place in places]
    manifests = [make(f"p-{n}", publish=publish(place)) for n, (place, _) in enumerate(wrong)]
    with pytest.raises(KubectlError) as caught:
        try_out(kubectl, *manifests)
    said = str(caught.value).split('LlavaFineTune.finetune.llava.dev "p-')
    found = {int(one.partition('"')[0]): one for one in said[1:]}
    for number, (place, right) in enumerate(wrong):
        assert "spec.publish.destinations[0].address" in found[number], place
        assert right in found[number], place


@pytest.mark.parametrize(
    ("changes", "field", "right"),
    [
        ({"publish": {"destinations": []}}, "spec.publish.destinations", "at least 1"),
        ({"publish": publish(*[f"s3://abc/{n}" for n in range(5)])}, "spec.publish.destinations", "at most 4"),
        ({"publish": publish(f"s3://abc/{'a' * 248}")}, "spec.publish.destinations[0].address", "Too long"),
        ({"publish": publish("s3://abc/a", "s3://abc/a")}, "spec.publish.destinations", "may stand there once"),
        ({"publish": publish("hf://a/b", "hf://a/b@main")}, "spec.publish.destinations", "may stand there once"),
        ({"publish": publish("s3://abc/a/b", "s3://abc/a")}, "spec.publish.destinations", "side by side"),
        ({"publish": publish("pvc://c/a", "pvc://c/a/b")}, "spec.publish.destinations", "side by side"),
        (
            {"publish": publish("oci://r/a:1", "oci://r/a:1-adapter", what="both")}, "spec.publish.destinations",
            "choose another tag",
        ),
        ({"publish": publish("s3://abc/a", plainHttp=True)}, "plainHttp", "leave plainHttp or secretRef out"),
        (
            {"publish": publish("oci://r/a:1", plainHttp=True, secretRef={"name": "s"})}, "plainHttp",
            "leave plainHttp or secretRef out",
        ),
        ({"publish": publish("pvc://c/a", secretRef={"name": "s"})}, "secretRef", "leave secretRef out"),
        ({"publish": publish("s3://abc/a", token="x")}, "spec.publish.destinations[0].token", "unknown field"),
        ({"publish": publish("s3://abc/a", what="weights")}, "spec.publish.what", "Unsupported value"),
        ({"publish": publish("s3://abc/a") | {"license": "Apache 2"}}, "spec.publish.license", "should match"),
        ({"publish": publish("s3://abc/a") | {"signing": {"name": ""}}}, "spec.publish.signing.name", "at least 1"),
        (
            {"publish": publish("s3://abc/a", what="adapter"), "training__method": "full"}, "spec.publish.what",
            "needs spec.training.method lora or qlora, which train one: use merged",
        ),
        (
            {"publish": publish("s3://abc/a", what="both"), "training__method": "none",
             "model__adapter": "pvc://models/adapter"},
            "spec.publish.what", "use merged",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_published_is_refused(kubectl: Kubectl, changes: dict[str, Any], field: str, right: str) -> None:
    with pytest.raises(KubectlError) as caught:
        try_out(kubectl, make("published", **changes))
    assert field in str(caught.value)
    assert right in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"publish": publish("hf://a/b", "hf://a/b@v1", "hf://a/b@v2")},
        {"publish": publish("s3://abc/a", "s3://abc/ab", "pvc://c/a", "pvc://d/a")},
        {"publish": publish("oci://r/a:1", "oci://r/a:1-adapter")},
        {"publish": publish("s3://abc/a", what="adapter"), "training__method": "qlora"},
        {"publish": publish("s3://abc/a"), "training__method": "full"},
        {"publish": publish("oci://r/a:1", plainHttp=True)},
        {"publish": publish("s3://abc/a", secretRef=None) | {"signing": None, "license": None}},
    ],
    ids=lambda changes: changes["publish"]["destinations"][-1]["address"],
)
def test_what_can_be_published_is_accepted(kubectl: Kubectl, changes: dict[str, Any]) -> None:
    try_out(kubectl, make("published", **changes))


def test_what_is_published_may_change_and_neither_comes_nor_goes(kubectl: Kubectl) -> None:
    kubectl.run("delete", "lft", "corrected", "--ignore-not-found")
    kubectl.apply(make("corrected", publish=publish("s3://abc/a", what="both")))
    corrected = publish("s3://abc/b", "hf://a/b", secretRef={"name": "s"}) | {"signing": {"name": "key"}}
    kubectl.apply(make("corrected", publish=corrected))
    assert kubectl.get("lft", "corrected")["spec"]["publish"] == corrected | {
        "destinations": [{"address": "s3://abc/b", "plainHttp": False},
                         {"address": "hf://a/b", "plainHttp": False, "secretRef": {"name": "s"}}],
        "resources": {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"memory": "2Gi"}},
    }  # fmt: skip
    assert "spec.publish neither comes nor goes" in refusal(kubectl, make("corrected"))


def test_an_attempt_keeps_what_it_was_to_publish(kubectl: Kubectl) -> None:
    """Whole, though the status has no schema of it."""
    kubectl.run("delete", "lft", "kept", "--ignore-not-found")
    kubectl.apply(make("kept", publish=publish("s3://abc/a", secretRef={"name": "s"})))
    wanted = kubectl.get("lft", "kept")["spec"]["publish"]
    attempts = [{"number": 1, "settings": {"publish": wanted}}]
    status = {"status": {"stages": [{"name": "publish", "state": "Skipped", "attempts": attempts}]}}
    kubectl.run("patch", "lft", "kept", "--subresource=status", "--type=merge", "-p", json.dumps(status))
    [stage] = kubectl.get("lft", "kept")["status"]["stages"]
    assert stage["attempts"][0]["settings"]["publish"] == wanted


@pytest.mark.parametrize(
    "storage", [{"retain": "Always"}, {"retain": "OnSuccess"}, {"existingClaim": "shared"}], ids=lambda one: str(one)
)
def test_a_timer_goes_with_a_volume_that_stays(kubectl: Kubectl, storage: dict[str, Any]) -> None:
    manifest = make("timed", storage=storage, ttlSecondsAfterFinished=0)
    kubectl.run("apply", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(manifest).encode())


def test_retry_only_grows(kubectl: Kubectl) -> None:
    kubectl.apply(make("again", retry=2))
    assert "spec.retry only grows" in refusal(kubectl, make("again", retry=1))


def test_a_volume_that_one_node_writes_is_not_resized_above_one_pod(kubectl: Kubectl) -> None:
    """By what it was made with, which stands in the status, so that who chose no access mode is told as well."""
    kubectl.run("delete", "lft", "lone", "--ignore-not-found")
    kubectl.apply(make("lone", suspend=True))
    status = {"status": {"artifacts": {"accessModes": ["ReadWriteOnce"]}}}
    kubectl.run("patch", "lft", "lone", "--subresource=status", "--type=merge", "-p", json.dumps(status))
    message = refusal(kubectl, make("lone", suspend=True, workers__replicas=2))
    assert "spec.workers.replicas must stay 1: the volume of this run is ReadWriteOnce" in message
    status = {"status": {"artifacts": {"accessModes": ["ReadWriteMany"]}}}
    kubectl.run("patch", "lft", "lone", "--subresource=status", "--type=merge", "-p", json.dumps(status))
    kubectl.apply(make("lone", suspend=True, workers__replicas=2))


def suspend_for(kubectl: Kubectl, name: str, reason: str) -> None:
    held = {
        "type": "Suspended", "status": "True", "reason": reason, "message": "",
        "lastTransitionTime": "2026-11-01T12:00:00Z",
    }  # fmt: skip
    patch = json.dumps({"status": {"phase": "Suspended", "conditions": [held]}})
    kubectl.run("patch", "lft", name, "--subresource=status", "--type=merge", "-p", patch)


def test_a_claim_is_named_later_only_while_the_run_waits_for_one(kubectl: Kubectl) -> None:
    kubectl.run("delete", "lft", "heir", "--ignore-not-found")
    kubectl.apply(make("heir", suspend=True))
    named = make("heir", suspend=True, storage__existingClaim="heir-run")
    for reason in ("", "Suspended"):
        if reason:
            suspend_for(kubectl, "heir", reason)
        message = refusal(kubectl, named)
        assert "spec.storage.existingClaim is fixed from creation, but for a run that is suspended as" in message
    suspend_for(kubectl, "heir", "VolumeOfEarlierRun")
    kubectl.apply(named)
    assert kubectl.get("lft", "heir")["spec"]["storage"]["existingClaim"] == "heir-run"
    for other in (make("heir", suspend=True), make("heir", suspend=True, storage__existingClaim="third")):
        assert "spec.storage.existingClaim is fixed from creation" in refusal(kubectl, other), "it is named once"


def test_a_claim_that_is_named_says_itself_how_it_can_be_written(kubectl: Kubectl) -> None:
    kubectl.run("delete", "lft", "guest", "--ignore-not-found")
    kubectl.apply(make("guest", suspend=True, storage__existingClaim="shared"))
    status = {"status": {"artifacts": {"volumeClaim": "shared", "accessModes": []}}}
    kubectl.run("patch", "lft", "guest", "--subresource=status", "--type=merge", "-p", json.dumps(status))
    kubectl.apply(make("guest", suspend=True, storage__existingClaim="shared", workers__replicas=2))


def test_applying_the_same_again_changes_nothing(kubectl: Kubectl) -> None:
    kubectl.apply(make("same"))
    assert "unchanged" in kubectl.apply(make("same"))


def test_null_means_left_out(kubectl: Kubectl) -> None:
    kubectl.run("delete", "lft", "nothing", "--ignore-not-found")
    manifest = make("nothing", evaluation__generation={"topP": None}, storage__storageClassName=None)
    kubectl.run("create", "-f", "-", stdin=yaml.safe_dump(manifest).encode())


def multiply_cost(schema: dict[str, Any], times: int) -> int:
    """Make every rule in ``schema`` cost ``times`` as much; returns how many there are."""
    count = 0
    for rule in schema.get(RULES_KEY, []):
        rule["rule"] = " && ".join([f"({rule['rule']})"] * times)
        if "messageExpression" in rule:
            rule["messageExpression"] = f"[{', '.join([rule['messageExpression']] * times)}][0]"
        count += 1
    children = [*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")]
    return count + sum(multiply_cost(child, times) for child in children if isinstance(child, dict))


def cost_tried(times: int) -> dict[str, Any]:
    # Through JSON, and no deep copy: fields of one type share its rules, which would be multiplied again and again.
    crd = json.loads(json.dumps(build_crd()))
    assert multiply_cost(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], times) > 25
    return crd


def test_estimated_cost_is_below_a_quarter_of_the_limits(api_server: Kubectl) -> None:
    """The API server estimates the cost of every rule and refuses those beyond its limits; ours fit four times."""
    # Not from the client's side, which would write all of it into an annotation as well: there is no room for that.
    dry_run = ("apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-")
    api_server.run(*dry_run, stdin=yaml.safe_dump(cost_tried(4)).encode())
    with pytest.raises(KubectlError, match="cost"):
        api_server.run(*dry_run, stdin=yaml.safe_dump(cost_tried(14)).encode())
